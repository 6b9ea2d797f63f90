"""The Triton backend in the interpreter: how it cuts batches, what it replays, and states that are still arriving."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from kernels.gpu import attention
from kernels.gpu.graphs import Graph
from kernels.gpu.hopper.self_check import Kind
from kernels.gpu.self_check import deviation
from kernels.gpu.stack import GpuStack
from kernels.reach import Reach
from kernels.sample_stack import Form
from mfalcon.algorithm import Scoring, append, append_all, prefill, score, score_all
from mfalcon.backends import triton as gpu
from mfalcon.backends.select import PoolBudget, ServedModel, reference, serve
from mfalcon.backends.triton import TritonBackend, _groups, _microbatches, _Part
from mfalcon.engine.workers import take_cores
from mfalcon.kvcache.copy import ThreadCopier
from mfalcon.kvcache.state import KVPool, KVShape, KVState
from mfalcon.models.base import EventTokens, Targets
from mfalcon.models.config_layers import LayerConfig, ReachConfig
from mfalcon.models.layer import Stack
from tests.device import DEVICE, needs_interpreter
from tests.launches import watched
from tests.small import NOW_MS, random_events, small_checkpoint, small_config, some_rows, tokens

CHECKPOINT = small_checkpoint("dfgr", torch.float32)
BUDGET = PoolBudget(1 << 20, threads=1, longest=24, device_bytes=2 << 20)
BOUND = 1e-5
pytestmark = needs_interpreter


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Rows that only fill up a shape hold anything: the interpreter complains, a GPU does not."""
    with np.errstate(all="ignore"):
        yield


def test_the_self_check_holds_and_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert deviation(DEVICE, torch.float32, Form()) <= 2e-5
    monkeypatch.setattr("kernels.gpu.stack.target_bias", lambda *_: None)
    assert deviation(DEVICE, torch.float32, Form(concat=True, reach=(Reach(7, 40, 5), None))) > 1e-2


@torch.inference_mode()
def test_layers_that_see_a_part_are_the_reference() -> None:
    """Prefill, appends over the ends of what is seen, and scores, replayed or not."""
    reach = (ReachConfig(tokens=3, targets=11, first=2), ReachConfig(tokens=7))
    config = small_config("dfgr", max_history=24).model_copy(update={"reach": reach})
    model = small_checkpoint("dfgr", torch.float32, config=config).model
    served, oracle = serve(model, "triton", BUDGET), reference(model)
    for is_recorded in (False, True):
        if is_recorded:
            assert isinstance(served, ServedModel)
            served.stack.prepare(served.pool, 8)
        events = random_events(24, seed=1)
        state, known = served.empty_state(), oracle.empty_state()
        for start, stop in ((0, 3), (3, 4), (4, 12), (12, 24)):
            new = tokens(CHECKPOINT, events[start:stop])
            state, known = append(served, state, new), append(oracle, known, new)
            expected = score(oracle, known, targets(5, 1), NOW_MS, 64)
            assert (score(served, state, targets(5, 1), NOW_MS, 8) - expected).abs().max() <= BOUND


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 12))
def test_groups_keep_order_and_size(sizes: list[int], most: int) -> None:
    parts = list(_groups(sizes, most))
    assert [size for part in parts for size in sizes[part]] == sizes
    for part in parts:
        assert sum(sizes[part]) <= most or part.stop - part.start == 1


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 7))
def test_microbatches_hold_every_target_once(sizes: list[int], most: int) -> None:
    state = serve(CHECKPOINT.model, "triton", BUDGET).empty_state()
    users = [_Part(state, size, number) for number, size in enumerate(sizes)]
    rows = [part.time_ms for parts in _microbatches(users, most) for part in parts for _ in range(part.num_rows)]
    assert rows == [number for number, size in enumerate(sizes) for _ in range(size)]
    batches = [sum(part.num_rows for part in parts) for parts in _microbatches(users, most)]
    assert all(size == most for size in batches[:-1]) and all(0 < size <= most for size in batches)


def targets(num_targets: int, seed: int) -> Targets:
    return Targets(some_rows(num_targets, seed), torch.tensor([1, 12]))


def states_of(served: ServedModel, lengths: Sequence[int]) -> list[KVState]:
    return [prefill(served, tokens(CHECKPOINT, random_events(n, seed=n))) for n in lengths]


def requests(states: Sequence[KVState], sizes: Sequence[int]) -> list[Scoring]:
    return [Scoring(state, targets(m, m), NOW_MS + m) for state, m in zip(states, sizes, strict=True)]


def count_replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every replay from now on."""
    replayed: list[int] = []
    right = Graph.__call__

    def counted(self: Graph, x: torch.Tensor, *rest: object) -> torch.Tensor:
        replayed.append(len(x))
        return right(self, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Graph, "__call__", counted)
    return replayed


@torch.inference_mode()
def test_many_users_at_once_are_each_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoded together and scored together, replayed or not, against the reference one by one."""
    monkeypatch.setattr(gpu, "_SHAPE_PAGES", 6)
    lengths, sizes = (7, 24, 1), (5, 9, 3)
    oracle, served = reference(CHECKPOINT.model), serve(CHECKPOINT.model, "triton", BUDGET)
    expected = score_all(oracle, requests(states_of(oracle, lengths), sizes), 64)
    deltas = [tokens(CHECKPOINT, random_events(n, seed=n)) for n in lengths]
    monkeypatch.setattr(gpu, "_MOST_ROWS", 25)  # two computations
    states = append_all(served, [served.empty_state()] * 3, deltas)
    assert (score_all(served, requests(states, sizes), 8) - expected).abs().max() <= BOUND
    replayed = count_replays(monkeypatch)
    served.stack.prepare(served.pool, 8)
    for _ in range(2):  # what a replay leaves behind is nothing to the next
        assert (score_all(served, requests(states, sizes), 8) - expected).abs().max() <= BOUND
    assert replayed == [8, 8, 1] * 2
    empty = requests([served.empty_state()], [4])
    assert (
        score_all(served, empty, 8) - score_all(oracle, requests([oracle.empty_state()], [4]), 8)
    ).abs().max() <= BOUND


@torch.inference_mode()
def test_every_class_of_sizes_is_compiled_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of encoding and of scoring, and nothing stays behind on the pages."""
    monkeypatch.setattr(gpu, "_MOST_ROWS", 4)
    backend = TritonBackend(CHECKPOINT.prefix_model.stack, CHECKPOINT.prefix_model.kv_shape(), ahead=True)
    pool, encoded, scored = BUDGET.device_pool(backend.layout), [], []

    def score_nothing(_: GpuStack, x: torch.Tensor, *rest: object) -> torch.Tensor:
        scored.append(len(x))
        return x

    monkeypatch.setattr(GpuStack, "extend", lambda _, x, *rest: encoded.append(len(x)))
    monkeypatch.setattr(GpuStack, "score", score_nothing)
    backend.prepare(pool, 2)
    assert (encoded, scored[-4:]) == ([1, 1, 2, 2, 4, 4], [1, 1, 2, 2])  # on whole pages and on small ones
    assert pool.accounts.num_free == pool.accounts.num_pages


@torch.inference_mode()
@pytest.mark.parametrize(("taken", "largest"), [(0, 512), (1, 256)])
def test_all_free_pages_serve_to_compile_the_largest_class(
    monkeypatch: pytest.MonkeyPatch, taken: int, largest: int
) -> None:
    """Those of one class are free before the next takes its own; that others take some meanwhile is no error."""
    backend = TritonBackend(CHECKPOINT.prefix_model.stack, CHECKPOINT.prefix_model.kv_shape(), ahead=True)
    pool = KVPool(backend.layout, 4)
    of_others, sizes = list[KVState](), list[int]()

    def encode(_: GpuStack, x: torch.Tensor, *rest: object) -> None:
        sizes.append(len(x))
        if len(x) == 256 and taken:
            of_others.append(pool.empty().grown(taken))

    monkeypatch.setattr(gpu, "_SHAPE_PAGES", 4)
    monkeypatch.setattr(GpuStack, "extend", encode)
    monkeypatch.setattr(GpuStack, "score", lambda _, x, *rest: x)
    backend.prepare(pool, 2)
    assert sizes[-1] == largest


@torch.inference_mode()
def test_times_are_written_with_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel of the first layer, for all users: nothing else writes them."""
    oracle, served = reference(CHECKPOINT.model), serve(CHECKPOINT.model, "triton", BUDGET)
    cuts = [(random_events(n, seed=n)[:first], random_events(n, seed=n)[first:]) for n, first in ((24, 20), (9, 3))]
    first, second = ([tokens(CHECKPOINT, cut[part]) for cut in cuts] for part in (0, 1))
    expected = append_all(oracle, append_all(oracle, [oracle.empty_state()] * 2, first), second)

    def written(*_: object) -> None:
        raise AssertionError("a launch of their own")

    monkeypatch.setattr(KVState, "write_times", written)
    found = append_all(served, append_all(served, [served.empty_state()] * 2, first), second)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.times, other.times)


@torch.inference_mode()
def test_small_appends_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the smallest shape that holds them, against the reference; what pads it, and what a replay before it left, is
    nothing to them.
    """
    monkeypatch.setattr(gpu, "_MOST_APPENDED", 32)
    monkeypatch.setattr(gpu, "_LEAST_APPEND", 4)
    monkeypatch.setattr(gpu, "_SHAPE_USERS", 3)
    oracle, served = reference(CHECKPOINT.model), serve(CHECKPOINT.model, "triton", BUDGET)
    served.stack.prepare(served.pool, 8)
    replayed, shapes = count_replays(monkeypatch), list[int]()
    right = GpuStack.extend

    def extend(self: GpuStack, x: torch.Tensor, *rest: object) -> None:
        shapes.append(len(x))
        right(self, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(GpuStack, "extend", extend)
    histories = [random_events(n, seed=n) for n in (24, 17, 9)]
    expected, found = [oracle.empty_state()] * 3, [served.empty_state()] * 3
    for cut in (slice(0, 8), slice(8, 9), slice(9, 12), slice(12, 24)):
        deltas = [tokens(CHECKPOINT, events[cut]) for events in histories]
        expected, found = append_all(oracle, expected, deltas), append_all(served, found, deltas)
    assert replayed == [24, 3, 6, 17] and shapes == [32, 4, 8, 32]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.times, other.times)
    sizes = (5, 9, 3)
    wrong = score_all(served, requests(found, sizes), 64) - score_all(oracle, requests(expected, sizes), 64)
    assert wrong.abs().max() <= BOUND


@torch.inference_mode()
def test_appends_that_fit_no_shape_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many tokens, users or pages, or tokens whose times stand on the pages already."""
    monkeypatch.setattr(gpu, "_MOST_APPENDED", 8)
    monkeypatch.setattr(gpu, "_SHAPE_USERS", 1)
    monkeypatch.setattr(gpu, "_SHAPE_PAGES", 1)
    served = serve(CHECKPOINT.model, "triton", BUDGET)
    served.stack.prepare(served.pool, 8)
    replayed, none = count_replays(monkeypatch), served.empty_state()
    short, long = (tokens(CHECKPOINT, random_events(n, seed=n)) for n in (3, 9))
    append(served, none, long)
    append_all(served, [none, none], [short, short])
    served.stack.encode([none.extend(short.times)], torch.zeros(3, CHECKPOINT.model.config.dim), [3])
    append(served, none.extend(torch.zeros(128, dtype=torch.int64)), short)
    assert replayed == []
    append(served, none, short)
    assert replayed == [3]


@torch.inference_mode()
def test_what_fits_no_shape_is_computed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_SHAPE_USERS", 1)
    served = serve(CHECKPOINT.model, "triton", BUDGET)
    one, two = states_of(served, (5, 6))
    served.stack.prepare(served.pool, 8)
    replayed = count_replays(monkeypatch)
    score_all(served, requests([one], [9]), 9)
    score_all(served, requests([one, two], [1, 1]), 2)
    assert replayed == []
    score_all(served, requests([one], [8]), 8)
    assert replayed == [8]


@torch.inference_mode()
def test_a_replay_has_the_splits_that_its_prefixes_call_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a launch would have: a graph for each number, and for one user one that has no tiles of others."""
    wanted = {20: 1, 24: 2}

    def of_length(op: str, num_programs: int, prefix_len: int, *_: object) -> int:
        return wanted.get(prefix_len, 3)

    monkeypatch.setattr("kernels.gpu.splits.num_splits", of_length)
    monkeypatch.setattr("kernels.gpu.splits.classes", lambda *_: [1, 2])
    served = serve(CHECKPOINT.model, "triton", BUDGET)
    served.stack.prepare(served.pool, 8)
    replayed, of_lengths = list[tuple[int, int]](), list[list[tuple[int, int]]]()
    right = Graph.__call__

    def seen(self: Graph, *given: object) -> torch.Tensor:
        replayed.append((self.limits.num_users, self.splits))
        return right(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Graph, "__call__", seen)
    for lengths in ((20,), (24,), (20, 24), (7,)):
        states = states_of(served, lengths)
        replayed.clear()
        found = score_all(served, requests(states, [2] * len(lengths)), 8)
        of_lengths.append(replayed[:])
        for index, one in enumerate(states):
            alone = score(served, one, targets(2, 2), NOW_MS + 2, 8)
            assert (found[2 * index : 2 * index + 2] - alone).abs().max() <= BOUND
    assert of_lengths == [[(1, 1)], [(1, 2)], [(8, 2)], [(1, 2)]]


def arriving(served: ServedModel, state: KVState) -> tuple[KVState, threading.Event, ThreadCopier]:
    """A copy of a state that went down to the host and comes up when the event is set; its pages are NaN until then."""
    assert served.host is not None
    gate = threading.Event()
    copier = ThreadCopier(before_part=lambda part: None if part == 0 else assert_set(gate))
    down = copier.demote(state, served.host, copier.mark())
    up = copier.promote(down, served.pool)
    for page in up.pages:
        page[served.stack.layout.page_tokens * 8 :].fill_(255)
    return up, gate, copier


def assert_set(gate: threading.Event) -> None:
    assert gate.wait(60)


def waits_for(gate: threading.Event, work: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What the work gives; it is not done before the gate opens."""

    def run() -> torch.Tensor:
        with torch.inference_mode(), np.errstate(all="ignore"):
            return work()

    with ThreadPoolExecutor(1, initializer=take_cores, initargs=(1,)) as thread:
        done = thread.submit(run)
        with pytest.raises(TimeoutError):
            done.result(1.0)
        gate.set()
        return done.result(60)


@torch.inference_mode()
def test_a_score_waits_for_pages_that_arrive_and_replays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(CHECKPOINT.model, "triton", BUDGET)
    [state] = states_of(served, (20,))
    expected = score(served, state, targets(5, 5), NOW_MS, 8)
    served.stack.prepare(served.pool, 8)

    def replayed(*_: object) -> None:
        raise AssertionError("a replay waits for nothing")

    monkeypatch.setattr(Graph, "__call__", replayed)
    up, gate, copier = arriving(served, state)
    found = waits_for(gate, lambda: score(served, up, targets(5, 5), NOW_MS, 8))
    assert (found - expected).abs().max() <= BOUND
    copier.close()


def twenty_and_four(seed: int) -> tuple[ServedModel, KVState, EventTokens, torch.Tensor]:
    """A state of 20 events, four more, and scores with all of them, which were never on the same pages. seed: of no
    other test, whose memory may come back with all that is right in it.
    """
    events = random_events(24, seed)
    served, elsewhere = (serve(CHECKPOINT.model, "triton", BUDGET) for _ in range(2))
    first, rest = (tokens(CHECKPOINT, part) for part in (events[:20], events[20:]))
    longer = append(elsewhere, prefill(elsewhere, first), rest)
    return served, prefill(served, first), rest, score(elsewhere, longer, targets(5, 5), NOW_MS, 8)


@torch.inference_mode()
def test_an_append_waits_for_pages_that_arrive() -> None:
    """What it writes on the last page is not overwritten by the copy, and what it reads is there."""
    served, first, rest, expected = twenty_and_four(3)
    up, gate, copier = arriving(served, first)
    longer = waits_for(gate, lambda: score(served, append(served, up, rest), targets(5, 5), NOW_MS, 8))
    assert (longer - expected).abs().max() <= BOUND
    copier.close()


@torch.inference_mode()
@pytest.mark.parametrize(("phase", "seed"), [("score", 4), ("extend", 5)])
def test_without_the_wait_both_are_wrong(monkeypatch: pytest.MonkeyPatch, phase: str, seed: int) -> None:
    """Or the tests above would show nothing."""
    served, first, rest, expected = twenty_and_four(seed)
    monkeypatch.setattr(gpu, "_arrival", lambda _: lambda layer: None)
    up, gate, copier = arriving(served, first)
    if phase == "score":
        found = score(served, up, targets(5, 5), NOW_MS, 8)
        gate.set()
    else:
        longer = append(served, up, rest)
        gate.set()
        copier.idle()
        found = score(served, longer, targets(5, 5), NOW_MS, 8)
    assert not torch.allclose(found, expected, atol=1e-3)
    copier.close()


@torch.inference_mode()
@pytest.mark.parametrize("plain", [False, True])
def test_the_plain_backend_asks_for_no_kernel_of_hopper(monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    """On tensors without memory; these kernels would take them."""
    asked = list[str]()

    def usable(_: torch.device, kind: Kind) -> bool:
        asked.append(kind.op)
        return False

    monkeypatch.setattr(attention, "usable", usable)
    where, dtype = torch.device("meta"), torch.float16
    layer = LayerConfig(dim=128, num_heads=2, qk_dim=64, v_dim=64, attention_norm=8)
    backend = TritonBackend(Stack(layer, 2).to(where, dtype), KVShape(2, 2, 64, 64, dtype, where), plain=plain)
    states = [KVPool(backend.layout, 4).empty().grown(300)]
    with watched(lambda _: None, compute=False):
        backend.encode(states, torch.zeros(300, 128, dtype=dtype, device=where), [300])
        backend.hidden(states, torch.zeros(300, 128, dtype=dtype, device=where), [300], [NOW_MS], 4096)
    assert asked == ([] if plain else ["prefix_attention", *["target_attention"] * 2])
