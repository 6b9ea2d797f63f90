"""The event log in this process's memory: every user's acknowledged events, within bounds.

Lives on the event loop: each call is atomic because nothing in it awaits. Histories in use are objects; those that were
not asked for lately are packed.
"""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from mfalcon.history.append_ids import RecentAppends
from mfalcon.history.appending import appended
from mfalcon.history.budget import LogBudget
from mfalcon.history.chain import user_hash
from mfalcon.history.deletions import Deletion
from mfalcon.history.history import History, Reading, Retention, no_history
from mfalcon.history.idle import IdleHistories
from mfalcon.metrics.logs import LogMetrics
from mfalcon.types import Append, Appended

IN_USE_BYTES = 64 << 20
_PERIOD_S = 0.5
_MOST_SWEPT = 1_000
"""In one turn of the event loop."""


class LocalLog:
    """All users' histories.

    on_evicted: told of users whose history was deleted to keep the bounds. in_use_bytes: of histories that stay
    objects, the last used ones. clock: seconds.
    """

    def __init__(
        self,
        retention: Retention,
        budget: LogBudget | None = None,
        metrics: LogMetrics | None = None,
        on_evicted: Callable[[Deletion], None] = lambda _: None,
        *,
        in_use_bytes: int = IN_USE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._retention = retention
        self._budget = budget or LogBudget()
        self._metrics = metrics or LogMetrics()
        self._on_evicted = on_evicted
        self._in_use: OrderedDict[str, tuple[History, float]] = OrderedDict()
        self._in_use_bytes = 0
        self._most_in_use = in_use_bytes
        self._idle = IdleHistories()
        self._recent = RecentAppends(clock=clock)
        self._num_events = 0
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._metrics.budget_bytes.set(self._budget.max_bytes)

    @property
    def num_bytes(self) -> int:
        """Of memory that the histories take."""
        return self._in_use_bytes + self._idle.num_bytes

    def __len__(self) -> int:
        return len(self._in_use) + len(self._idle)

    def start(self) -> None:
        """Begin to look for users who were not asked for lately. On the event loop."""
        self._task = asyncio.create_task(self._keep_up())

    async def close(self) -> None:
        """End that."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def read(self, user_id: str, timeout_s: float) -> Reading:
        """The user's history now; empty for a user that is not known."""
        return Reading(self._get(user_id) or no_history(user_id), stale=False)

    async def append(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """Append all events or none; one whose id has been appended before is told again. Raises HistoryMismatch if the
        history is not the expected one, InvalidInput if an event is older than the log, Overloaded if there is no room
        for a new user.
        """
        if (told_before := self._recent.find(user_id, append)) is not None:
            return told_before
        before = self._get(user_id) or no_history(user_id)
        after, told = appended(before, append)
        if not after.generation:
            self._check_room()
            after = replace(after, generation=os.urandom(8))
        after = self._retention.keep(after)
        self._num_events += len(after.events) - len(before.events)
        self._put(after)
        self._recent.add(user_id, append, told)
        while bound := self._budget.over(self.num_bytes, len(self)):
            oldest = self._oldest()
            if oldest is None or oldest[0] == user_id:  # its own log is larger than the bound
                break
            self._evict(oldest[0], bound)
        return told

    async def delete(self, user_id: str, deadline: float | None) -> bytes:
        """Delete the user's events; returns the generation that ended, empty if there was none."""
        return self._drop(user_id)

    def histories(self) -> AsyncIterator[History] | None:
        """All of them, None if there are none; those that come or go meanwhile may be missing. Nobody counts as asked
        for by that.
        """
        return self._histories() if len(self) else None

    def sweep(self) -> None:
        """Delete users who were not asked for as long as the bounds say, some thousand at most."""
        longest = self._budget.max_idle_s
        for _ in range(_MOST_SWEPT if longest else 0):
            oldest = self._oldest()
            if oldest is None or self._clock() - oldest[1] < longest:
                return
            self._evict(oldest[0], "idle")

    def gauge(self) -> None:
        """Tell the metrics what there is."""
        oldest = self._oldest()
        self._metrics.users.set(len(self))
        self._metrics.events.set(self._num_events)
        self._metrics.bytes.set(self.num_bytes)
        self._metrics.oldest.set(0 if oldest is None else self._clock() - oldest[1])

    async def _histories(self) -> AsyncIterator[History]:
        for user_id in (*self._in_use, *self._idle):
            found = self._in_use.get(user_id)
            history = self._idle.peek(user_id) if found is None else found[0]
            if history is not None:
                yield history

    def _get(self, user_id: str) -> History | None:
        """A history, which is in use from now on."""
        found = self._in_use.get(user_id)
        history = self._idle.take(user_id) if found is None else found[0]
        if history is not None:
            self._put(history)
        return history

    def _put(self, history: History) -> None:
        """Use a history in the place of the one that its user had."""
        last = self._in_use.pop(history.user_id, None)
        if last is not None:
            self._in_use_bytes -= _size(last[0])
        self._in_use[history.user_id] = (history, self._clock())
        self._in_use_bytes += _size(history)
        while self._in_use_bytes > self._most_in_use:
            _, (oldest, used) = self._in_use.popitem(last=False)
            self._in_use_bytes -= _size(oldest)
            self._idle.put(oldest, used)

    def _drop(self, user_id: str) -> bytes:
        self._recent.delete(user_id)
        found = self._in_use.pop(user_id, None)
        if found is not None:
            self._in_use_bytes -= _size(found[0])
        history = self._idle.take(user_id) if found is None else found[0]
        if history is None:
            return b""
        self._num_events -= len(history.events)
        return history.generation

    def _oldest(self) -> tuple[str, float] | None:
        """Who was not asked for longest, and when that was."""
        idle = self._idle.oldest()
        if idle is not None:
            return idle
        user_id = next(iter(self._in_use), None)
        return None if user_id is None else (user_id, self._in_use[user_id][1])

    def _evict(self, user_id: str, reason: str) -> None:
        self._metrics.evicted.labels(reason).inc()
        self._on_evicted(Deletion(user_hash(user_id), self._drop(user_id)))

    def _check_room(self) -> None:
        """Raise Overloaded if there is no room for a new user."""
        if self._budget.when_full == "refuse" and (bound := self._budget.full(self.num_bytes, len(self))):
            self._metrics.refused.labels(bound).inc()
            raise self._budget.refusal(bound, self.num_bytes, len(self))

    async def _keep_up(self) -> None:
        while True:
            self.sweep()
            self.gauge()
            await asyncio.sleep(_PERIOD_S)


def _size(history: History) -> int:
    return history.num_bytes + len(history.user_id)
