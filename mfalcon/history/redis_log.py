"""The event log in Redis, shared by all replicas: an acknowledged event is in it in order, exactly once.

One string per user: a header of 80 bytes, then 24 bytes an event from `base` on. The header names the user, the log's
generation, its length and the chained hash at both ends. An append is one script that compares the whole header with
the one the writer knows and writes nothing if it differs: concurrent writers cannot interleave, and `expected_len` is
checked atomically. A read brings the events that our verified copy lacks and proves them by the hash.
"""

import contextlib
import os
import time
from dataclasses import replace

import numpy as np
from cachetools import LRUCache

from mfalcon.errors import DeadlineExceeded, EngineFailure, HistoryMismatch, InvalidInput, StorageUnavailable
from mfalcon.history.appending import appended
from mfalcon.history.history import History, Reading, Retention, no_history
from mfalcon.history.redis_header import HEADER, Header, header_of
from mfalcon.history.redis_scripts import APPEND, DELETE, READ
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, Reply
from mfalcon.redis.command import Command
from mfalcon.redis.keys import Keys
from mfalcon.types import EVENT_DTYPE, Append, Appended, Events

AS_KNOWN = -1
_SHORTEST_WAIT_S = 0.005
_NOTHING_DONE = "nothing was written"
_MAY_BE_DONE = {
    "log_append": "it may have been written all the same: ask again with expected_len",
    "log_delete": "it may be erased all the same: ask again",
}


class RedisLog:
    """All users' histories, with verified copies of those in use. Lives on the event loop.

    cache_bytes: memory for the copies; the least recently used go. serve_stale: whether a copy may stand in for a
    Redis that cannot be asked.
    """

    def __init__(
        self,
        client: RedisClient,
        keys: Keys,
        retention: Retention,
        metrics: StateMetrics,
        *,
        cache_bytes: int = 256 << 20,
        serve_stale: bool = False,
    ) -> None:
        self._client = client
        self._keys = keys
        self._retention = retention
        self._metrics = metrics
        self._serve_stale = serve_stale
        self._copies: LRUCache[bytes, History] = LRUCache(cache_bytes, getsizeof=lambda history: history.num_bytes)

    async def read(self, user_id: str, timeout_s: float) -> Reading:
        """The user's history, verified, within two round trips; mostly one.

        Raises StorageUnavailable when Redis cannot be asked and no copy may be served, EngineFailure when the log is
        damaged.
        """
        known = self._known(user_id)
        try:
            return Reading(await self._read(known, timeout_s), stale=False)
        except StorageUnavailable:
            if not (self._serve_stale and known.generation):
                raise
            self._metrics.log_reads.labels("stale").inc()
            return Reading(known, stale=True)

    async def append(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """Acknowledge events: when this returns they are in the log. deadline: time.monotonic() seconds.

        Raises HistoryMismatch or InvalidInput, and then nothing was written; StorageUnavailable says whether it may
        have been.
        """
        known, is_fresh = self._known(user_id), False
        while True:
            try:
                longer, told = appended(known, append)
            except (HistoryMismatch, InvalidInput):
                if is_fresh:
                    raise
                known, is_fresh = await self._read_to_append(known, deadline), True
                continue
            begun = longer if longer.generation else replace(longer, generation=os.urandom(8))
            after = self._retention.keep(begun)
            command = self._append_command(known, after, append.events)
            reply = await self._write("log_append", known, command, deadline)
            if reply[1] == AS_KNOWN:
                if after.base != known.base:
                    self._metrics.log_trims.inc()
                self._keep(after)
                return told
            self._metrics.log_conflicts.inc()
            is_fresh = True
            fresh = self._take(known, reply)
            known = await self._read_to_append(no_history(user_id), deadline) if fresh is None else fresh

    async def delete(self, user_id: str, deadline: float | None) -> bytes:
        """Erase the user's log; returns the generation that ended, empty if there was none."""
        known, ended = no_history(user_id), b""
        while True:
            command = ("EVAL", DELETE, 1, self._keys.log(known.user), ended)
            found: bytes = await self._write("log_delete", known, command, deadline)
            if found in (ended, b""):
                self.drop(known.user)
                return ended
            ended = found

    def copy(self, user: bytes) -> History | None:
        """Our copy of a user's history, which newer events may be missing from; None if there is none."""
        return self._copies.get(user)

    def drop(self, user: bytes) -> None:
        """Forget our copy of a user's history."""
        self._copies.pop(user, None)

    def drop_all(self) -> None:
        """Forget every copy."""
        self._copies.clear()

    async def _read(self, known: History, timeout_s: float) -> History:
        """The history now, from what we know of it."""
        until = time.monotonic() + timeout_s
        for attempt in (known, no_history(known.user_id)):
            command = ("EVAL", READ, 1, self._keys.log(known.user), *_what_we_know(attempt))
            left = max(_SHORTEST_WAIT_S, until - time.monotonic())
            (reply,) = await self._client.call("log_read", self._keys.log(known.user), [command], left)
            history = self._take(attempt, reply)
            if history is not None:
                return history
        self._metrics.log_damaged.inc()
        raise EngineFailure("the event log of this user is damaged: its events do not hash to its own link")

    async def _read_to_append(self, known: History, deadline: float | None) -> History:
        try:
            return await self._read(known, self._write_timeout(deadline))
        except StorageUnavailable as error:
            raise StorageUnavailable(f"{error}; {_NOTHING_DONE}") from error

    def _take(self, known: History, reply: Reply) -> History | None:
        """The history that a reply proves; None if what we know is no ancestor of it, or nothing hashes right."""
        raw, first, content = reply
        if first == AS_KNOWN:
            self._metrics.log_reads.labels("unchanged").inc()
            return known
        if not raw:
            self.drop(known.user)
            return no_history(known.user_id)
        header = Header.unpack(raw)
        if header is None or header.user != known.user:
            return None
        if (header.base == 0 and header.base_link != known.user) or len(content) != (
            header.length - first
        ) * EVENT_DTYPE.itemsize:
            return None
        events = np.frombuffer(content, dtype=EVENT_DTYPE)
        is_delta = header.generation == known.generation and first == len(known) and first > header.base
        begun = (
            known
            if is_delta
            else replace(no_history(known.user_id, header.generation), base=header.base, links=header.base_link)
        )
        history = begun.extended(events)
        if header.base > history.base:
            history = history.trimmed(header.base)
        if header_of(history) != raw:
            return None
        self._metrics.log_reads.labels("delta" if is_delta else "full").inc()
        self._keep(history)
        return history

    def _known(self, user_id: str) -> History:
        history = no_history(user_id)
        return self._copies.get(history.user, history)

    def _keep(self, history: History) -> None:
        self.drop(history.user)
        with contextlib.suppress(ValueError):  # larger than all of the cache
            self._copies[history.user] = history

    def _append_command(self, known: History, after: History, events: Events) -> Command:
        is_whole = after.base != known.base or not known.generation
        offset = 0 if is_whole else HEADER.size + len(known.events) * EVENT_DTYPE.itemsize
        content = (after.events if is_whole else events).tobytes()
        key = self._keys.log(known.user)
        return ("EVAL", APPEND + READ, 1, key, *_what_we_know(known), header_of(after), content, offset)

    def _write_timeout(self, deadline: float | None) -> float:
        longest = self._client.settings.write_timeout_s
        if deadline is None:
            return longest
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the events could be written; nothing was written")
        return min(longest, left)

    async def _write(self, op: str, known: History, command: Command, deadline: float | None) -> Reply:
        try:
            (reply,) = await self._client.call(op, self._keys.log(known.user), [command], self._write_timeout(deadline))
        except StorageUnavailable as error:
            outcome = _MAY_BE_DONE[op] if error.may_be_done else _NOTHING_DONE
            raise StorageUnavailable(f"{error}; {outcome}", may_be_done=error.may_be_done) from error
        return reply


def _what_we_know(history: History) -> tuple[bytes, bytes, int]:
    return header_of(history), history.generation, len(history)
