"""Writers of a few users, on any of several replicas, whose appends nobody may lose, double or report wrongly.

Each user lives for a while: several writers append at once, with and without preconditions, some time late, one reads,
and now and then one deletes. What has no answer is asked again under its append id until it has one. Then the user is
read by every replica and left for a new one, so that what is to be judged together stays short.
"""

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.faults.recorder import Recorder
from loadtest.faults.recording import Operation
from mfalcon.engine.histories import Histories
from mfalcon.types import Append

_TIME_MS = 1_700_000_000_000
_RETRY_S = 0.05
_LAST_TRIES_S = 30.0
"""To find out what became of an append, and what a user's history is, once faults are over."""


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """users: at once. writers: of each. calls: of a writer before its user is left. pause_s: mean, between two calls of
    a writer. timeout_s: of a call. with_ids: appends have ids and are repeated. late_share: of appends, which are older
    than others and go where they belong. delete_share: of the calls of a user's first writer.
    """

    users: int = 4
    writers: int = 4
    calls: int = 40
    pause_s: float = 0.02
    timeout_s: float = 0.5
    with_ids: bool = True
    late_share: float = 0.0
    delete_share: float = 0.05
    seed: int = 0


class _User:
    """A user for as long as it lives. A deletion waits for appends under way, and they for it: an append that is
    repeated belongs to one life.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.known: Operation | None = None
        self._appending = 0
        self._changed = asyncio.Condition()
        self._deleting = False

    async def begin(self) -> None:
        """An append may leave."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._deleting)
            self._appending += 1

    async def end(self) -> None:
        """It has an answer, or nobody asks any more."""
        async with self._changed:
            self._appending -= 1
            self._changed.notify_all()

    async def alone(self) -> None:
        """Nobody appends until `together`."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._deleting)
            self._deleting = True
            await self._changed.wait_for(lambda: not self._appending)

    async def together(self) -> None:
        """Appends may leave again."""
        async with self._changed:
            self._deleting = False
            self._changed.notify_all()


class Writers:
    """Run on one event loop until a moment; the recorder has what they saw."""

    def __init__(self, replicas: Sequence[Histories], recorder: Recorder, options: WriterOptions) -> None:
        self._replicas = replicas
        self._recorder = recorder
        self._options = options
        self._random = random.Random(options.seed)
        self._stop = 0.0
        self._over_since = math.inf
        self._ids = 0
        self.unread: list[str] = []
        """Users whose history could not be read when they were left, though faults were over."""

    def faults_are_over(self) -> None:
        """What has no answer a while from now gets none."""
        self._over_since = time.monotonic()

    async def run(self, stop: float) -> None:
        """Until `stop` (time.monotonic()), and then until every outcome that can be known is: where faults last, until
        a while after `faults_are_over`.
        """
        self._stop = stop
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._options.users):
                tasks.create_task(self._users(number))

    async def _users(self, number: int) -> None:
        life = 0
        while time.monotonic() < self._stop:
            user = _User(f"user-{number}-{life}")
            async with asyncio.TaskGroup() as tasks:
                for writer in range(self._options.writers):
                    tasks.create_task(self._write(user, first=writer == 0))
            for replica in self._replicas:
                began = time.monotonic()
                while await self._recorder.read(replica, user.name, self._options.timeout_s) is None:
                    if self._is_hopeless(began):
                        self.unread.append(user.name)
                        break
                    await asyncio.sleep(_RETRY_S)
            life += 1

    def _is_hopeless(self, began: float) -> bool:
        """To try again what was tried from `began` on."""
        return time.monotonic() > max(began, self._over_since) + _LAST_TRIES_S

    async def _write(self, user: _User, *, first: bool) -> None:
        options, rng = self._options, self._random
        for _ in range(options.calls):
            if time.monotonic() >= self._stop:
                return
            await asyncio.sleep(rng.expovariate(1 / options.pause_s))
            replica, chance = rng.choice(self._replicas), rng.random()
            if first and chance < options.delete_share:
                await self._delete(user, replica)
            elif chance < 0.3:
                told = await self._recorder.read(replica, user.name, options.timeout_s)
                user.known = told or user.known
            else:
                await self._append(user)

    async def _append(self, user: _User) -> None:
        options, rng, known = self._options, self._random, user.known
        late = rng.random() < options.late_share
        events = self._recorder.events(rng.randint(1, 3), _TIME_MS - (rng.randint(1, 5) if late else 0))
        chance, self._ids = rng.random(), self._ids + 1
        append = Append(
            events,
            expected_len=known.length if known is not None and chance < 0.3 else None,
            expected_version=known.version if known is not None and 0.2 < chance < 0.5 else None,
            append_id=f"append-{self._ids}" if options.with_ids else "",
            late_events="insert" if options.late_share else "",
        )
        await user.begin()
        try:
            began, perhaps_written = time.monotonic(), False
            while not self._is_hopeless(began):
                told = await self._recorder.append(rng.choice(self._replicas), user.name, append, options.timeout_s)
                if told.version:
                    user.known = told
                    return
                perhaps_written |= told.outcome == "unknown"
                if not (perhaps_written and options.with_ids):  # an attempt that wrote nothing says nothing of others
                    return
                await asyncio.sleep(_RETRY_S)
        finally:
            await user.end()

    async def _delete(self, user: _User, replica: Histories) -> None:
        await user.alone()
        try:
            began = time.monotonic()
            while not self._is_hopeless(began):
                told = await self._recorder.delete(replica, user.name, self._options.timeout_s)
                if told.outcome == "ok":
                    break
                await asyncio.sleep(_RETRY_S)
            user.known = None
        finally:
            await user.together()
