"""Offload from the device's tier to the host's behind the requests' backs: bounded, droppable, counted, never awaited
by a request.

Keeps the newest state of a user's window while it waits. Of a state that grew since the host got it, only what is new
is copied. No torch: how a state is copied is given.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mfalcon.errors import Overloaded
from mfalcon.history.history import History
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import Tier, is_ancestor, state_key
from mfalcon.kvcache.tier import Entry, S

_log = logging.getLogger(__name__)

M = TypeVar("M")
"""A moment of the device thread's work, which a copy must wait for."""


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[S, M]):
    """The state of history[start:] as it is after the mark."""

    history: History
    start: int
    state: S
    mark: M


class Offload(Generic[S, M]):
    """Copies what it is offered when it can, one state after the other, in a thread of its own.

    host: the tier to copy to. mark: taken of the device thread at each offer. demote: (state, mark, older) -> the state
    in the host's memory; older is the host's state of a prefix of it, if it has one; raises Overloaded. max_waiting:
    states that may wait and so keep their memory on the device, besides the one that is being copied.
    """

    def __init__(
        self,
        fingerprint: str,
        host: Tier[S],
        mark: Callable[[], M],
        demote: Callable[[S, M, S | None], S],
        tombstones: Tombstones,
        *,
        max_waiting: int,
    ) -> None:
        self._fingerprint = fingerprint
        self._host = host
        self._mark = mark
        self._demote = demote
        self._tombstones = tombstones
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._waiting: OrderedDict[tuple[bytes, int], _Waiting[S, M]] = OrderedDict()
        self._copying: tuple[bytes, int] | None = None
        self._void = False
        self._closed = False
        self.num_demoted = 0
        self.num_dropped = 0
        """Offers that found no room here or in the host's memory, or whose copy failed."""
        self._thread = threading.Thread(target=self._run, name="mfalcon-demotion", daemon=True)
        self._thread.start()

    def offer(self, history: History, start: int, state: S) -> None:
        """Have the state of history[start:] copied some time soon, or never. On the device thread; returns at once."""
        waiting, place = _Waiting(history, start, state, self._mark()), (history.user, start)
        with self._changed:
            self._waiting.pop(place, None)
            if self._closed or history.generation in self._tombstones:
                return
            self._waiting[place] = waiting
            while len(self._waiting) > self._max_waiting:
                self._waiting.popitem(last=False)
                self.num_dropped += 1
            self._changed.notify_all()

    def delete(self, user: bytes) -> None:
        """Drop what waits for a user or is being copied: when this returns, nothing of it comes to the host any more.

        The host's tier itself is to be cleared after.
        """
        with self._changed:
            for place in [place for place in self._waiting if place[0] == user]:
                del self._waiting[place]
            if self._copying is not None and self._copying[0] == user:
                self._void = True

    def clear(self) -> None:
        """Drop what waits or is being copied, as `delete` does."""
        with self._changed:
            self._waiting.clear()
            self._void = True

    def holds(self, user: bytes, start: int) -> bool:
        """Whether a state of the user's window waits or is being copied; any thread may ask."""
        return (user, start) in self._waiting or self._copying == (user, start)

    def make_room(self) -> bool:
        """Drop what has waited longest, whose memory on the device is needed; False if nothing waits."""
        with self._changed:
            if not self._waiting:
                return False
            self._waiting.popitem(last=False)
            self.num_dropped += 1
            return True

    def idle(self) -> None:
        """Return when nothing waits or is being copied."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and self._copying is None)

    def close(self) -> None:
        """Drop what waits, finish what is being copied and end."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join()

    def __len__(self) -> int:
        """States that wait."""
        return len(self._waiting)

    def _run(self) -> None:
        while (waiting := self._next()) is not None:
            try:
                self._copy(waiting)
            except Overloaded:
                self.num_dropped += 1
            except Exception:  # noqa: BLE001 (the thread's edge: the next state is copied all the same)
                _log.exception("a state could not be copied to the host")
                self.num_dropped += 1
            del waiting  # the device's memory is free before anybody hears that this is idle
            with self._changed:
                self._copying = None
                self._changed.notify_all()

    def _next(self) -> _Waiting[S, M] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            place, waiting = self._waiting.popitem(last=False)
            self._copying, self._void = place, False
            return waiting

    def _copy(self, waiting: _Waiting[S, M]) -> None:
        history, start = waiting.history, waiting.start
        key = state_key(self._fingerprint, history, start, len(history))
        there = self._host.get(history.user, start)
        if history.generation in self._tombstones or (there is not None and there.key == key):
            return
        good = there is not None and is_ancestor(there.key, self._fingerprint, history, start)
        state = self._demote(waiting.state, waiting.mark, there.state if there is not None and good else None)
        with self._changed:
            if self._void or history.generation in self._tombstones:
                return
            self._host.put(Entry(key, state))
            if history.generation in self._tombstones:
                self._host.remove(history.user)  # buried just now: whoever did may have been here before us
                return
        self.num_demoted += 1
