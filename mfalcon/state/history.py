"""The event log, truth of the whole system: every user's acknowledged events, in order. In-process.

Lives on the event loop: each call is atomic because nothing in it awaits. Snapshots are views that stay as they are
while the log grows.
"""

from dataclasses import dataclass

import numpy as np

from mfalcon.errors import InvalidInput, LengthMismatch
from mfalcon.state.key import LINK_BYTES, chain, first_link
from mfalcon.types import EVENT_DTYPE, Events, no_events


@dataclass(frozen=True, slots=True)
class History:
    """A user's events at one moment, with the chained hash at every length.

    events: [n]. links: (n + 1) * LINK_BYTES bytes.
    """

    user_id: str
    events: Events
    links: memoryview

    def __len__(self) -> int:
        return len(self.events)

    def link(self, length: int) -> bytes:
        """Chained hash of the first `length` events."""
        return bytes(self.links[length * LINK_BYTES : (length + 1) * LINK_BYTES])


def check_order(history: Events, events: Events, field: str) -> None:
    """Raise InvalidInput if the first new event is older than the last one of the history."""
    if len(history) and len(events) and events["time_ms"][0] < history["time_ms"][-1]:
        last = int(history["time_ms"][-1])
        raise InvalidInput(
            f"{field}[0].time_ms", int(events["time_ms"][0]), f"at least {last}, the time of the last stored event"
        )


class _UserLog:
    """Arrays that double when full. A snapshot of the old array stays valid: nothing before `size` is ever
    rewritten.
    """

    __slots__ = ("events", "links", "size")

    def __init__(self, user_id: str) -> None:
        self.size = 0
        self.events = np.empty(16, dtype=EVENT_DTYPE)
        self.links = np.empty(17 * LINK_BYTES, dtype=np.uint8)
        self.links[:LINK_BYTES] = np.frombuffer(first_link(user_id), dtype=np.uint8)

    def append(self, events: Events) -> None:
        before, after = self.size, self.size + len(events)
        if after > len(self.events):
            capacity = max(after, 2 * len(self.events))
            self.events = np.concatenate([self.events[:before], np.empty(capacity - before, dtype=EVENT_DTYPE)])
            links = np.empty((capacity + 1) * LINK_BYTES, dtype=np.uint8)
            links[: (before + 1) * LINK_BYTES] = self.links[: (before + 1) * LINK_BYTES]
            self.links = links
        last = self.links[before * LINK_BYTES : (before + 1) * LINK_BYTES].tobytes()
        new = np.frombuffer(chain(last, events), dtype=np.uint8)
        self.links[(before + 1) * LINK_BYTES : (after + 1) * LINK_BYTES] = new
        self.events[before:after] = events
        self.size = after


class HistoryLog:
    """All users' histories in memory."""

    def __init__(self) -> None:
        self._users: dict[str, _UserLog] = {}

    def snapshot(self, user_id: str) -> History:
        """The user's history now; empty for a user that is not known."""
        log = self._users.get(user_id)
        if log is None:
            return History(user_id, no_events(), memoryview(first_link(user_id)))
        links = log.links[: (log.size + 1) * LINK_BYTES]
        return History(user_id, log.events[: log.size], links.data)

    def append(self, user_id: str, events: Events, expected_len: int | None = None) -> int:
        """Append all events or none; returns the new length.

        Raises LengthMismatch if `expected_len` is given and is not the present length, InvalidInput if an event is
        older than the log.
        """
        log = self._users.get(user_id) or _UserLog(user_id)
        if expected_len is not None and expected_len != log.size:
            raise LengthMismatch(expected_len, log.size)
        check_order(log.events[: log.size], events, "events")
        log.append(events)
        self._users[user_id] = log
        return log.size

    def delete(self, user_id: str) -> None:
        """Forget the user's events."""
        self._users.pop(user_id, None)

    def __len__(self) -> int:
        return len(self._users)
