"""The ancestor rule: a state is found for exactly the histories that begin with what it was made from; and what goes
from tier to tier.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.history.chain import user_hash
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import Found, KVCache
from mfalcon.kvcache.copy import ThreadCopier
from mfalcon.kvcache.state import KVPool, KVState
from mfalcon.kvcache.tier import Entry, LruTier, StateKey
from mfalcon.types import CacheSource, Events
from tests.kvcache.states import EVENTS, LAYOUT, LIFE, PAGE, history, state_of

ANN = user_hash("ann")
BUDGET = 100 * PAGE


def empty_cache(fingerprint: str = "f", tombstones: Tombstones | None = None) -> KVCache:
    return KVCache(fingerprint, KVPool(LAYOUT), BUDGET, tombstones or Tombstones())


STATE = state_of(1)


@pytest.fixture
def cache() -> KVCache:
    """Holds the state of ann's events [8, 20)."""
    cache = empty_cache()
    cache.put(history(20), 8, STATE)
    return cache


def test_hit(cache: KVCache) -> None:
    assert cache.lookup(history(20), 8) == Found(STATE, 20, CacheSource.HOST)


@pytest.mark.parametrize("length", [21, 30])
def test_a_longer_history_finds_its_ancestor(cache: KVCache, length: int) -> None:
    found = cache.lookup(history(length), 8)
    assert found is not None and found.stop == 20


@pytest.mark.parametrize("length", [0, 8, 19])
def test_a_shrunk_history_misses(cache: KVCache, length: int) -> None:
    assert cache.lookup(history(length), 8) is None


@pytest.mark.parametrize("position", [0, 7, 8, 19])
@pytest.mark.parametrize("field", ["item_id", "actions", "value", "time_ms"])
def test_an_edited_history_misses(cache: KVCache, position: int, field: str) -> None:
    """Also before the window: a history is edited or it is not."""
    edited = EVENTS[:25].copy()
    edited[field][position:] += 1
    assert cache.lookup(history(edited), 8) is None


@pytest.mark.parametrize("start", [0, 7, 16])
def test_a_slid_window_misses(cache: KVCache, start: int) -> None:
    assert cache.lookup(history(20), start) is None


def test_another_user_misses(cache: KVCache) -> None:
    assert cache.lookup(history(20, "bob"), 8) is None


def test_another_fingerprint_misses(cache: KVCache) -> None:
    key = cache.key(history(20), 8, 20)
    assert empty_cache("g").lookup(history(20), 8, Entry(key, STATE)) is None  # as if two models shared a tier
    assert empty_cache().lookup(history(20), 8, Entry(key, STATE)) is not None


def test_an_event_after_the_state_may_differ(cache: KVCache) -> None:
    later = EVENTS.copy()
    later["item_id"][20] += 1
    assert cache.lookup(history(later), 8) is not None


def test_put_replaces_and_delete_erases(cache: KVCache) -> None:
    longer = state_of(2)
    cache.put(history(25), 8, longer)
    assert cache.num_bytes == 2 * PAGE
    assert cache.lookup(history(20), 8) is None
    cache.delete(user_hash("bob"))
    assert cache.lookup(history(25), 8) == Found(longer, 25, CacheSource.HOST)
    cache.delete(ANN)
    assert cache.num_bytes == 0
    assert cache.lookup(history(25), 8) is None


@given(st.integers(1, 30), st.integers(0, 30), st.one_of(st.none(), st.integers(0, 29)))
def test_found_exactly_when_it_is_an_ancestor(made_from: int, length: int, edited: int | None) -> None:
    cache = empty_cache()
    cache.put(history(made_from), 0, STATE)
    events = EVENTS.copy()
    if edited is not None:
        events["item_id"][edited] += 1
    seen = events[:length]
    is_ancestor = made_from <= length and np.array_equal(seen[:made_from], EVENTS[:made_from])
    assert (cache.lookup(history(seen), 0) is not None) == is_ancestor
    assert cache.peek(history(seen), 0) == (made_from if is_ancestor else 0)


def fetched(length: int, start: int = 8, events: Events = EVENTS) -> Entry:
    return Entry(empty_cache().key(history(events[:length]), start, length), state_of(1))


def test_the_longer_of_here_and_fetched_is_taken_and_kept(cache: KVCache) -> None:
    for shorter in (18, 20):
        assert cache.lookup(history(25), 8, fetched(shorter)) == Found(STATE, 20, CacheSource.HOST)
    longer = fetched(24)
    assert cache.lookup(history(25), 8, longer) == Found(longer.state, 24, CacheSource.REDIS)
    assert cache.lookup(history(25), 8) == Found(longer.state, 24, CacheSource.HOST)


def test_a_fetched_state_is_verified_like_any_other() -> None:
    edited = EVENTS.copy()
    edited["value"][10] += 1
    for entry in (fetched(20, events=edited), fetched(20, start=0), fetched(26)):
        assert empty_cache().lookup(history(25), 8, entry) is None


def test_nothing_of_an_ended_life_is_kept() -> None:
    tombstones = Tombstones()
    cache = empty_cache(tombstones=tombstones)
    cache.put(history(20), 8, STATE)
    tombstones.add(LIFE)
    cache.delete(ANN)
    cache.put(history(25), 8, STATE)
    assert cache.lookup(history(25), 8, fetched(24)) is not None  # right, if nobody's any more
    assert cache.num_bytes == 0


def test_tombstones_forget_the_oldest() -> None:
    tombstones = Tombstones(limit=2)
    for life in (b"", b"1", b"2", b"3"):
        tombstones.add(life)
    assert [life in tombstones for life in (b"", b"1", b"2", b"3")] == [False, False, True, True]


def test_a_window_that_the_history_may_move_to_is_kept_beside_its_own(cache: KVCache) -> None:
    own, moved = state_of(1), state_of(2)
    cache.put(history(20), 0, own)
    cache.put(history(20), 8, moved, own_start=0)
    for start, state in ((0, own), (8, moved)):
        assert cache.lookup(history(21), start) == Found(state, 20, CacheSource.HOST)
        assert cache.peek(history(21), start) == 20 - start
    cache.put(history(25), 16, state_of(3), own_start=8)  # the history's own window has moved
    assert cache.peek(history(25), 0) == 0 and cache.peek(history(25), 8) == 12
    cache.put(history(25), 8, state_of(4))
    assert (len(cache.host), cache.num_bytes) == (2, 7 * PAGE)
    cache.delete(ANN)
    assert not cache.holds(ANN) and cache.num_bytes == 0


class Device:
    """A cache with a device's pool in front, whose states are of another memory."""

    def __init__(self, num_pages: int = 100) -> None:
        self.pool, self.host_pool, self.tombstones = KVPool(LAYOUT, num_pages), KVPool(LAYOUT, 100), Tombstones()
        self.cache = KVCache("f", self.pool, BUDGET, self.tombstones, host_pool=self.host_pool, copier=ThreadCopier())
        assert self.cache.device is not None
        self.device: LruTier = self.cache.device
        self.host = self.cache.host

    def entry(self, stop: int, *, on_device: bool = False) -> Entry:
        pool = self.pool if on_device else self.host_pool
        return Entry(self.cache.key(history(stop), 0, stop), state_of(stop, pool))

    def lookup(self, length: int, fetched: Entry | None = None) -> Found:
        """What is found, which is a state on the device."""
        found = self.cache.lookup(history(length), 0, fetched)
        assert found is not None and found.state.pool is self.pool and found.state.num_tokens == found.stop
        return found

    def put(self, stop: int, user_id: str = "ann", start: int = 0, own_start: int | None = None) -> KVState:
        state = state_of(stop, self.pool)
        self.cache.put(history(stop, user_id), start, state, own_start)
        return state


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device()
    yield made
    made.cache.close()


def test_what_is_found_below_is_brought_up_once(device: Device) -> None:
    device.host.put(device.entry(20))
    found = device.lookup(25)
    assert (found.stop, found.source) == (20, CacheSource.HOST)
    assert device.lookup(25) == Found(found.state, 20, CacheSource.GPU)
    entry = device.entry(23)
    found = device.lookup(25, entry)
    assert (found.stop, found.source) == (23, CacheSource.REDIS)
    assert device.lookup(25) == Found(found.state, 23, CacheSource.GPU)
    assert device.host.get(ANN, 0) == entry  # what was fetched is host memory: it is kept there


@pytest.mark.parametrize("fetched", [None, 12])
def test_nothing_is_brought_in_vain(device: Device, fetched: int | None) -> None:
    device.host.put(device.entry(14))
    here = device.entry(14, on_device=True)
    device.device.put(here)
    entry = None if fetched is None else device.entry(fetched)
    free = device.pool.accounts.num_free
    assert device.lookup(25, entry) == Found(here.state, 14, CacheSource.GPU)
    assert device.pool.accounts.num_free == free
    device.device.put(device.entry(26, on_device=True))  # of a longer history, so no ancestor
    assert device.lookup(25).source is CacheSource.HOST


def test_without_room_to_bring_the_next_best_counts_and_else_it_is_a_miss(device: Device) -> None:
    device.host.put(device.entry(20))
    with ExitStack() as in_flight:
        in_flight.enter_context(state_of(95, device.pool).pinned())
        assert device.cache.lookup(history(25), 0) is None
        here = device.entry(3, on_device=True)
        device.device.put(here)
        in_flight.enter_context(here.state.pinned())
        assert device.lookup(25, device.entry(23)) == Found(here.state, 3, CacheSource.GPU)
        kept = device.host.peek(ANN, 0)
        assert kept is not None and kept.stop == 20  # what could not be brought is not kept either
    assert device.lookup(25).source is CacheSource.HOST


def test_a_state_that_is_evicted_between_the_look_and_the_grasp_is_none(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = device.entry(10, on_device=True)
    device.host.put(device.entry(20))
    device.device.put(here)
    monkeypatch.setattr(device.host, "get", lambda *_: None)
    assert device.lookup(25) == Found(here.state, 10, CacheSource.GPU)
    other = Entry(StateKey("f", ANN, 0, 20, b"edited"), state_of(20, device.host_pool))
    monkeypatch.setattr(device.host, "get", lambda *_: other)
    device.device.delete(ANN)
    assert device.cache.lookup(history(25), 0) is None


def test_what_is_put_comes_to_the_host_and_what_the_device_evicts_is_found_there() -> None:
    device = Device(num_pages=25)
    for user_id in ("ann", "bob", "eve"):
        device.put(10, user_id)
        device.cache.idle()
    assert len(device.device) == 2 and len(device.host) == 3
    assert not device.device.holds(ANN) and device.lookup(12).source is CacheSource.HOST
    device.cache.delete(ANN)
    assert not device.cache.holds(ANN)
    device.cache.delete(None)
    assert device.cache.num_bytes == 0
    device.cache.close()
    assert device.pool.accounts.num_free == 25 and device.host_pool.accounts.num_free == 100


def test_states_of_every_window_come_to_the_host_but_none_of_an_ended_life(device: Device) -> None:
    device.put(20)
    device.put(20, start=8, own_start=0)
    device.cache.idle()
    assert device.host.peek(ANN, 0) is not None and device.host.peek(ANN, 8) is not None
    device.tombstones.add(LIFE)
    device.cache.delete(ANN)
    device.put(25)
    device.cache.idle()
    assert not device.cache.holds(ANN)
