"""The thread that writes an event log to its file: what waits when a commit ends is the next commit.

So one fsync serves everybody who came while the one before it was under way, and nobody waits for others to come.
"""

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from mfalcon.history.file_changes import Change, Done, is_full
from mfalcon.history.file_store import FileStore
from mfalcon.metrics.logs import LogMetrics

_log = logging.getLogger(__name__)

MOST_IN_A_COMMIT = 512
_SAY_AGAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A change that its caller took back before it was begun."""


Outcome: TypeAlias = Done | Withdrawn | sqlite3.Error


@dataclass(slots=True)
class Waiting:
    """A change on its way. settle: told of the outcome, on the event loop, in the order in which changes were made."""

    change: Change
    settle: Callable[[Outcome], None]
    _claim: list[None] = field(default_factory=lambda: [None])

    def claim(self) -> bool:
        """True for the first who asks: the writer, who then makes the change, or its caller, who takes it back."""
        try:
            self._claim.pop()
        except IndexError:
            return False
        return True


class FileWriter:
    """Owns the writing connection. `submit` belongs to the event loop that `start` was called on."""

    def __init__(self, store: FileStore, metrics: LogMetrics) -> None:
        self._store = store
        self._metrics = metrics
        self._queue: deque[Waiting] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._truncate = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="mfalcon-log", daemon=True)
        self._said_at = float("-inf")
        self.num_commits = 0
        self.totals = store.totals()
        """As of the last commit."""

    def __len__(self) -> int:
        """Changes that wait."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to write. On the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, waiting: Waiting) -> None:
        """Have a change made, after all that were submitted before."""
        with self._wake:
            self._queue.append(waiting)
            self._wake.notify()

    def truncate(self) -> None:
        """Have the journal emptied between two commits, once nobody reads from it. Any thread."""
        with self._wake:
            self._truncate = True
            self._wake.notify()

    async def close(self) -> None:
        """Write what waits, empty the journal and close the connection."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        self._store.close()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._queue or self._truncate or self._closing):
                    self._wake.wait()
                group = [self._queue.popleft() for _ in range(min(len(self._queue), MOST_IN_A_COMMIT))]
                truncate, self._truncate = self._truncate or (self._closing and not group), False
            if group:
                outcomes = self._commit(group)
                assert self._loop is not None
                self._loop.call_soon_threadsafe(_settle, group, outcomes)
            if truncate:
                self._empty_journal()
            if not group and self._closing:
                return

    def _commit(self, group: Sequence[Waiting]) -> list[Outcome]:
        ours = [waiting.claim() for waiting in group]
        changes = [waiting.change for waiting, is_ours in zip(group, ours, strict=True) if is_ours]
        began = time.perf_counter()
        try:
            done = iter(self._store.commit(changes) if changes else ())
            self._metrics.commit_seconds.observe(time.perf_counter() - began)
            self._metrics.commit_changes.observe(len(changes))
            self.num_commits += 1
            self.totals = self._store.grown(self.totals)
        except sqlite3.Error as error:
            self._metrics.failed.labels("full" if is_full(error) else "error").inc(len(changes))
            self.complain(error)
            return [error if is_ours else Withdrawn() for is_ours in ours]
        return [next(done) if is_ours else Withdrawn() for is_ours in ours]

    def _empty_journal(self) -> None:
        try:
            self._store.checkpoint(truncate=True)
        except sqlite3.Error as error:
            self.complain(error)

    def complain(self, error: sqlite3.Error, what: str = "written") -> None:
        """Tell the operator, now and then, what SQLite says of the log, which is for nobody else. Any thread."""
        now = time.monotonic()
        if now - self._said_at >= _SAY_AGAIN_S:
            self._said_at = now
            _log.error("the event log cannot be %s: %s (%s)", what, error, getattr(error, "sqlite_errorname", "?"))


def _settle(group: Sequence[Waiting], outcomes: Sequence[Outcome]) -> None:
    for waiting, outcome in zip(group, outcomes, strict=True):
        waiting.settle(outcome)
