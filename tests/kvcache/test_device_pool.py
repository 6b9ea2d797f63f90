"""A device's pool in front of the host's: no state ever changes, no page is lost, whatever is on its way meanwhile."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from kernels.reference import target_attention
from mfalcon.algorithm import append, prefill, score
from mfalcon.backends.base import ReferenceBackend
from mfalcon.backends.select import ServedModel
from mfalcon.engine.workers import take_cores
from mfalcon.errors import Overloaded
from mfalcon.history.chain import user_hash
from mfalcon.history.history import History, no_history
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.block_pool import PageRun
from mfalcon.kvcache.cache import KVCache
from mfalcon.kvcache.copy import ThreadCopier, _ThreadArrival
from mfalcon.kvcache.state import KVPool, KVState, PlainLayout
from mfalcon.models.base import Targets
from mfalcon.types import EVENT_DTYPE, CacheSource
from tests.kvcache.test_copy import NUM_PARTS, SIZE, TIMEOUT_S, Gate, assert_holds, pool, written
from tests.small import NOW_MS, random_events, small_checkpoint, some_rows, tokens

T = TypeVar("T")
numbers = st.integers(0, 10**6)


@dataclass(eq=False)
class Held:
    """A state and the names of its tokens; the first one names its user."""

    state: KVState
    tokens: list[int]


class TwoPools(RuleBasedStateMachine):
    """Grows states on the device, copies them up and down, some slowly, and drops them at any moment."""

    size = SIZE

    @initialize()
    def start(self) -> None:
        self.device, self.host = pool(10, size=self.size), pool(12, size=self.size)
        self.gate = Gate()
        self.copier = ThreadCopier(before_part=self.gate)
        self.num_parts = 0
        self.runs: tuple[weakref.WeakSet[PageRun], weakref.WeakSet[PageRun]] = (weakref.WeakSet(), weakref.WeakSet())
        self.here: list[Held] = []  # as requests in flight do
        self.there: list[Held] = []  # on the host, as a worker does
        self.kept_here: list[Held] = []  # as the tiers do, the oldest first
        self.kept_there: list[Held] = []
        self.device.accounts.make_room_with(partial(self.evict, self.kept_here))
        self.host.accounts.make_room_with(partial(self.evict, self.kept_there))
        self.next_number = 0

    @staticmethod
    def evict(kept: list[Held], _: bool = False) -> bool:
        if kept:
            kept.pop(0)
        return bool(kept)

    def drawn(self, held: list[Held], number: int) -> Held:
        return held[number % len(held)]

    def letting(self, work: Callable[[], T]) -> T:
        """Do what may have to wait for copies, which come part by part meanwhile."""
        if self.gate.settle(self.num_parts):
            return work()
        with ThreadPoolExecutor(1, initializer=take_cores, initargs=(1,)) as thread:
            future = thread.submit(work)
            while not wait([future], 0.002).done and not self.gate.settle(self.num_parts):
                self.gate.let()
            return future.result(TIMEOUT_S)

    def hold(self, held: list[Held], state: KVState, tokens: list[int]) -> None:
        self.runs[state.pool is self.host].add(state.run)
        held.append(Held(state, tokens))

    def num_new(self, number: int) -> int:
        """In large pages full ones too, and one token less."""
        return number if self.size == SIZE else number * self.size // SIZE - number % 2

    def new_tokens(self, num_new: int) -> list[int]:
        self.next_number += num_new
        return list(range(self.next_number - num_new, self.next_number))

    @rule(num_new=st.integers(1, 3 * SIZE))
    def new(self, num_new: int) -> None:
        new = self.new_tokens(self.num_new(num_new))
        try:
            self.hold(self.here, written(self.device.empty(), new), new)
        except Overloaded:
            assert not self.kept_here

    @precondition(lambda self: self.here)
    @rule(number=numbers, num_new=st.integers(1, 2 * SIZE))
    def append(self, number: int, num_new: int) -> None:
        parent, new = self.drawn(self.here, number), self.new_tokens(self.num_new(num_new))
        try:
            self.hold(self.here, self.letting(lambda: written(parent.state, new)), parent.tokens + new)
        except Overloaded:
            assert not self.kept_here

    @precondition(lambda self: self.here)
    @rule(number=numbers, other=numbers, whole=st.booleans())
    def demote(self, number: int, other: int, whole: bool) -> None:
        held = self.drawn(self.here, number)
        older = [one for one in self.there if one.tokens == held.tokens[: len(one.tokens)]]
        onto = None if whole or not older else self.drawn(older, other).state
        demote = partial(self.copier.demote, held.state, self.host, self.copier.mark(), onto)
        try:
            self.hold(self.there, self.letting(demote), held.tokens)
        except Overloaded:
            assert not self.kept_there

    @precondition(lambda self: self.there)
    @rule(number=numbers)
    def promote(self, number: int) -> None:
        held = self.drawn(self.there, number)
        try:
            self.hold(self.here, self.copier.promote(held.state, self.device), held.tokens)
        except Overloaded:
            assert not self.kept_here
        else:
            self.num_parts += NUM_PARTS

    @rule(num_parts=st.integers(1, NUM_PARTS + 1))
    def let_parts_pass(self, num_parts: int) -> None:
        for _ in range(num_parts):
            if not self.gate.settle(self.num_parts):
                self.gate.let()

    @precondition(lambda self: self.here)
    @rule(number=numbers)
    def read(self, number: int) -> None:
        held = self.drawn(self.here, number)
        self.letting(lambda: assert_holds(held.state, held.tokens))

    @rule(number=numbers, on_device=st.booleans())
    def keep(self, number: int, on_device: bool) -> None:
        held, kept = (self.here, self.kept_here) if on_device else (self.there, self.kept_there)
        if held:
            kept.append(self.drawn(held, number))

    @rule(number=numbers, on_device=st.booleans())
    def drop(self, number: int, on_device: bool) -> None:
        held = self.here if on_device else self.there
        if held:
            held.remove(self.drawn(held, number))

    @rule(on_device=st.booleans())
    def evict_one(self, on_device: bool) -> None:
        self.evict(self.kept_here if on_device else self.kept_there)

    @precondition(lambda self: self.here or self.there)
    @rule(number=numbers)
    def delete(self, number: int) -> None:
        user = self.drawn(self.here + self.there, number).tokens[0]
        for held in (self.here, self.there, self.kept_here, self.kept_there):
            held[:] = [one for one in held if one.tokens[0] != user]

    def check_what_is_here(self) -> None:
        for held in {*self.here, *self.there, *self.kept_here, *self.kept_there}:
            if not held.state.arriving:
                assert_holds(held.state, held.tokens)

    @invariant()
    def no_state_changes_and_no_page_is_lost(self) -> None:
        at_rest = self.gate.settle(self.num_parts)
        if at_rest:
            self.copier.idle()
        self.check_what_is_here()
        for some, runs in zip((self.device, self.host), self.runs, strict=True):
            some.accounts.check_integrity(list(runs))

    def teardown(self) -> None:
        if not hasattr(self, "gate"):
            return
        self.gate.open()
        self.copier.close()
        self.check_what_is_here()
        assert not any(held.state.arriving for held in self.here)
        for kept in (self.here, self.there, self.kept_here, self.kept_there):
            kept.clear()
        for some in (self.device, self.host):
            if some.accounts.num_free < some.accounts.num_pages:
                gc.collect()  # an error of a full pool may hold its frames
            assert some.accounts.num_free == some.accounts.num_pages


class TwoCutPools(TwoPools):
    """Of pages that are cut up for states of few tokens."""

    size = 128


TestTwoPools = TwoPools.TestCase
TestTwoPools.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestTwoCutPools = TwoCutPools.TestCase
TestTwoCutPools.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)


CHECKPOINT = small_checkpoint()
EVENTS = random_events(24)


class Small:
    """A small ranker whose states lie on a host's pool and on a device's, a gate between them."""

    def __init__(self) -> None:
        model = CHECKPOINT.prefix_model
        layout = PlainLayout(model.kv_shape(), SIZE)
        host, device = KVPool(layout, 20), KVPool(layout, 20)
        for some in (host, device):
            some.slab.fill_(0xFF)
        backend = ReferenceBackend(model.stack, model.kv_shape())
        self.host, self.device = ServedModel(model, backend, host), ServedModel(model, backend, device)
        self.layout = layout
        self.gate = Gate()
        self.copier = ThreadCopier(before_part=self.gate)

    def scores(self, state: KVState) -> Tensor:
        with torch.inference_mode():
            return score(self.device, state, Targets(some_rows(9), torch.tensor([1, 5])), NOW_MS, 4)

    def prefilled(self, num_events: int) -> KVState:
        with torch.inference_mode():
            return prefill(self.host, tokens(CHECKPOINT, EVENTS[:num_events]))

    def appended(self, state: KVState) -> KVState:
        with torch.inference_mode():
            return append(self.device, state, tokens(CHECKPOINT, EVENTS[19:]))


@pytest.fixture
def small() -> Iterator[Small]:
    made = Small()
    yield made
    made.gate.open()
    made.copier.close()


@pytest.fixture(params=[True, False], ids=["waits", "does not wait"])
def waits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """False: nobody waits for what arrives, and a test must see it."""
    does: bool = request.param
    if not does:
        monkeypatch.setattr(_ThreadArrival, "wait", lambda *_: None)
    return does


def test_a_layer_is_scored_while_the_next_one_arrives(
    small: Small, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = small.prefilled(19)
    expected = small.scores(here)
    there = small.copier.promote(here, small.device.pool)
    computed = watched(monkeypatch)
    with ThreadPoolExecutor(1, initializer=take_cores, initargs=(1,)) as reader:
        future = reader.submit(small.scores, there)
        if not waits:
            assert not right(future, expected)
            return
        for num_layers in (0, 1):
            assert not computed.acquire(timeout=0.05)  # the first layer reads its keys and the times: two parts
            small.gate.let(1 if num_layers else 2)
            assert computed.acquire(timeout=TIMEOUT_S)
            k, v, *_ = small.layout.blocks(small.device.pool.slab, 1)
            if num_layers == 0:
                assert k.isnan().all() and v.isnan().all() and not future.done()
        assert right(future, expected)


def test_appending_to_a_state_that_is_still_arriving(small: Small, waits: bool) -> None:
    """The new tokens stand on its last page, which is copied meanwhile; it stays what it is."""
    here = small.prefilled(19)
    expected, expected_longer = small.scores(here), small.scores(small.appended(small.prefilled(19)))
    there = small.copier.promote(here, small.device.pool)
    with ThreadPoolExecutor(1, initializer=take_cores, initargs=(1,)) as writer:
        future = writer.submit(small.appended, there)
        for _ in range(NUM_PARTS):
            wait([future], 0.05)
            small.gate.let()
        longer = future.result(TIMEOUT_S)
    small.copier.idle()
    assert longer.run.pages[: len(there.run.pages)] == there.run.pages
    assert torch.equal(small.scores(there), expected)
    assert torch.equal(small.scores(longer), expected_longer) == waits


def watched(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released once for every layer that was computed for the first microbatch."""
    computed, seen = threading.Semaphore(0), set()

    def watched_attention(
        q: Tensor, k: Tensor, *rest: Tensor, logit_scale: float, norm: float, softmax: bool = False
    ) -> Tensor:
        out = target_attention(q, k, *rest, logit_scale=logit_scale, norm=norm, softmax=softmax)
        if k.data_ptr() not in seen:
            seen.add(k.data_ptr())
            computed.release()
        return out

    monkeypatch.setattr("mfalcon.attention.target_attention", watched_attention)
    return computed


def right(future: "Future[Tensor]", expected: Tensor) -> bool:
    return torch.equal(future.result(TIMEOUT_S), expected)


def test_deletions_race_copies_of_real_states() -> None:
    """A cache over both pools: what is found is right, and after a deletion nothing of that life is found."""
    device, host, tombstones = pool(24), pool(16), Tombstones()
    copier = ThreadCopier(delay_s=0.0001)
    device.reserved = 14
    cache = KVCache("f", device, 14 * host.layout.page_bytes, tombstones, host_pool=host, copier=copier)
    offload = cache.offload
    assert offload is not None
    rng, lives, next_number = np.random.default_rng(0), 0, 0
    logs: dict[str, History] = {}
    sources = dict.fromkeys(CacheSource, 0)
    for number in range(800):
        if number % 8 == 0:
            cache.idle()  # however little the copying thread gets of a busy machine, some copies arrive
        user = f"user-{rng.integers(0, 7)}"
        if rng.random() < 0.05 and user in logs:
            tombstones.add(logs.pop(user).generation)
            cache.delete(user_hash(user))
            assert not cache.holds(user_hash(user))
            continue
        if user not in logs:
            assert not cache.holds(user_hash(user))  # nothing came back
            lives += 1
            logs[user] = no_history(user, b"%d" % lives)
        if len(logs[user]) < 30 and rng.random() < 0.6:
            num_new = int(rng.integers(1, 6))
            new = np.zeros(num_new, dtype=EVENT_DTYPE)
            new["item_id"] = np.arange(next_number, next_number + num_new)
            next_number += num_new
            logs[user] = logs[user].extended(new)
        log = logs[user]
        if len(log):
            rank(cache, device, log, sources)
    assert min(sources[source] for source in (CacheSource.GPU, CacheSource.HOST, CacheSource.NONE)) > 10
    assert offload.num_copied > 50
    cache.idle()
    for user, log in logs.items():
        entry = cache.host.get(user_hash(user), 0)
        if entry is not None:
            assert_holds(entry.state, log.events["item_id"][: entry.key.stop].tolist())
    entry = None
    cache.close()
    gc.collect()
    assert device.accounts.num_free == 24 and host.accounts.num_free == 16


def rank(cache: KVCache, device: KVPool, log: History, sources: dict[CacheSource, int]) -> None:
    """Find, check, append and keep, as the runner does."""
    found, names = cache.lookup(log, 0), log.events["item_id"].tolist()
    sources[found.source if found else CacheSource.NONE] += 1
    state, stop = (found.state, found.stop) if found else (device.empty(), 0)
    assert_holds(state, names[:stop])
    if stop < len(log):
        try:
            longer = written(state, names[stop:])
        except Overloaded:
            return
        assert_holds(longer, names)
        cache.put(log, 0, longer)
