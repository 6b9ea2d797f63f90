"""Late events against a sort: inserting them gives the history that sorting everything by time would have given."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.errors import InvalidInput
from mfalcon.history.history import History, no_history
from mfalcon.history.late_events import placed, recent_behind
from mfalcon.types import EVENT_DTYPE, Events

TIMES = st.lists(st.integers(1, 60), max_size=120)
CUTS = st.lists(st.integers(0, 120), max_size=5)


def events_at(times: list[int], first_item: int = 0) -> Events:
    """Events at these times, numbered in the order in which they come."""
    made = np.zeros(len(times), dtype=EVENT_DTYPE)
    made["time_ms"], made["item_id"] = times, np.arange(first_item, first_item + len(times))
    return made


def assert_same(history: History, events: Events, base: int = 0) -> None:
    """The history is these events, hashes included, as if it had grown by one append."""
    expected = no_history("ann", b"life").extended(events)
    assert history.since(history.base).tobytes() == events[base:].tobytes()
    assert (history.base, len(history)) == (base, len(events))
    assert all(history.link(length) == expected.link(length) for length in range(base, len(events) + 1))


@given(TIMES, CUTS)
def test_inserting_gives_what_a_stable_sort_gives(times: list[int], cuts: list[int]) -> None:
    events, history = events_at(times), no_history("ann", b"life")
    bounds = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    inserted: list[int] = []
    for first, stop in pairwise(bounds):
        told = placed(history, events[first:stop], "insert")
        assert len(told.clamped) == len(told.discarded) == 0
        assert len(told.after) == len(history) + stop - first
        history = told.after
        inserted += [first + at for at in told.inserted]
    assert_same(history, events[np.argsort(events["time_ms"], kind="stable")])
    assert inserted == [at for at in range(len(times)) if times[at] < max(times[:at], default=0)]


@given(TIMES, TIMES)
def test_a_trimmed_log_discards_what_is_older_than_all_of_it(kept: list[int], late: list[int]) -> None:
    known = events_at(sorted([*kept, *range(1, 81)]))
    history = no_history("ann", b"life").extended(known).trimmed(64)
    late_events = events_at(late, len(known))
    told = placed(history, late_events, "insert")
    is_kept = late_events["time_ms"] >= known["time_ms"][64]
    assert list(told.discarded) == np.flatnonzero(~is_kept).tolist()
    assert not set(told.inserted) & set(told.discarded)
    tail = np.concatenate([known[64:], late_events[is_kept]])
    tail = tail[np.argsort(tail["time_ms"], kind="stable")]
    assert_same(told.after, np.concatenate([known[:64], tail]), 64)
    assert sorted(told.stored.tolist()) == sorted(late_events[is_kept].tolist())


@given(TIMES, TIMES)
def test_clamping_gives_the_time_of_the_newest_before(known: list[int], late: list[int]) -> None:
    history, events = no_history("ann", b"life").extended(events_at(sorted(known))), events_at(late, len(known))
    told = placed(history, events, "clamp")
    newest, expected = max(known, default=0), events.copy()
    for at, time in enumerate(late):
        newest = expected["time_ms"][at] = max(newest, time)
    assert_same(told.after, np.concatenate([history.events, expected]))
    assert list(told.clamped) == np.flatnonzero(expected["time_ms"] != events["time_ms"]).tolist()
    assert len(told.inserted) == len(told.discarded) == 0
    assert told.stored.tobytes() == expected.tobytes()
    assert events["time_ms"].tolist() == late  # the caller's array is the caller's


@pytest.mark.parametrize("policy", ["reject", ""])
def test_rejecting_names_the_first_late_event(policy: str) -> None:
    history = no_history("ann", b"life").extended(events_at([5, 9]))
    with pytest.raises(InvalidInput, match=r"events\[0\]\.time_ms: got 8, must be at least 9"):
        placed(history, events_at([8, 10]), policy)
    with pytest.raises(InvalidInput, match=r"events\[2\]\.time_ms: got 9, must be at least 11"):
        placed(history, events_at([10, 11, 9]), policy)
    assert len(placed(history, events_at([9, 10]), policy).after) == 4


@given(TIMES, st.integers(0, 140), st.integers(0, 4))
def test_what_two_histories_share_is_the_same_in_both(times: list[int], edited: int, blocks: int) -> None:
    events = events_at(sorted(times))
    history = no_history("ann", b"life").extended(events)
    base = min(blocks * 32, len(events) // 32 * 32)
    other_events = np.concatenate([events[:edited], events_at([60], 999), events[edited:]])
    other = no_history("ann", b"life").extended(other_events).trimmed(base)
    shared = history.shared(other)
    same = min(edited, len(events))
    assert shared == other.shared(history)
    assert history.shared(history) == len(history)
    if base > same:
        assert shared == 0
    else:
        assert same - 32 < shared <= same and (shared % 32 == 0 or shared == same)


@given(TIMES, TIMES)
def test_recent_events_come_behind_the_history(known: list[int], recent: list[int]) -> None:
    history = no_history("ann", b"life").extended(events_at(sorted(known)))
    recent_events = events_at(sorted(recent))
    newest = max(known, default=0)
    for policy in ("clamp", "insert"):
        behind = recent_behind(history, recent_events, policy)
        assert behind["time_ms"].tolist() == [max(time, newest) for time in sorted(recent)]
        assert behind["item_id"].tolist() == recent_events["item_id"].tolist()
    if recent and min(recent) < newest:
        with pytest.raises(InvalidInput, match=r"recent_events\[0\]\.time_ms"):
            recent_behind(history, recent_events, "reject")
    else:
        assert recent_behind(history, recent_events, "reject") is recent_events
    assert recent_events["time_ms"].tolist() == sorted(recent)
