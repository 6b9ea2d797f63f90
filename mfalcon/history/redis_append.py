"""How appends are written to the log in Redis: those of one user that wait are one script, which writes all or nothing.

The script finds first which of their ids have been written before. If any has, or the log is not the one that they were
planned for, it writes nothing and says what it found; what is left is planned anew.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from cachetools import TTLCache

from mfalcon.errors import DamagedLog, HistoryMismatch, InvalidInput, MFalconError, StorageUnavailable
from mfalcon.history.append_ids import MAX_IDS, TTL_S, Record, id_hash
from mfalcon.history.appending import appended
from mfalcon.history.durability import Durability, is_reached, place_of, wait_command
from mfalcon.history.history import History, Retention
from mfalcon.history.joining import Waiting
from mfalcon.history.redis_header import AS_KNOWN, HEADER_BYTES, NO_HEADER, Header, Headers
from mfalcon.history.redis_known import Known, clock_after
from mfalcon.history.redis_scripts import APPEND, GUARD, WRITTEN
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import DURABLE_APPEND, LOG_APPEND, RedisClient, Reply
from mfalcon.redis.command import Command
from mfalcon.redis.keys import Keys
from mfalcon.types import EVENT_DTYPE, Appended, Events

NOTHING_DONE = "nothing was written"
_MAY_BE_DONE = (
    "it may have been written all the same: ask again with expected_len or expected_version, or with its append_id"
)
_CONTENDED_S = 1.0
"""How long after a conflict other writers are taken to write still."""
_YIELDED = 2.0
"""Longest wait of who has written a user that others write too, in times of what a write takes."""
_PATIENCE = 3
"""Conflicts in a row after which a writer asks for its turn: until it has written nobody else does."""
_TURN_S = 0.25
"""How long a turn lasts at most: its writer may be dead."""


class Keep(Protocol):
    """Has a history be our copy."""

    def __call__(self, known: Known, *, is_durable: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Copies:
    """What this process knows of logs, and how it learns more.

    known: our copy of a user's history, or no history. taken: what a reply of READ proves to whom knew some history;
    the log is read again, within some seconds, where it proves nothing. keep: has a history be our copy, and is told
    whether it is as durable as was asked. lost: how many events of a user (by hash) were acknowledged and are gone, as
    far as nobody was told. most_bytes: of a log.
    """

    known: Callable[[str], Known]
    taken: Callable[[Known, Reply, float, float], Awaitable[Known]]
    keep: Keep
    lost: Callable[[bytes], int]
    most_bytes: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes of a history if appends are written in order. refused: by what they themselves demand. again: those
    that bear the id of another one among them.
    """

    known: Known
    after: History
    written: Sequence[tuple[Waiting, Appended]]
    refused: Sequence[tuple[Waiting, MFalconError]]
    again: Sequence[tuple[Waiting, Appended]]

    @classmethod
    def of(cls, known: Known, joined: Sequence[Waiting], retention: Retention) -> "_Plan":
        """A history and what is to be appended to it."""
        after = known.history
        written: list[tuple[Waiting, Appended]] = []
        refused: list[tuple[Waiting, MFalconError]] = []
        again: list[tuple[Waiting, Appended]] = []
        of_id: dict[str, Record] = {}
        for waiting in joined:
            append = waiting.append
            try:
                if append.append_id in of_id:
                    again.append((waiting, of_id[append.append_id].told_again(append)))
                    continue
                after, told = appended(after, append)
            except (HistoryMismatch, InvalidInput) as error:
                refused.append((waiting, error))
                continue
            written.append((waiting, told))
            if append.append_id:
                of_id[append.append_id] = Record.of(append, told)
        if written:
            begun = after if after.generation else replace(after, generation=os.urandom(8))
            after = retention.keep(begun)
        return cls(known, after, written, refused, again)

    def changes(self) -> tuple[bytes, int]:
        """The content of the log that changes, and where that lies, 0 for all of it; nothing if nothing does."""
        known, after = self.known.history, self.after
        if not self.written:
            return b"", 0
        if after.base != known.base or not known.generation or self.known.header.is_first_format:
            return after.events.tobytes(), 0
        first = len(known.events)
        if any(told.inserted for _, told in self.written):
            first = _first_change(known.events, after.events)
        return after.events[first:].tobytes(), HEADER_BYTES + first * EVENT_DTYPE.itemsize

    def records(self) -> list[bytes]:
        """Ids and records of what is written, in turns."""
        named = ((waiting.append, told) for waiting, told in self.written if waiting.append.append_id)
        return [raw for append, told in named for raw in (id_hash(append), Record.of(append, told).pack())]

    def answer(self) -> None:
        """Answer each, once it is written."""
        for waiting, told in (*self.written, *self.again):
            waiting.tell(told)
        for waiting, error in self.refused:
            waiting.fail(error)


class RedisAppends:
    """Writes what `Joining` joins. max_ids: that are remembered of a user. durability: of what is acknowledged. Lives
    on the event loop.
    """

    def __init__(
        self,
        client: RedisClient,
        keys: Keys,
        headers: Headers,
        retention: Retention,
        metrics: StateMetrics,
        copies: Copies,
        max_ids: int = MAX_IDS,
        durability: Durability = "memory",
    ) -> None:
        self._client = client
        self._keys = keys
        self._headers = headers
        self._retention = retention
        self._metrics = metrics
        self._copies = copies
        self._max_ids = max_ids
        self._name = os.urandom(8)
        self._durability: Durability = durability
        self._contended: TTLCache[str, None] = TTLCache(10_000, _CONTENDED_S)

    async def write(self, user_id: str, joined: Sequence[Waiting]) -> float:
        """Write appends of one user and answer each; see `Joining`."""
        known, is_fresh, num_conflicts = self._copies.known(user_id), False, 0
        while joined := [waiting for waiting in joined if not waiting.is_over]:
            plan = _Plan.of(known, joined, self._retention)
            if is_fresh and not plan.written:
                plan.answer()
                break
            named = [waiting for waiting in joined if waiting.append.append_id]
            began = time.monotonic()
            after = NO_HEADER
            if plan.written:
                after = self._headers.write(plan.after, clock_after(known.header.clock))
            reply, *waited = await self._send(plan, after, joined, named, wants_turn=num_conflicts >= _PATIENCE)
            header, first, content, *found = reply
            is_durable = not waited or is_reached(self._durability, waited[0])
            seconds = time.monotonic() - began
            if first == WRITTEN:
                self._written(plan, after, is_durable)
                return self._yield_for(user_id, seconds)
            for waiting, raw in zip(named, found[0] if found else (), strict=False):
                if raw is not None and not is_durable:
                    waiting.fail(self._not_durable())
                elif raw is not None:
                    _tell_again(waiting, raw)
            if first != AS_KNOWN and plan.written:
                num_conflicts += 1
                self._metrics.log_conflicts.inc()
                self._contended[user_id] = None
            known = await self._copies.taken(known, (header, first, content), began, self._seconds_left(joined))
            if first == AS_KNOWN and plan.written and not any(found[0]):  # it is the turn of another writer
                await asyncio.sleep(random.uniform(0.5, 1.5) * seconds)
            is_fresh = True
        return 0.0

    async def _send(
        self, plan: _Plan, header: Header, joined: Sequence[Waiting], named: Sequence[Waiting], *, wants_turn: bool
    ) -> list[Reply]:
        """Run the script, and where more than memory is asked for, wait until Redis says how durable it is: two replies
        then. Where that fails, each append has its error, and it is raised too.
        """
        user, ids = plan.after.user, [id_hash(waiting.append) for waiting in named]
        keys = (self._keys.log(user), self._keys.appends(user), self._keys.turn(user))
        known, what = plan.known.as_arguments(), (header.raw, *plan.changes())
        limits = (TTL_S, self._max_ids, self._name, round(1_000 * _TURN_S) if wants_turn else 0)
        records: tuple[bytes | int, ...] = (*plan.records(), self._copies.most_bytes)
        script: Command = ("EVAL", GUARD + APPEND, len(keys), *keys)
        command: Command = (*script, *known, *what, *limits, len(ids), *ids, *records)
        for waiting, _ in (*plan.written, *plan.again):
            waiting.is_sent = True
        seconds = self._seconds_left(joined)
        wait = wait_command(self._durability, seconds)
        commands, op = ((command,), LOG_APPEND) if wait is None else ((command, wait), DURABLE_APPEND)
        try:
            replies = await self._client.call(op, keys[0], commands, seconds)
        except StorageUnavailable as error:
            for waiting in joined:
                is_done = error.may_be_done and waiting.is_sent
                outcome = _MAY_BE_DONE if is_done else NOTHING_DONE
                waiting.fail(StorageUnavailable(f"{error}; {outcome}", may_be_done=is_done))
            raise
        for waiting in joined:
            waiting.is_sent = False
        return replies

    def _written(self, plan: _Plan, header: Header, is_durable: bool) -> None:
        if plan.after.base != plan.known.history.base:
            self._metrics.log_trims.inc()
        self._copies.keep(Known(plan.after, header), is_durable=is_durable)
        if not is_durable:
            for waiting, _ in (*plan.written, *plan.again):
                waiting.fail(self._not_durable())
            replace(plan, written=(), again=()).answer()
            return
        (waiting, told), *others = plan.written
        if lost := self._copies.lost(plan.after.user):
            told = replace(told, lost_events=lost)
        replace(plan, written=((waiting, told), *others)).answer()

    def _not_durable(self) -> StorageUnavailable:
        self._metrics.log_not_durable.inc()
        text = f"the events are written, but not yet {place_of(self._durability)}; {_MAY_BE_DONE}"
        return StorageUnavailable(text, may_be_done=True)

    def _yield_for(self, user_id: str, seconds: float) -> float:
        """Who has just written comes last among those who write the same user: so nobody's luck lasts."""
        return random.uniform(0, _YIELDED * seconds) if user_id in self._contended else 0.0

    def _seconds_left(self, joined: Sequence[Waiting]) -> float:
        """Until nobody waits any more, and no longer than a write may take."""
        longest, now = self._client.settings.write_timeout_s, time.monotonic()
        left = [longest if waiting.deadline is None else waiting.deadline - now for waiting in joined]
        return max(0.001, min(longest, max(left)))


def _tell_again(waiting: Waiting, raw: bytes) -> None:
    try:
        waiting.tell(Record.unpack(raw).told_again(waiting.append))
    except (InvalidInput, DamagedLog) as error:
        waiting.fail(error)


def _first_change(before: Events, after: Events) -> int:
    """Position of the first event that differs; after is the longer one."""
    differs = before != after[: len(before)]
    return int(np.argmax(differs)) if differs.any() else len(before)
