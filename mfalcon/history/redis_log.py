"""The event log in Redis, shared by all replicas: an acknowledged event is in it in order, exactly once.

One string per user: a header of 112 bytes, then 24 bytes an event from `base` on. The header names the user, the log's
generation, its length and the chained hash at both ends. An append is one script that compares the whole header with
the one the writer knows and writes nothing if it differs: concurrent writers cannot interleave, and `expected_len` is
checked atomically (`redis_append.py`). A read brings the events that our verified copy lacks and proves them by the
hash.

A deletion leaves a tombstone for an hour: a header without events, of no generation, so whatever a writer knew of the
life before does not fit it.
"""

import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from cachetools import LRUCache

from mfalcon.errors import DamagedLog, DeadlineExceeded, StorageUnavailable
from mfalcon.history.append_ids import MAX_IDS
from mfalcon.history.chain import CHAIN_BLOCK
from mfalcon.history.durability import Durability, is_reached, place_of, wait_command
from mfalcon.history.history import History, Reading, Retention, no_history
from mfalcon.history.joining import Joining
from mfalcon.history.redis_append import NOTHING_DONE, Copies, RedisAppends
from mfalcon.history.redis_header import (
    AS_KNOWN,
    HEADER_BYTES,
    NO_HEADER,
    OF_OTHER_SERVERS,
    Headers,
    Reason,
    Unfit,
    clock_in,
    ended_in,
    generation_in,
)
from mfalcon.history.redis_known import Known, clock_after, nothing_known
from mfalcon.history.redis_scripts import DELETE, EXPIRE, GUARD, QUARANTINE, READ
from mfalcon.history.rollbacks import Rollbacks
from mfalcon.metrics.states import StateMetrics
from mfalcon.pseudonym import user_tag
from mfalcon.redis.client import DURABLE_DELETE, LOG_DELETE, RedisClient, Reply
from mfalcon.redis.command import Command
from mfalcon.redis.keys import Keys
from mfalcon.types import EVENT_DTYPE, Append, Appended

_log = logging.getLogger(__name__)

_UNFIT = -2
TOMBSTONE_S = 3_600.0
_SHORTEST_WAIT_S = 0.005
_MAY_BE_DELETED = "it may be erased all the same: ask again"
_MARGIN_BYTES = 1 << 20
_HEADER_OBJECT_BYTES = 600
_ATTEMPTS = 2

OnDamage = Literal["refuse", "start-empty"]


@dataclass(frozen=True, slots=True)
class LogOptions:
    """cache_bytes: memory for the copies; the least recently used go. serve_stale: whether a copy may stand in for a
    Redis that cannot be asked. on_damage: of a user whose log is damaged: refuse what is asked of him until somebody
    restores or deletes the log, or move it away, where it stays for quarantine_s, and begin an empty one. secret,
    former_secrets, must_be_signed: see `Headers`. max_ids: appends of a user that are remembered by their ids.
    max_age_s: see `LogSweep`, 0 for no sweep. durability: of what is acknowledged, deletions too.
    """

    cache_bytes: int = 256 << 20
    serve_stale: bool = False
    on_damage: OnDamage = "refuse"
    quarantine_s: float = 7 * 86_400.0
    secret: bytes | None = field(default=None, repr=False)
    former_secrets: tuple[bytes, ...] = field(default=(), repr=False)
    must_be_signed: bool = False
    max_ids: int = MAX_IDS
    max_age_s: float = 0.0
    durability: Durability = "memory"


class RedisLog:
    """All users' histories, with verified copies of those in use. Lives on the event loop."""

    def __init__(
        self,
        client: RedisClient,
        keys: Keys,
        retention: Retention,
        metrics: StateMetrics,
        options: LogOptions | None = None,
    ) -> None:
        options = options or LogOptions()
        self._client = client
        self._keys = keys
        self._retention = retention
        self._metrics = metrics
        self._options = options
        self._headers = Headers(options.secret, options.former_secrets, must_be_signed=options.must_be_signed)
        kept = retention.max_events + retention.slack + CHAIN_BLOCK
        self._most_bytes = 2 * (HEADER_BYTES + kept * EVENT_DTYPE.itemsize) + _MARGIN_BYTES
        self._copies: LRUCache[bytes, Known] = LRUCache(options.cache_bytes, getsizeof=_num_bytes)
        self._rollbacks = Rollbacks(metrics)
        copies = Copies(self._known, self._taken, self._keep, self._rollbacks.told, self._most_bytes)
        appends = RedisAppends(
            client, keys, self._headers, retention, metrics, copies, options.max_ids, options.durability
        )
        self._joining = Joining(appends.write)

    async def read(self, user_id: str, timeout_s: float) -> Reading:
        """The user's history, verified, within two round trips; mostly one.

        Raises StorageUnavailable when Redis cannot be asked and no copy may be served, DamagedLog when what is there is
        not the user's log.
        """
        known = self._known(user_id)
        try:
            return Reading((await self._read(known, timeout_s)).history, stale=False)
        except StorageUnavailable:
            if not (self._options.serve_stale and known.history.generation):
                raise
            self._metrics.log_reads.labels("stale").inc()
            return Reading(known.history, stale=True)

    async def append(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """Acknowledge events: when this returns they are in the log. deadline: time.monotonic() seconds.

        One whose id has been written before is not written again, and told what it was told then. Raises
        HistoryMismatch, InvalidInput, DamagedLog or Overloaded, and then nothing was written; StorageUnavailable and
        DeadlineExceeded say whether it may have been.
        """
        return await self._joining.append(user_id, append, deadline)

    async def delete(self, user_id: str, deadline: float | None) -> bytes:
        """Erase the user's log, whatever its key holds; returns the generation that ended, empty if none is known.

        A deletion that is repeated within an hour is given the generation that the first one ended, so that it can
        finish what the first began. It is as durable as an append is, or raises StorageUnavailable.
        """
        user = no_history(user_id)
        keys = (self._keys.log(user.user), self._keys.appends(user.user), *self._keys.damaged(user.user))
        generation, clock, unfit = b"", 0, b""
        while True:
            tombstone = self._headers.tombstone(user.user, generation, clock_after(clock))
            command: Command = (
                "EVAL",
                DELETE,
                len(keys),
                *keys,
                generation,
                tombstone,
                round(1000 * TOMBSTONE_S),
                unfit,
            )
            is_done, raw = await self._write_deletion(user, command, deadline)
            if is_done:
                try:
                    self._headers.read(raw, user.user)
                except Unfit:  # a tombstone was there before: damaged, or of another server
                    unfit = raw
                    continue
                self.drop(user.user)
                return ended_in(raw)
            generation, clock = generation_in(raw), clock_in(raw)

    async def expire(self, user: bytes, raw: bytes) -> bool:
        """End a log as a deletion does, if its header, of either format, is still `raw`. Raises StorageUnavailable."""
        keys = (self._keys.log(user), self._keys.appends(user), *self._keys.damaged(user))
        raw = raw[:80] if raw[4:6] == b"\1\0" else raw
        tombstone = self._headers.tombstone(user, generation_in(raw), clock_after(clock_in(raw)))
        command: Command = ("EVAL", EXPIRE, len(keys), *keys, raw, tombstone, round(1000 * TOMBSTONE_S))
        (is_done,) = await self._client.call("log_sweep", keys[0], [command], self._client.settings.write_timeout_s)
        if is_done:
            self.drop(user)
        return bool(is_done)

    def lost_events(self, user_id: str) -> int:
        """How many events of a user this replica knew as acknowledged that a fault of Redis has taken out of his log
        since. They are told once; the next append here is told, if nobody asks before.
        """
        return self._rollbacks.told(no_history(user_id).user)

    def copy(self, user: bytes) -> History | None:
        """Our copy of a user's history, which newer events may be missing from; None if there is none."""
        known = self._copies.get(user)
        return None if known is None else known.history

    def drop(self, user: bytes) -> None:
        """Forget our copy of a user's history, and what we knew of it: he was deleted."""
        self._uncopy(user)
        self._rollbacks.forget(user)

    def drop_all(self) -> None:
        """Forget every copy."""
        self._copies.clear()
        self._rollbacks.forget_all()

    async def _read(self, known: Known, timeout_s: float) -> Known:
        """The history now, from what we know of it."""
        until = time.monotonic() + timeout_s
        nothing = nothing_known(known.history.user_id)
        key = self._keys.log(known.history.user)
        for attempt in (known, *[nothing] * _ATTEMPTS):
            asked_at = time.monotonic()
            command: Command = ("EVAL", GUARD + READ, 1, key, *attempt.as_arguments(), self._most_bytes)
            (reply,) = await self._client.call("log_read", key, [command], _time_left(until))
            try:
                return self._take(attempt, reply, asked_at)
            except Unfit as error:
                unfit, raw = error, reply[0]
            if attempt.header is NO_HEADER:  # else it may only be that what we know is no ancestor
                self._metrics.log_damaged.labels(unfit.reason).inc()
                await self._give_up(nothing.history, unfit.reason, raw, until)
        raise DamagedLog(unfit.reason)

    async def _give_up(self, history: History, reason: Reason, raw: bytes, until: float) -> None:
        """Move what is no log of the user away, if that is wished. Raises DamagedLog if it is not."""
        self._uncopy(history.user)
        if self._options.on_damage == "refuse" or reason in OF_OTHER_SERVERS:
            raise DamagedLog(reason)
        keys = (self._keys.log(history.user), *self._keys.damaged(history.user))
        kind = "other" if reason == "type" else "string"
        command: Command = ("EVAL", QUARANTINE, len(keys), *keys, kind, raw, round(1000 * self._options.quarantine_s))
        (place,) = await self._client.call("log_quarantine", keys[0], [command], _time_left(until))
        if place:
            self._metrics.log_quarantined.labels(reason).inc()
            what = "the event log of user %s was damaged (%s) and is now the key that ends in :damaged:%d"
            _log.warning(what, user_tag(history.user_id), reason, place)

    async def _taken(self, known: Known, reply: Reply, asked_at: float, timeout_s: float) -> Known:
        """What a reply to an append proves, or what is read now: also where the reply is late, since a rollback could
        not be told from it.
        """
        fresh = nothing_known(known.history.user_id)
        try:
            if not self._rollbacks.is_late(known.history.user, asked_at):
                return self._take(known, reply, asked_at)
            fresh = self._known(known.history.user_id)
        except Unfit:
            pass
        try:
            return await self._read(fresh, timeout_s)
        except StorageUnavailable as error:
            raise StorageUnavailable(f"{error}; {NOTHING_DONE}") from error

    def _take(self, known: Known, reply: Reply, asked_at: float) -> Known:
        """What a reply proves. Raises Unfit if what is there is no log, or what we know is no ancestor of it. asked_at:
        when it was asked for; one that is late proves what it says, and changes nothing of what we know.
        """
        raw, first, content = reply
        user_id, user = known.history.user_id, known.history.user
        is_late = self._rollbacks.is_late(user, asked_at)
        if first == AS_KNOWN:
            self._metrics.log_reads.labels("unchanged").inc()
            if known.header is NO_HEADER and not is_late:
                self._compare(known)
            return known
        if first == _UNFIT:
            raise self._unfit(raw, content, user)
        if not raw:
            nothing = nothing_known(user_id)
            if not is_late:
                self._compare(nothing)
                self._uncopy(user)
            return nothing
        header = self._headers.read(raw, user)
        if header.ended is not None:
            deleted = Known(no_history(user_id), header)
            if not is_late:
                self._compare(deleted)
                self._uncopy(user)
                self._rollbacks.saw(deleted, is_acknowledged=True)
            return deleted
        if len(content) != (header.length - first) * EVENT_DTYPE.itemsize:
            raise Unfit("truncated")
        events = np.frombuffer(content, dtype=EVENT_DTYPE)
        ours = known.history
        is_delta = header.generation == ours.generation and first == len(ours) and first > header.base
        begun = (
            ours
            if is_delta
            else replace(no_history(user_id, header.generation), base=header.base, links=header.base_link)
        )
        history = begun.extended(events)
        if header.base > history.base:
            history = history.trimmed(header.base)
        if not header.fits(history):
            raise Unfit("hash")
        self._metrics.log_reads.labels("delta" if is_delta else "full").inc()
        taken = Known(history, header)
        if is_late:
            return taken
        if not is_delta or header.clock < known.header.clock:
            self._compare(taken)
        self._keep(taken)
        return taken

    def _unfit(self, raw: bytes, reason: bytes, user: bytes) -> Unfit:
        """Why a script did not send what is there."""
        if reason == b"type":
            return Unfit("type")
        try:
            self._headers.read(raw, user)
        except Unfit as error:
            return error
        if reason == b"size":
            return Unfit("size")
        return Unfit("truncated")

    def _known(self, user_id: str) -> Known:
        nothing = nothing_known(user_id)
        return self._copies.get(nothing.history.user, nothing)

    def _keep(self, known: Known, *, is_durable: bool = False) -> None:
        """is_durable: whether it is known to be as durable as what is acknowledged, with all its events: a replica of
        Redis has what was written before, too. What is read is taken for acknowledged, but where a replica must have
        it: then a failover loses only what is not.
        """
        self._uncopy(known.history.user)
        with contextlib.suppress(ValueError):  # larger than all of the cache
            self._copies[known.history.user] = known
        self._rollbacks.saw(known, is_acknowledged=is_durable or self._options.durability != "replica")

    def _compare(self, now: Known) -> None:
        """With what is remembered of the user's log."""
        self._rollbacks.compare(now, self.copy(now.history.user))

    def _uncopy(self, user: bytes) -> None:
        self._copies.pop(user, None)

    def _write_timeout(self, deadline: float | None) -> float:
        longest = self._client.settings.write_timeout_s
        if deadline is None:
            return longest
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the events could be written; nothing was written")
        return min(longest, left)

    async def _write_deletion(self, known: History, command: Command, deadline: float | None) -> Reply:
        """What the script says, once its tombstone is as durable as an append must be: it writes one each time."""
        key, seconds = self._keys.log(known.user), self._write_timeout(deadline)
        wait = wait_command(self._options.durability, seconds)
        commands, op = ((command,), LOG_DELETE) if wait is None else ((command, wait), DURABLE_DELETE)
        try:
            reply, *waited = await self._client.call(op, key, commands, seconds)
        except StorageUnavailable as error:
            outcome = _MAY_BE_DELETED if error.may_be_done else NOTHING_DONE
            raise StorageUnavailable(f"{error}; {outcome}", may_be_done=error.may_be_done) from error
        if waited and reply[0] and not is_reached(self._options.durability, waited[0]):
            self._metrics.log_not_durable.inc()
            place = place_of(self._options.durability)
            raise StorageUnavailable(f"the log is erased, but not yet {place}; ask again", may_be_done=True)
        return reply


def _num_bytes(known: Known) -> int:
    return known.history.num_bytes + _HEADER_OBJECT_BYTES


def _time_left(until: float) -> float:
    return max(_SHORTEST_WAIT_S, until - time.monotonic())
