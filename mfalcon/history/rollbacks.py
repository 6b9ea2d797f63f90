"""What a replica remembers of users' logs, so that events which Redis has lost since are noticed by who knew them.

A log's clock and length only grow while it lives, and a deletion leaves a tombstone with a later clock. So a log that
went back, or an empty place where one was, is a rollback: a failover to a replica of Redis that lagged, an old file
after a restart, or somebody who put back what was once rightly signed.
"""

import logging
import time
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache

from mfalcon.history.history import History
from mfalcon.history.redis_header import NO_HEADER
from mfalcon.history.redis_known import Known
from mfalcon.metrics.states import StateMetrics
from mfalcon.pseudonym import user_tag
from mfalcon.types import EVENT_DTYPE, Events

_log = logging.getLogger(__name__)

_USERS = 65_536


@dataclass(frozen=True, slots=True)
class _Seen:
    """The latest that was known of a log. acknowledged: how many of its events are, as far as this replica knows. at:
    when that was heard, in seconds of time.monotonic().
    """

    generation: bytes
    clock: int
    length: int
    acknowledged: int
    at: float


class Rollbacks:
    """What was seen of the users that were asked for last; some 200 bytes each. Lives on the event loop."""

    def __init__(self, metrics: StateMetrics, most_users: int = _USERS) -> None:
        self._metrics = metrics
        self._seen: LRUCache[bytes, _Seen] = LRUCache(most_users)
        self._lost: LRUCache[bytes, int] = LRUCache(most_users)

    def saw(self, known: Known, *, is_acknowledged: bool) -> None:
        """A log as it is, verified or written. is_acknowledged: with its last event; else that may come or not."""
        history, acknowledged = known.history, 0
        seen = self._seen.pop(history.user, None)
        if seen is not None and seen.generation == history.generation:
            acknowledged = min(seen.acknowledged, len(history))
        elif seen is not None and seen.length:  # begun where one had vanished
            self._note(history, seen, seen.length)
        if is_acknowledged:
            acknowledged = len(history)
        self._remember(known, acknowledged)

    def is_late(self, user: bytes, asked_at: float) -> bool:
        """Whether something was heard of a user after a question left (time.monotonic() seconds): its answer may then
        be older than what is known, which is no rollback. Answers overtake each other, on several connections.
        """
        seen = self._seen.get(user)
        return seen is not None and seen.at >= asked_at

    def compare(self, known: Known, copy: History | None) -> None:
        """Notice a log that lost what was known of it. copy: what is known of its events, if anything is."""
        now, header = known.history, known.header
        seen = self._seen.pop(now.user, None)
        if seen is None or header.ended == seen.generation or (header is NO_HEADER and not seen.length):
            return  # nothing was known of him, or he was deleted, or the tombstone has expired
        is_back = header.clock < seen.clock or header is NO_HEADER
        if header.generation != seen.generation:
            lost = seen.length if is_back else 0  # else it was deleted, and has begun anew
        elif copy is not None and copy.generation == now.generation:
            lost = num_lost(copy, now)
        else:
            lost = max(0, seen.length - len(now))
        if header.generation == seen.generation:
            self._remember(known, min(seen.acknowledged, len(now)))
        if is_back or lost:
            self._note(now, seen, lost)

    def _remember(self, known: Known, acknowledged: int) -> None:
        now = known.history
        self._seen[now.user] = _Seen(now.generation, known.header.clock, len(now), acknowledged, time.monotonic())

    def _note(self, now: History, seen: _Seen, lost: int) -> None:
        """What Redis loses is what was written last, so first what is not acknowledged."""
        self._metrics.log_rollbacks.inc()
        acknowledged = max(0, lost - (seen.length - seen.acknowledged))
        self._lost[now.user] = self._lost.get(now.user, 0) + acknowledged
        text = "the event log of user %s went back: of %d events %d are gone, of which %d were acknowledged"
        _log.warning(text, user_tag(now.user_id), seen.length, lost, acknowledged)

    def told(self, user: bytes) -> int:
        """How many of a user's events were acknowledged as far as this replica knows, and are no longer in his log.
        They are told once.
        """
        return self._lost.pop(user, 0)

    def forget(self, user: bytes) -> None:
        """A user who was deleted."""
        self._seen[user] = _Seen(b"", 0, 0, 0, time.monotonic())
        self._lost.pop(user, None)

    def forget_all(self) -> None:
        """Deletions that were missed may have been of anybody."""
        self._seen.clear()
        self._lost.clear()


def num_lost(known: History, now: History) -> int:
    """Events of one life that were known and are not there now, whatever came between them; those aside that a log no
    longer keeps.
    """
    first = max(known.base, now.base)
    before, after = known.since(min(first, len(known))), now.since(min(first, len(now)))
    same = min(len(before), len(after))
    differ = np.flatnonzero(_raw(before[:same]) != _raw(after[:same]))
    begin = int(differ[0]) if len(differ) else same
    before, after = before[begin:], now.events if now.base else after[begin:]
    if now.base and len(now.events):
        before = before[before["time_ms"] > now.events["time_ms"][0]]
    values, counts = np.unique(_raw(before), return_counts=True)
    there, counts_there = np.unique(_raw(after), return_counts=True)
    at = np.searchsorted(there, values)
    is_there = np.zeros(len(values), dtype=bool)
    inside = at < len(there)
    is_there[inside] = there[at[inside]] == values[inside]
    left = np.zeros(len(values), dtype=np.int64)
    left[is_there] = counts_there[at[is_there]]
    return int(np.maximum(counts - left, 0).sum())


def _raw(events: Events) -> np.ndarray:
    """Events as values that can be compared and sorted, of 24 bytes each."""
    return np.ascontiguousarray(events).view(np.dtype((np.bytes_, EVENT_DTYPE.itemsize)))
