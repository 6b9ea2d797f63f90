"""The event log in a file on this machine's disk, for one server: it survives the process, and the machine as asked.

The event loop decides what an append makes of a history, and the writer's thread makes it so, in the same order. An
append is planned on what the one before it will leave, so one user's appends need not wait for each other's commit; it
names the history that it was planned on, so if that one failed, this one changes nothing and is planned again. Reads
give what was committed: from verified copies of the histories in use, or from the file, in a thread.
"""

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from cachetools import LRUCache

from mfalcon.clock import seconds_now
from mfalcon.errors import (
    ConfigError,
    DamagedLog,
    DeadlineExceeded,
    HistoryMismatch,
    InvalidInput,
    Overloaded,
    StorageUnavailable,
)
from mfalcon.history.append_ids import Record, id_hash
from mfalcon.history.appending import appended
from mfalcon.history.budget import LogBudget
from mfalcon.history.deletions import Deletion
from mfalcon.history.directory_lock import DirectoryLock
from mfalcon.history.file_changes import (
    AppendId,
    Change,
    Delete,
    Done,
    FileGone,
    FindId,
    Put,
    Quarantine,
    Touch,
    is_damage,
    is_full,
    wrote_nothing,
)
from mfalcon.history.file_keeper import FileKeeper
from mfalcon.history.file_store import FileStore
from mfalcon.history.file_writer import FileWriter, Outcome, Waiting, Withdrawn
from mfalcon.history.history import History, Reading, Retention, no_history
from mfalcon.history.record import LogRecord
from mfalcon.metrics.logs import LogMetrics
from mfalcon.metrics.states import StateMetrics
from mfalcon.types import Append, Appended

T = TypeVar("T")
FileDurability: TypeAlias = Literal["memory", "fsync"]

MOST_WAITING = 8_192
_STEP_S = 60
_READ_STEPS = 60
_PATIENCE_S = 1.0
_IDLE_STEPS = 480
_READERS = 2
_NOTHING = "nothing was written"
_MAY_BE = "it may have been written all the same"


@dataclass(frozen=True, slots=True)
class _Copy:
    """A committed history. used: as the file knows it."""

    history: History
    used: int


@dataclass(slots=True)
class _Live:
    """A user with changes on their way. known: what is committed, None if that was not read. planned: what is when they
    are done, None if that is not known.
    """

    known: History | None
    planned: History | None
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class FileLogOptions:
    """directory: belongs to one server. durability: what an acknowledged event survives: the process (memory), or the
    machine too (fsync). cache_bytes: of memory, for verified copies. step_s: to which the file knows when a user was
    asked for, for an append; for a read to sixty times that. Less where users go after a short while. on_damage: of a
    user whose log is damaged: refuse what is asked of him until somebody restores or deletes the log, or move it to a
    table where it stays for quarantine_s, and begin an empty one.
    """

    directory: Path
    durability: FileDurability = "fsync"
    cache_bytes: int = 256 << 20
    step_s: int = _STEP_S
    on_damage: Literal["refuse", "start-empty"] = "refuse"
    quarantine_s: float = 7 * 86_400.0


class FileLog:
    """All users' histories. Built before there is an event loop's work, started on it, and lives on it.

    on_evicted: told of users whose log was deleted to keep its bounds.
    """

    def __init__(
        self,
        options: FileLogOptions,
        budget: LogBudget,
        retention: Retention,
        metrics: StateMetrics,
        log_metrics: LogMetrics,
        on_evicted: Callable[[Deletion], None],
    ) -> None:
        """Opens the file, or makes one. Raises ConfigError if it cannot be used, or another process does."""
        self._options = options
        self._budget = budget
        self._step_s = (
            min(options.step_s, int(budget.max_idle_s) // _IDLE_STEPS) if budget.max_idle_s else options.step_s
        )
        self._retention = retention
        self._states = metrics
        self._metrics = log_metrics
        self._on_evicted = on_evicted
        self._local = threading.local()
        self._lock = DirectoryLock(options.directory)
        with contextlib.ExitStack() as opened:
            opened.callback(self._lock.release)
            writing = FileStore.open(options.directory, fsync=options.durability == "fsync")
            opened.callback(writing.close)
            try:
                self._writer = FileWriter(writing, log_metrics)
                self._keeper = FileKeeper(
                    options.directory, budget, self._writer, log_metrics, self._evict, options.quarantine_s
                )
            except sqlite3.Error as error:  # the file is ours by its head, and damaged behind it
                raise ConfigError(f"log_dir: {options.directory} cannot be used: {error}") from error
            self._stores = [FileStore.open_to_read(options.directory) for _ in range(_READERS)]
            opened.pop_all()
        self._unused = list(self._stores)
        self._readers = ThreadPoolExecutor(_READERS, "mfalcon-log-read", self._open_reader)
        self._copies: LRUCache[bytes, _Copy] = LRUCache(
            options.cache_bytes, getsizeof=lambda copy: copy.history.num_bytes
        )
        self._live: dict[bytes, _Live] = {}
        self._loads: dict[bytes, asyncio.Task[History]] = {}
        self._closed = False

    def __len__(self) -> int:
        """Users who have a history, as of the last commit."""
        return self._writer.totals.users

    def start(self) -> None:
        """Begin to write. On the event loop."""
        self._writer.start()
        self._keeper.start()

    async def close(self) -> None:
        """Write what waits and let another process have the directory."""
        self._closed = True
        await self._keeper.close()
        await asyncio.to_thread(self._readers.shutdown)
        for store in self._stores:
            store.close()
        await self._writer.close()
        self._lock.release()

    async def read(self, user_id: str, timeout_s: float) -> Reading:
        """The user's history, verified.

        Raises StorageUnavailable when the disk does not give it within that time or a second, whichever is more, for
        there is no other place to ask; DamagedLog when it is damaged.
        """
        empty = no_history(user_id)
        live = self._live.get(empty.user)
        if live is not None and live.known is not None:
            return Reading(live.known, stale=False)
        copy = self._copies.get(empty.user)
        if copy is not None:
            self._touch(copy)
            return Reading(copy.history, stale=False)
        history = await self._load(user_id, empty.user, max(timeout_s, _PATIENCE_S))
        return Reading(history, stale=False)

    async def append(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """Acknowledge events: when this returns they are in the file, as durable as asked. deadline: time.monotonic()
        seconds.

        Raises HistoryMismatch, InvalidInput or Overloaded, and then nothing was written; StorageUnavailable and
        DeadlineExceeded say whether they may have been; DamagedLog when that is what the user's log is.
        """
        empty = no_history(user_id)
        name = id_hash(append) if append.append_id else b""
        while True:
            before = await self._latest(user_id, empty.user, deadline)
            try:
                longer, told = appended(before, append)
            except (HistoryMismatch, InvalidInput):
                if name and (written := await self._written(empty.user, name)) is not None:
                    return Record.unpack(written).told_again(append)
                raise
            if not before.generation:
                self._check_room()
                longer = replace(longer, generation=os.urandom(8))
            after = self._retention.keep(longer)
            now = seconds_now()
            known = AppendId(name, now, Record.of(append, told).pack()) if name else None
            outcome = await self._change(Put(before, after, now, self._step_s, known), empty.user, after, deadline)
            if outcome.written is not None:
                return Record.unpack(outcome.written).told_again(append)
            if outcome.applied:
                if after.base != before.base:
                    self._states.log_trims.inc()
                return told
            self._states.log_conflicts.inc()

    async def delete(self, user_id: str, deadline: float | None) -> bytes:
        """Delete the user's log; returns the generation that ended, empty if there was none. `FileKeeper` says when no
        byte of it is left.

        Raises StorageUnavailable and DeadlineExceeded, which say whether it may have happened.
        """
        empty = no_history(user_id)
        outcome = await self._change(Delete(empty.user), empty.user, empty, deadline)
        self._keeper.erase_soon()
        return outcome.generation

    def histories(self) -> AsyncIterator[History] | None:
        """All of them that are not damaged, None if there are none; those that change meanwhile as of some moment.
        Nobody counts as asked for by that. Raises StorageUnavailable.
        """
        return self._histories() if len(self) else None

    async def _histories(self) -> AsyncIterator[History]:
        after = b""
        while records := await self._in_thread(partial(_some_records, after)):
            for record in records:
                history = record.history()
                if history is not None:
                    yield history
            after = records[-1].user

    async def _latest(self, user_id: str, user: bytes, deadline: float | None) -> History:
        """What the user's history will be when all changes on their way are done."""
        live = self._live.get(user)
        if live is not None and live.planned is not None:
            return live.planned
        if live is not None and live.known is not None:
            return live.known
        copy = self._copies.get(user)
        if live is None and copy is not None:
            return copy.history
        try:
            history = await self._load(user_id, user, _left(deadline, 60.0))
        except StorageUnavailable as error:
            raise StorageUnavailable(f"{error}; {_NOTHING}") from error
        live = self._live.get(user)  # others may have come first
        return history if live is None or live.planned is None else live.planned

    async def _change(self, change: Put | Delete, user: bytes, planned: History, deadline: float | None) -> Done:
        """Have a change made that leaves a user with `planned`."""
        if len(self._writer) >= MOST_WAITING:
            raise Overloaded(f"{MOST_WAITING} appends wait for the disk; {_NOTHING}", elsewhere=False)
        left = _left(deadline, float("inf"))
        told: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._loads.pop(user, None)  # what is being read is no longer the newest
        copy = self._copies.pop(user, None)
        live = self._live.get(user)
        if live is None:
            known = copy.history if copy is not None else change.before if isinstance(change, Put) else None
            live = self._live[user] = _Live(known, None)
        live.planned = planned
        live.waiting += 1
        waiting = Waiting(change, lambda outcome: self._settle(user, live, change, planned, outcome, told))
        self._writer.submit(waiting)
        await asyncio.wait((told,), timeout=None if left == float("inf") else left)
        if not told.done():
            if waiting.claim():
                live.planned = None
                raise DeadlineExceeded(f"the deadline passed before the disk was ready; {_NOTHING}")
            raise DeadlineExceeded(f"the deadline passed while the disk wrote; {_MAY_BE}", may_be_done=True)
        outcome = told.result()
        assert not isinstance(outcome, Withdrawn)
        if isinstance(outcome, sqlite3.Error):
            raise self._failure(outcome)
        return outcome

    def _settle(
        self,
        user: bytes,
        live: _Live,
        change: Put | Delete,
        planned: History,
        outcome: Outcome,
        told: "asyncio.Future[Outcome]",
    ) -> None:
        live.waiting -= 1
        if isinstance(outcome, Done) and (outcome.applied or isinstance(change, Delete)):
            live.known = planned
        else:
            live.known = live.planned = None  # what it was planned on may be no more: the file knows
        if not live.waiting:
            del self._live[user]
            if live.known is not None:
                self._keep(live.known, change.used if isinstance(change, Put) else 0)
        if not told.done():
            told.set_result(outcome)

    def _failure(self, error: sqlite3.Error) -> StorageUnavailable | DamagedLog:
        if is_damage(error):
            return self._damaged("pages")
        what = "its disk is full" if is_full(error) else "its disk failed"
        if isinstance(error, FileGone):
            what = "its file is gone"
        elif isinstance(error, sqlite3.InternalError):
            what = "this server has a defect, which its log tells"
        nothing = wrote_nothing(error)
        outcome = _NOTHING if nothing else _MAY_BE
        return StorageUnavailable(f"the event log cannot be written: {what}; {outcome}", may_be_done=not nothing)

    async def _load(self, user_id: str, user: bytes, timeout_s: float) -> History:
        """Read and verify a user's rows; whoever asks meanwhile waits for the same."""
        load = self._loads.get(user)
        if load is None:
            load = self._loads[user] = asyncio.create_task(self._read_file(user_id, user))
            load.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may be waiting
        done, _ = await asyncio.wait((load,), timeout=max(0.0, min(timeout_s, 3_600.0)))
        if not done:
            raise StorageUnavailable(f"the event log's disk has not answered within {timeout_s * 1000:.0f} ms")
        return load.result()

    async def _read_file(self, user_id: str, user: bytes) -> History:
        me = asyncio.current_task()
        try:
            record = await self._in_thread(lambda store: store.read(user))
            history = no_history(user_id) if record is None else replace(record, user_id=user_id).history()
            if history is None:
                history = await self._without_damage(user_id, user)
            if self._loads.get(user) is me and user not in self._live:
                self._keep(history, 0 if record is None else record.used)
                if (copy := self._copies.get(user)) is not None:
                    self._touch(copy)
            return history
        finally:
            if self._loads.get(user) is me:
                del self._loads[user]

    def _damaged(self, reason: str) -> DamagedLog:
        self._states.log_damaged.labels(reason).inc()
        return DamagedLog(reason)

    async def _without_damage(self, user_id: str, user: bytes) -> History:
        """The empty history of a user whose damaged log has been moved away. Raises DamagedLog where that is not
        wished.
        """
        damaged = self._damaged("hash")
        if self._options.on_damage == "refuse":
            raise damaged
        outcome = await self._submit(Quarantine(user, seconds_now()))
        if not (isinstance(outcome, Done) and outcome.applied):
            raise damaged
        self._states.log_quarantined.labels("hash").inc()
        self._on_evicted(Deletion(user, outcome.generation))
        return no_history(user_id)

    def _keep(self, history: History, used: int) -> None:
        self._copies.pop(history.user, None)
        if history.generation:
            with contextlib.suppress(ValueError):  # larger than all of the cache
                self._copies[history.user] = _Copy(history, used)

    def _touch(self, copy: _Copy) -> None:
        """Have the file know that a user was asked for, if what it knows is old."""
        now, history = seconds_now(), copy.history
        if now - copy.used > self._step_s * _READ_STEPS and not self._closed and len(self._writer) < MOST_WAITING:
            self._keep(history, now)
            self._submit(Touch(history.user, now))

    def _submit(self, change: Change) -> "asyncio.Future[Outcome]":
        """Have a change made that leaves every history as it is."""
        told: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def settle(outcome: Outcome) -> None:
            if not told.done():
                told.set_result(outcome)

        self._writer.submit(Waiting(change, settle))
        return told

    async def _written(self, user: bytes, name: bytes) -> bytes | None:
        """What is kept of a named append, one on its way included."""
        outcome = await self._submit(FindId(user, name))
        return outcome.written if isinstance(outcome, Done) else None

    def _check_room(self) -> None:
        """Raise Overloaded if there is no room for a new user."""
        budget, users = self._budget, len(self)
        if budget.when_full == "refuse" and (bound := budget.full(self._keeper.file_bytes, users)):
            self._metrics.refused.labels(bound).inc()
            raise budget.refusal(bound, self._keeper.file_bytes, users)

    async def _evict(self, user: bytes, used_before: int, reason: str) -> bool:
        """Delete a user's log, unless the user is asked for meanwhile; whether it was deleted."""
        if user in self._live:
            return False
        copy = self._copies.get(user)
        if copy is not None and copy.used >= used_before:
            return False
        outcome = await self._submit(Delete(user, used_before))
        if not (isinstance(outcome, Done) and outcome.applied):
            return False
        # What was read before is gone; whoever planned an append on it is told so by the file, and plans anew.
        self._loads.pop(user, None)
        self._copies.pop(user, None)
        self._keeper.erase_soon()
        self._metrics.evicted.labels(reason).inc()
        self._on_evicted(Deletion(user, outcome.generation))
        return True

    async def _in_thread(self, work: Callable[[FileStore], T]) -> T:
        """Read from the file. Raises StorageUnavailable, and DamagedLog where its pages are damaged."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._readers, lambda: work(self._local.store))
        except sqlite3.Error as error:
            if is_damage(error):
                raise self._damaged("pages") from error
            self._writer.complain(error, "read")
            raise StorageUnavailable("the event log cannot be read: its disk failed") from error

    def _open_reader(self) -> None:
        self._local.store = self._unused.pop()


def _some_records(after: bytes, store: FileStore) -> list[LogRecord]:
    return store.scan(after, 64)


def _left(deadline: float | None, longest: float) -> float:
    if deadline is None:
        return longest
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded(f"the deadline passed before the events could be written; {_NOTHING}")
    return min(longest, left)
