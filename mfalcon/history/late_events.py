"""Where events go that come late: streams are not ordered, and two producers of one user's events know nothing of each
other. An event is late if one that came before it, in the history or in the same append, is newer.
"""

from dataclasses import dataclass

import numpy as np

from mfalcon.errors import InvalidInput
from mfalcon.history.history import History, check_order
from mfalcon.types import Events, first_late


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of events. after: the history with them, untrimmed. clamped, inserted, discarded: positions among
    the events, see `Appended`. stored: the events that are in the history now, as they are there.
    """

    after: History
    clamped: tuple[int, ...]
    inserted: tuple[int, ...]
    discarded: tuple[int, ...]
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
        if (at := first_late(events)) is not None:
            before = f"at least {times[at - 1]}, the time of the event before it"
            raise InvalidInput(f"events[{at}].time_ms", int(times[at]), before)
        return Placed(history.extended(events), (), (), (), events)
    last = history.events["time_ms"][-1:]
    newest = np.maximum.accumulate(np.concatenate([last, times]))[len(last) :]
    is_late = times < newest
    if late_events == "clamp":
        clamped = events.copy()
        clamped["time_ms"] = newest
        return Placed(history.extended(clamped), _positions(is_late), (), (), clamped)
    assert late_events == "insert"
    is_kept = np.ones(len(events), dtype=np.bool_)
    if history.base:
        is_kept = times >= history.events["time_ms"][0]
    stored = events[is_kept]
    stored = stored[np.argsort(stored["time_ms"], kind="stable")]
    return Placed(history.merged(stored), (), _positions(is_late & is_kept), _positions(~is_kept), stored)


def recent_behind(history: History, events: Events, late_events: str) -> Events:
    """A request's recent events as they are behind a history: with reject none may be late, else those that are older
    than the newest of it take its time, for this request alone. Raises InvalidInput.
    """
    if late_events in ("", "reject"):
        check_order(history, events, "recent_events")
        return events
    newest = history.events["time_ms"][-1:]
    if not len(events) or not len(newest) or events["time_ms"][0] >= newest[0]:
        return events
    behind = events.copy()
    behind["time_ms"] = np.maximum(behind["time_ms"], newest[0])
    return behind


def _positions(chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(chosen).tolist())
