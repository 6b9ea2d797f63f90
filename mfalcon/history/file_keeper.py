"""What goes on beside the requests of an event log in a file: its bounds, its journal, and a check of what it holds."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from mfalcon.clock import seconds_now
from mfalcon.history.append_ids import TTL_S
from mfalcon.history.budget import LogBudget
from mfalcon.history.file_changes import Expire, is_damage
from mfalcon.history.file_upkeep import FileUpkeep
from mfalcon.history.file_writer import FileWriter, Waiting
from mfalcon.metrics.logs import LogMetrics
from mfalcon.pseudonym import user_tag

_log = logging.getLogger(__name__)

T = TypeVar("T")

ERASE_S = 5.0
"""After a deletion, until the pages that held its events are overwritten in the file and gone from the journal, unless
somebody reads them.
"""
PERIOD_S = 0.5
_MOST_EVICTED = 2_000
_MOST_EXPIRED = 5_000
_CHECK_DUTY = 0.05
"""Part of one thread's time that the check may take."""
_NAMED = 10
"""Damaged users that the log names."""


class FileKeeper:
    """Owns what reads and moves pages beside the writer. Lives on the event loop, works in threads beside it.

    evict: deletes the log of a user who was not asked for since a time, for a reason, and says whether it did.
    quarantine_s: after which damaged logs that were moved away are deleted.
    """

    def __init__(
        self,
        directory: Path,
        budget: LogBudget,
        writer: FileWriter,
        metrics: LogMetrics,
        evict: Callable[[bytes, int, str], Awaitable[bool]],
        quarantine_s: float,
    ) -> None:
        self._upkeep = FileUpkeep(directory)
        self._checking = FileUpkeep(directory)
        self._budget = budget
        self._writer = writer
        self._metrics = metrics
        self._evict = evict
        self._quarantine_s = quarantine_s
        self._erase_at = float("inf")
        self._synced = 0
        self._users = writer.totals.users
        """As of the last look, without those that it deleted."""
        self._tasks: list[asyncio.Task[None]] = []
        metrics.budget_bytes.set(budget.max_bytes)
        self._look = self._upkeep.look(move=False, sync=False, used_before=0, most=0)
        self._gauge()

    @property
    def file_bytes(self) -> int:
        """Of the file's pages, as of the last look."""
        return self._look.file_bytes

    def start(self) -> None:
        """On the event loop."""
        self._tasks = [asyncio.create_task(self._keep_up()), asyncio.create_task(self._check())]

    def erase_soon(self) -> None:
        """Events were deleted: leave no trace of them."""
        self._erase_at = min(self._erase_at, time.monotonic() + ERASE_S)

    async def close(self) -> None:
        """End what goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._upkeep.close()
        self._checking.close()

    async def _keep_up(self) -> None:
        said_at = float("-inf")
        while True:
            try:
                await self._look_once()
            except sqlite3.Error as error:
                if time.monotonic() - said_at > 10:
                    said_at = time.monotonic()
                    _log.error("the upkeep of the event log failed, and is tried again: %s", error)
            await asyncio.sleep(PERIOD_S)

    async def _look_once(self) -> None:
        now = seconds_now()
        erase = time.monotonic() >= self._erase_at
        if erase:
            self._erase_at = float("inf")
        used_before, most, reason = self._who_must_go(now)
        synced, self._synced = self._synced, self._writer.num_commits
        try:
            self._look = await _shielded(
                lambda: self._upkeep.look(move=erase, sync=synced != self._synced, used_before=used_before, most=most)
            )
        except sqlite3.Error:
            if erase:
                self.erase_soon()
            raise
        self._gauge()
        if self._look.may_truncate:
            self._writer.truncate()
        evicted = await asyncio.gather(*(self._evict(user, used_before, reason) for user, _ in self._look.idle))
        self._users -= sum(evicted)
        expire = Expire(now - TTL_S, _MOST_EXPIRED, int(now - self._quarantine_s))
        self._writer.submit(Waiting(expire, lambda outcome: None))

    def _who_must_go(self, now: int) -> tuple[int, int, str]:
        """Users who were not asked for since a time, how many of them at most, and why."""
        budget, num_bytes, users = self._budget, self._look.file_bytes, self._writer.totals.users
        came, self._users = max(0, users - self._users), users
        if bound := budget.over(num_bytes, users):
            # Pages empty one by one, so the file is a while behind what is deleted: no more than a part at a time, and
            # as many as came since the last look, so that it does not grow.
            surplus = users - budget.max_users if bound == "users" else max(1, users // 200) + came
            return now + 1, min(surplus, _MOST_EVICTED), bound
        if budget.max_idle_s:
            return int(now - budget.max_idle_s), _MOST_EVICTED, "idle"
        return 0, 0, ""

    def _gauge(self) -> None:
        totals, look = self._writer.totals, self._look
        self._metrics.users.set(totals.users)
        self._metrics.events.set(totals.events)
        self._metrics.bytes.set(look.file_bytes)
        self._metrics.journal_bytes.set(look.journal_bytes)
        self._metrics.oldest.set(0 if look.oldest is None else max(0, seconds_now() - look.oldest))

    async def _check(self) -> None:
        """Read every log once, slowly; what is damaged is named, and refused when it is asked for."""
        checked, damaged = 0, 0
        while True:
            began = time.monotonic()
            try:
                num, broken = await _shielded(self._checking.verify)
            except sqlite3.Error as error:
                _log.error("the check of the event log ended after %d users: %s", checked, error)
                if is_damage(error):  # of how many users, nobody can tell
                    self._metrics.damaged_users.set(damaged + 1)
                return
            checked += num
            damaged += len(broken)
            for user_id in broken[: max(0, _NAMED - damaged + len(broken))]:
                _log.error("the event log of user %s is damaged: `mfalcon log verify` names him", user_tag(user_id))
            self._metrics.damaged_users.set(damaged)
            self._metrics.verified.set(min(1.0, checked / max(1, self._writer.totals.users)) if num else 1.0)
            if not num:
                _log.info("event log: %d users checked, %d damaged", checked, damaged)
                return
            await asyncio.sleep((time.monotonic() - began) * (1 / _CHECK_DUTY - 1))


async def _shielded(work: Callable[[], T]) -> T:
    """Work in a thread; whoever is cancelled waits for its end all the same, for what it uses is closed next."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        if not running.cancelled():
            running.exception()  # of work that nobody waits for any more
        raise
