"""Events that were acknowledged and are gone: a failover, or a Redis that came back with an older file, lost them."""

from collections import Counter

import numpy as np
from cachetools import LRUCache
from prometheus_client import Counter as Counted

from mfalcon.history.history import History
from mfalcon.types import Events


def lost_events(known: History, now: History) -> int:
    """How many events of a history that was known are not in the history as it is now, of the same generation.

    Events that may have been trimmed count as kept.
    """
    if known.generation != now.generation or not known.generation:
        return 0
    if now.base <= len(known) <= len(now) and now.link(len(known)) == known.version:
        return 0
    before = known.events
    if now.base and len(now.events):
        before = before[before["time_ms"] > now.events["time_ms"][0]]
    return sum((_each(before) - _each(now.events)).values())


def _each(events: Events) -> Counter[bytes]:
    raw = np.ascontiguousarray(events).tobytes()
    size = events.dtype.itemsize
    return Counter(raw[at : at + size] for at in range(0, len(raw), size))


class Losses:
    """What was lost of each user and not told to a writer yet. Lives on the event loop. counter: counts the logs."""

    def __init__(self, counter: Counted, max_users: int = 10_000) -> None:
        self._counter = counter
        self._lost: LRUCache[bytes, int] = LRUCache(max_users)

    def notice(self, known: History, now: History) -> None:
        """Compare the copy that was verified with the log as it is."""
        if lost := lost_events(known, now):
            self._counter.inc()
            self._lost[now.user] = self._lost.get(now.user, 0) + lost

    def tell(self, user: bytes) -> int:
        """How many, once."""
        return self._lost.pop(user, 0)
