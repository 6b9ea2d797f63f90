"""The ancestor rule: a state is found for exactly the histories that begin with what it was made from."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.state.graves import Graves
from mfalcon.state.history import History, no_history
from mfalcon.state.host import Entry, HostTier
from mfalcon.state.key import user_hash
from mfalcon.state.store import Found, StateStore
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
    return StateStore(fingerprint, [(s, HostTier(b)) for s, b in zip(sources, budgets or (1000,), strict=True)])


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
    store.forget(user_hash("bob"))
    assert store.acquire(history(EVENTS[:25]), 8) == Found(State(20), 25, CacheSource.HOST)
    store.forget(user_hash("ann"))
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
    store.forget(user_hash("ann"))
    assert store.acquire(history(EVENTS[:20], "ann"), 8) is None
    store.clear()
    assert store.num_bytes == 0


def test_nothing_of_an_ended_life_is_kept_or_passed_on() -> None:
    graves, kept = Graves(), []
    store: StateStore[State] = StateStore(
        "f", [(CacheSource.HOST, HostTier(1000))], graves, lambda history, start, state: kept.append(state)
    )
    store.put(history(EVENTS[:20]), 8, State())
    assert len(kept) == 1
    graves.add(LIFE)
    store.forget(user_hash("ann"))
    store.put(history(EVENTS[:25]), 8, State())
    assert store.acquire(history(EVENTS[:25]), 8, fetched(24)) is not None  # right, if nobody's any more
    assert store.num_bytes == 0 and len(kept) == 1


def test_graves_forget_the_oldest() -> None:
    graves = Graves(limit=2)
    for life in (b"", b"1", b"2", b"3"):
        graves.add(life)
    assert [life in graves for life in (b"", b"1", b"2", b"3")] == [False, False, True, True]
