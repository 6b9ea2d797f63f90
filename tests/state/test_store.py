"""The ancestor rule: a state is found for exactly the histories that begin with what it was made from."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.state.history import History, HistoryLog
from mfalcon.state.store import Found, StateStore
from mfalcon.types import CacheSource, Events
from tests.small import random_events


@dataclass(frozen=True, slots=True)
class State:
    """Stands for a KV state."""

    num_bytes: int = 10


def history(events: Events, user_id: str = "ann") -> History:
    log = HistoryLog()
    if len(events):
        log.append(user_id, events)
    return log.snapshot(user_id)


EVENTS = random_events(30)


@pytest.fixture
def store() -> StateStore[State]:
    """Holds the state of ann's events [8, 20)."""
    store: StateStore[State] = StateStore("f", 1000)
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
    other: StateStore[State] = StateStore("g", 1000)
    other._host = store._host  # as two models over one tier would share it
    assert other.acquire(history(EVENTS[:20]), 8) is None


def test_an_event_after_the_state_may_differ(store: StateStore[State]) -> None:
    later = EVENTS.copy()
    later["item_id"][20] += 1
    assert store.acquire(history(later), 8) is not None


def test_put_replaces_and_forget_erases(store: StateStore[State]) -> None:
    store.put(history(EVENTS[:25]), 8, State(20))
    assert store.num_bytes == 20
    assert store.acquire(history(EVENTS[:20]), 8) is None
    store.forget("bob")
    assert store.acquire(history(EVENTS[:25]), 8) == Found(State(20), 25, CacheSource.HOST)
    store.forget("ann")
    assert store.num_bytes == 0
    assert store.acquire(history(EVENTS[:25]), 8) is None


@given(st.integers(1, 30), st.integers(0, 30), st.one_of(st.none(), st.integers(0, 29)))
def test_found_exactly_when_it_is_an_ancestor(made_from: int, length: int, edited: int | None) -> None:
    store: StateStore[State] = StateStore("f", 1000)
    store.put(history(EVENTS[:made_from]), 0, State())
    events = EVENTS.copy()
    if edited is not None:
        events["item_id"][edited] += 1
    seen = events[:length]
    is_ancestor = made_from <= length and np.array_equal(seen[:made_from], EVENTS[:made_from])
    assert (store.acquire(history(seen), 0) is not None) == is_ancestor
