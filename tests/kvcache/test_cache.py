"""The ancestor rule: a state is found for exactly the histories that begin with what it was made from."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.errors import Overloaded
from mfalcon.history.chain import user_hash
from mfalcon.history.history import History, no_history
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import Found, StateStore
from mfalcon.kvcache.tier import Entry, LruTier, StateKey
from mfalcon.types import CacheSource, Events
from tests.small import random_events


@dataclass(frozen=True, slots=True)
class State:
    """Stands for a KV state."""

    num_bytes: int = 10
    pins: int = 0


def history(events: Events, user_id: str = "ann") -> History:
    return no_history(user_id, LIFE).extended(events)


EVENTS = random_events(30)
LIFE = b"one life"


def empty_store(fingerprint: str = "f", *budgets: int) -> StateStore[State]:
    """Of as many tiers as budgets, one if none is given."""
    sources = (CacheSource.GPU, CacheSource.HOST) if len(budgets) == 2 else (CacheSource.HOST,)
    return StateStore(fingerprint, [(s, LruTier(b)) for s, b in zip(sources, budgets or (1000,), strict=True)])


@pytest.fixture
def store() -> StateStore[State]:
    """Holds the state of ann's events [8, 20)."""
    store = empty_store()
    store.put(history(EVENTS[:20]), 8, State())
    return store


def test_hit(store: StateStore[State]) -> None:
    assert store.acquire(history(EVENTS[:20]), 8) == Found(State(), 20, CacheSource.HOST)


@pytest.mark.parametrize("length", [21, 30])
def test_a_longer_history_finds_its_ancestor(store: StateStore[State], length: int) -> None:
    found = store.acquire(history(EVENTS[:length]), 8)
    assert found is not None and found.stop == 20


@pytest.mark.parametrize("length", [0, 8, 19])
def test_a_shrunk_history_misses(store: StateStore[State], length: int) -> None:
    assert store.acquire(history(EVENTS[:length]), 8) is None


@pytest.mark.parametrize("position", [0, 7, 8, 19])
@pytest.mark.parametrize("field", ["item_id", "actions", "value", "time_ms"])
def test_an_edited_history_misses(store: StateStore[State], position: int, field: str) -> None:
    """Also before the window: a history is edited or it is not."""
    edited = EVENTS[:25].copy()
    edited[field][position:] += 1
    assert store.acquire(history(edited), 8) is None


@pytest.mark.parametrize("start", [0, 7, 16])
def test_a_slid_window_misses(store: StateStore[State], start: int) -> None:
    assert store.acquire(history(EVENTS[:20]), start) is None


def test_another_user_misses(store: StateStore[State]) -> None:
    assert store.acquire(history(EVENTS[:20], "bob"), 8) is None


def test_another_fingerprint_misses(store: StateStore[State]) -> None:
    other: StateStore[State] = StateStore("g", store._tiers)  # as two models over one tier would share it
    assert other.acquire(history(EVENTS[:20]), 8) is None


def test_an_event_after_the_state_may_differ(store: StateStore[State]) -> None:
    later = EVENTS.copy()
    later["item_id"][20] += 1
    assert store.acquire(history(later), 8) is not None


def test_put_replaces_and_forget_erases(store: StateStore[State]) -> None:
    store.put(history(EVENTS[:25]), 8, State(20))
    assert store.num_bytes == 20
    assert store.acquire(history(EVENTS[:20]), 8) is None
    store.delete(user_hash("bob"))
    assert store.acquire(history(EVENTS[:25]), 8) == Found(State(20), 25, CacheSource.HOST)
    store.delete(user_hash("ann"))
    assert store.num_bytes == 0
    assert store.acquire(history(EVENTS[:25]), 8) is None


@given(st.integers(1, 30), st.integers(0, 30), st.one_of(st.none(), st.integers(0, 29)))
def test_found_exactly_when_it_is_an_ancestor(made_from: int, length: int, edited: int | None) -> None:
    store = empty_store()
    store.put(history(EVENTS[:made_from]), 0, State())
    events = EVENTS.copy()
    if edited is not None:
        events["item_id"][edited] += 1
    seen = events[:length]
    is_ancestor = made_from <= length and np.array_equal(seen[:made_from], EVENTS[:made_from])
    assert (store.acquire(history(seen), 0) is not None) == is_ancestor
    assert store.peek(history(seen), 0) == (made_from if is_ancestor else 0)


def fetched(length: int, start: int = 8, events: Events = EVENTS) -> Entry[State]:
    return Entry(empty_store().key(history(events[:length]), start, length), State(7))


def test_the_longer_of_here_and_fetched_is_taken_and_kept(store: StateStore[State]) -> None:
    assert store.acquire(history(EVENTS[:25]), 8, fetched(18)) == Found(State(), 20, CacheSource.HOST)
    assert store.acquire(history(EVENTS[:25]), 8, fetched(20)) == Found(State(), 20, CacheSource.HOST)
    assert store.acquire(history(EVENTS[:25]), 8, fetched(24)) == Found(State(7), 24, CacheSource.REDIS)
    assert store.acquire(history(EVENTS[:25]), 8) == Found(State(7), 24, CacheSource.HOST)


def test_a_fetched_state_is_verified_like_any_other() -> None:
    edited = EVENTS.copy()
    edited["value"][10] += 1
    for entry in (fetched(20, events=edited), fetched(20, start=0), fetched(26)):
        assert empty_store().acquire(history(EVENTS[:25]), 8, entry) is None


def test_what_one_tier_evicts_the_next_one_keeps_until_it_is_used() -> None:
    store = empty_store("f", 10, 30)
    for user_id in ("ann", "bob", "eve"):
        store.put(history(EVENTS[:20], user_id), 8, State())
    sources = {}
    for user_id in ("eve", "bob", "ann"):
        found = store.acquire(history(EVENTS[:20], user_id), 8)
        assert found is not None
        sources[user_id] = found.source
    assert sources == {"eve": CacheSource.GPU, "bob": CacheSource.HOST, "ann": CacheSource.HOST}
    again = store.acquire(history(EVENTS[:20], "ann"), 8)
    assert again is not None and again.source is CacheSource.GPU
    store.delete(user_hash("ann"))
    assert store.acquire(history(EVENTS[:20], "ann"), 8) is None
    store.clear()
    assert store.num_bytes == 0


def test_nothing_of_an_ended_life_is_kept_or_passed_on() -> None:
    tombstones, kept = Tombstones(), []
    store: StateStore[State] = StateStore(
        "f", [(CacheSource.HOST, LruTier(1000))], tombstones, lambda history, start, state: kept.append(state)
    )
    store.put(history(EVENTS[:20]), 8, State())
    assert len(kept) == 1
    tombstones.add(LIFE)
    store.delete(user_hash("ann"))
    store.put(history(EVENTS[:25]), 8, State())
    assert store.acquire(history(EVENTS[:25]), 8, fetched(24)) is not None  # right, if nobody's any more
    assert store.num_bytes == 0 and len(kept) == 1


def test_tombstones_forget_the_oldest() -> None:
    tombstones = Tombstones(limit=2)
    for life in (b"", b"1", b"2", b"3"):
        tombstones.add(life)
    assert [life in tombstones for life in (b"", b"1", b"2", b"3")] == [False, False, True, True]


@dataclass(frozen=True, slots=True)
class Brought:
    """Stands for a state on the device; number is what it was made of."""

    number: int
    num_bytes: int = 10
    pins: int = 0


class Device:
    """A store with a device's tier in front, whose states are of another kind."""

    def __init__(self, device_budget: int = 100) -> None:
        self.gpu: LruTier[State | Brought] = LruTier(device_budget)
        self.host: LruTier[State | Brought] = LruTier(1000)
        self.brought: list[int] = []
        self.full = False
        self.store: StateStore[State | Brought] = StateStore(
            "f", [(CacheSource.GPU, self.gpu), (CacheSource.HOST, self.host)], bring=self.bring
        )

    def bring(self, state: State | Brought) -> State | Brought:
        assert isinstance(state, State)
        if self.full:
            raise Overloaded("no pages")
        self.brought.append(state.num_bytes)
        return Brought(state.num_bytes)

    def holds(self, tier: LruTier[State | Brought], stop: int, state: State | Brought) -> None:
        tier.put(Entry(self.store.key(history(EVENTS[:stop]), 0, stop), state))

    def acquire(self, length: int, fetched: Entry[State | Brought] | None = None) -> Found[State | Brought] | None:
        return self.store.acquire(history(EVENTS[:length]), 0, fetched)

    def entry(self, stop: int, number: int) -> Entry[State | Brought]:
        return Entry(self.store.key(history(EVENTS[:stop]), 0, stop), State(number))


def test_what_is_found_below_is_brought_up_once() -> None:
    device = Device()
    device.holds(device.host, 20, State(7))
    assert device.acquire(25) == Found(Brought(7), 20, CacheSource.HOST)
    assert device.acquire(25) == Found(Brought(7), 20, CacheSource.GPU)
    assert device.acquire(25, device.entry(23, 9)) == Found(Brought(9), 23, CacheSource.REDIS)
    assert device.acquire(25) == Found(Brought(9), 23, CacheSource.GPU)
    assert device.brought == [7, 9]
    assert device.host.get(user_hash("ann"), 0) == device.entry(
        23, 9
    )  # what was fetched is host memory: it is kept there


@pytest.mark.parametrize("fetched", [None, 12])
def test_nothing_is_brought_in_vain(fetched: int | None) -> None:
    device = Device()
    device.holds(device.host, 14, State(7))
    device.holds(device.gpu, 14, Brought(1))
    found = device.acquire(25, None if fetched is None else device.entry(fetched, 9))
    assert found == Found(Brought(1), 14, CacheSource.GPU)
    device.holds(device.gpu, 26, Brought(2))  # of a longer history, so no ancestor
    assert device.acquire(25) == Found(Brought(7), 14, CacheSource.HOST)
    assert device.brought == [7]


def test_without_room_to_bring_the_next_best_counts_and_else_it_is_a_miss() -> None:
    device = Device()
    device.full = True
    device.holds(device.host, 20, State(7))
    assert device.acquire(25) is None
    device.holds(device.gpu, 10, Brought(1))
    assert device.acquire(25, device.entry(23, 9)) == Found(Brought(1), 10, CacheSource.GPU)
    assert device.host.peek(user_hash("ann"), 0) is not None
    device.full = False
    assert device.acquire(25) == Found(Brought(7), 20, CacheSource.HOST)


def test_a_state_that_is_dropped_between_the_look_and_the_grasp_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    device.holds(device.host, 20, State(7))
    device.holds(device.gpu, 10, Brought(1))
    monkeypatch.setattr(LruTier, "get", lambda tier, *at: None if tier is device.host else device.gpu._entries[at])
    assert device.acquire(25) == Found(Brought(1), 10, CacheSource.GPU)
    other = Entry(StateKey("f", user_hash("ann"), 0, 20, b"edited"), State(8))
    monkeypatch.setattr(LruTier, "get", lambda tier, *at: other if tier is device.host else None)
    assert device.acquire(25) is None
    assert not device.brought


def test_room_is_made_of_what_nobody_else_holds() -> None:
    device = Device()
    for user_id in ("ann", "bob", "eve"):
        device.store.put(history(EVENTS[:20], user_id), 0, Brought(1))
    assert device.gpu.make_room(lambda user, start: (user, start) == (user_hash("ann"), 0))
    assert device.gpu.peek(user_hash("ann"), 0) is not None and device.gpu.peek(user_hash("bob"), 0) is None
    assert not device.gpu.make_room(lambda user, start: True)


def test_what_a_device_evicts_is_not_passed_on_as_it_is() -> None:
    device = Device(device_budget=10)
    for user_id in ("ann", "bob"):
        device.store.put(history(EVENTS[:20], user_id), 0, Brought(1))
    assert len(device.gpu) == 1 and len(device.host) == 0
    assert device.store.holds(user_hash("bob")) and not device.store.holds(user_hash("ann"))


def test_a_window_that_the_history_may_move_to_is_kept_beside_its_own_and_told_to_nobody_elsewhere() -> None:
    kept: list[int] = []
    demoted: list[int] = []
    tier: LruTier[State] = LruTier(1000)
    store: StateStore[State] = StateStore(
        "f",
        [(CacheSource.HOST, tier)],
        on_keep=lambda history, start, state: kept.append(start),
        demote=lambda history, start, state: demoted.append(start),
    )
    store.put(history(EVENTS[:20]), 0, State(1))
    store.put(history(EVENTS[:20]), 8, State(2), own_start=0)
    for start, number in ((0, 1), (8, 2)):
        assert store.acquire(history(EVENTS[:21]), start) == Found(State(number), 20, CacheSource.HOST)
        assert store.peek(history(EVENTS[:21]), start) == 20 - start
    assert (kept, demoted) == ([0], [0, 8])
    store.put(history(EVENTS[:25]), 16, State(3), own_start=8)  # the history's own window has moved
    assert store.peek(history(EVENTS[:25]), 0) == 0 and store.peek(history(EVENTS[:25]), 8) == 12
    store.put(history(EVENTS[:25]), 8, State(4))
    assert (kept, demoted, len(tier), store.num_bytes) == ([0, 8], [0, 8, 16, 8], 2, 7)
    store.delete(user_hash("ann"))
    assert not store.holds(user_hash("ann")) and store.num_bytes == 0
