"""Where events go that come late: streams are not ordered, and two producers of one user's events know nothing of each
other. An event is late if one that came before it, in the history or in the same append, is newer.
"""

from dataclasses import dataclass

import numpy as np

from mfalcon.errors import InvalidInput
from mfalcon.history.history import History, check_order
from mfalcon.types import Events, Positions


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of events. after: the history with them, untrimmed. clamped, inserted, discarded: positions among
    the events, see `Appended`. stored: the events that are in the history now, as they are there.
    """

    after: History
    clamped: Positions
    inserted: Positions
    discarded: Positions
    stored: Events


def placed(history: History, events: Events, late_events: str) -> Placed:
    """Add events to a history by one of `LATE_EVENTS`; "" is reject.

    reject: raises InvalidInput for a late event. clamp: it takes the time of the newest that came before it, and comes
    last. insert: it goes behind all events that are as old or older, so the history is what a stable sort by time of
    all events as they came would give; an event that is older than all of a trimmed log is discarded.
    """
    times = events["time_ms"]
    if late_events in ("", "reject"):
        check_order(history, events, "events")
        check_sorted(events, "events")
        return Placed(history.extended(events), _NONE, _NONE, _NONE, events)
    last = history.events["time_ms"][-1:]
    newest = np.maximum.accumulate(np.concatenate([last, times]))[len(last) :]
    is_late = times < newest
    if late_events == "clamp":
        clamped = events.copy()
        clamped["time_ms"] = newest
        return Placed(history.extended(clamped), _positions(is_late), _NONE, _NONE, clamped)
    assert late_events == "insert"
    is_kept = np.ones(len(events), dtype=np.bool_)
    if history.base:
        is_kept = times >= history.events["time_ms"][0]
    stored = events[is_kept]
    stored = stored[np.argsort(stored["time_ms"], kind="stable")]
    return Placed(history.merged(stored), _NONE, _positions(is_late & is_kept), _positions(~is_kept), stored)


def check_sorted(events: Events, field: str) -> None:
    """Raise InvalidInput if an event is older than the one before it."""
    times = events["time_ms"]
    if len(bad := np.flatnonzero(times[1:] < times[:-1])):
        at = int(bad[0]) + 1
        raise InvalidInput(
            f"{field}[{at}].time_ms", int(times[at]), f"at least {times[at - 1]}, the time of the event before it"
        )


def _positions(chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Positions:
    return np.flatnonzero(chosen).astype(np.uint32)


_NONE: Positions = np.empty(0, dtype=np.uint32)
