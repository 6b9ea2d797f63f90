"""The two places that event logs are moved between: a file, and Redis."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from mfalcon.clock import seconds_now
from mfalcon.errors import DataError, StorageUnavailable
from mfalcon.history.file_changes import Delete, Put
from mfalcon.history.file_store import FileStore
from mfalcon.history.history import History, no_history
from mfalcon.history.migration import Head
from mfalcon.history.record import LogRecord
from mfalcon.history.redis_header import HEADER_BYTES, Headers, Unfit
from mfalcon.history.redis_known import clock_after
from mfalcon.history.redis_log import RedisLog
from mfalcon.redis.client import RedisClient
from mfalcon.redis.command import Command
from mfalcon.redis.keys import Keys

T = TypeVar("T")

_PAGE = 512
_SCAN_KEYS = 1_000

_PUT = """
if redis.call('GETRANGE', KEYS[1], 0, 111) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('UNLINK', KEYS[2])
return 1
"""
"""KEYS: log, what became of its last appends. ARGV: the beginning of what was read, and the whole log to put there."""


class FileEnd:
    """A log in a file. writes: whether it is the target, whose directory is locked by the caller."""

    def __init__(self, directory: Path, *, writes: bool) -> None:
        self._store = FileStore.open(directory) if writes else FileStore.open_to_read(directory)
        self._thread = ThreadPoolExecutor(1, "mfalcon-migrate")

    async def heads(self) -> AsyncIterator[tuple[bytes, Head]]:
        """See `End.heads`."""
        query = "SELECT user, generation, length, link FROM users WHERE user > ? ORDER BY user LIMIT ?"
        after = b""
        while rows := await self._call(partial(self._rows, query, (after, _PAGE))):
            for user, generation, length, link in rows:
                yield user, Head(generation, length, link)
            after = rows[-1][0]

    async def read(self, user: bytes) -> History | None:
        """See `End.read`."""
        record = await self._call(lambda: self._store.read(user))
        if record is None:
            return None
        history = record.history()
        if history is None:
            raise DataError(f"the log of user {record.user_id or user.hex()!r} in the file is damaged")
        return history

    async def put(self, before: History | None, after: History) -> bool:
        """See `End.put`."""
        if before is not None:  # whose id the file may know better than the source
            after = replace(after, user_id=before.user_id or after.user_id)
        put = Put(before or no_history(after.user_id), after, seconds_now())
        (done,) = await self._call(lambda: self._store.commit([put]))
        if isinstance(done, sqlite3.Error):
            raise StorageUnavailable(f"the file cannot be written: {done}") from done
        return done.applied

    async def delete(self, user: bytes, generation: bytes) -> bool:
        """See `End.delete`."""
        there = await self.read(user)
        if there is None or there.generation != generation:
            return False
        (done,) = await self._call(lambda: self._store.commit([Delete(user)]))
        return not isinstance(done, sqlite3.Error) and done.applied

    async def close(self) -> None:
        """Empty the journal and close the file."""
        self._thread.shutdown()
        self._store.close()

    def _rows(self, query: str, arguments: tuple[bytes, int]) -> list[tuple[bytes, bytes, int, bytes]]:
        return self._store.db.execute(query, arguments).fetchall()

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise StorageUnavailable(f"the file: {error}") from error


class RedisEnd:
    """The log in Redis. log: to end lives there as a deletion does."""

    def __init__(self, client: RedisClient, keys: Keys, headers: Headers, log: RedisLog) -> None:
        self._client = client
        self._keys = keys
        self._headers = headers
        self._log = log
        self._timeout_s = client.settings.write_timeout_s

    async def heads(self) -> AsyncIterator[tuple[bytes, Head]]:
        """See `End.heads`."""
        before, after = self._keys.log(b"").split("{}")
        pattern = f"{before}{{*}}{after}"
        for node in await self._client.nodes():
            cursor: int | bytes = 0
            while True:
                scan: Command = ("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_KEYS, "TYPE", "string")
                ((cursor, names),) = await self._client.call_node("migrate", node, [scan], self._timeout_s)
                heads: list[Command] = [("GETRANGE", name, 0, HEADER_BYTES - 1) for name in names]
                raws = await self._client.call_node("migrate", node, heads, self._timeout_s) if heads else []
                for name, raw in zip(names, raws, strict=True):
                    user = bytes.fromhex(name.decode().removeprefix(f"{before}{{").removesuffix(f"}}{after}"))
                    head = self._head(user, raw)
                    if head is not None:
                        yield user, head
                if int(cursor) == 0:
                    break

    async def read(self, user: bytes) -> History | None:
        """See `End.read`."""
        history, _ = await self._read(user)
        return history

    async def put(self, before: History | None, after: History) -> bool:
        """See `End.put`."""
        there, raw = await self._read(after.user)
        if there is not None and (before is None or there.version != before.version):
            return False
        clock = 0 if len(raw) < HEADER_BYTES else self._headers.read(raw[:HEADER_BYTES], after.user).clock
        whole = self._headers.write(after, clock_after(clock)).raw + after.events.tobytes()
        keys = (self._keys.log(after.user), self._keys.appends(after.user))
        command: Command = ("EVAL", _PUT, len(keys), *keys, raw[:HEADER_BYTES], whole)
        (is_done,) = await self._client.call("migrate", keys[0], [command], self._timeout_s)
        return bool(is_done)

    async def delete(self, user: bytes, generation: bytes) -> bool:
        """See `End.delete`."""
        there, raw = await self._read(user)
        if there is None or there.generation != generation:
            return False
        return await self._log.expire(user, raw[:HEADER_BYTES])

    async def _read(self, user: bytes) -> tuple[History | None, bytes]:
        """The history, and what is there. Raises DataError."""
        key = self._keys.log(user)
        (raw,) = await self._client.call("migrate", key, [("GET", key)], self._timeout_s)
        if raw is None:
            return None, b""
        first = 80 if raw[4:6] == b"\1\0" else HEADER_BYTES
        try:
            header = self._headers.read(raw[:first], user)
        except Unfit as error:
            raise DataError(f"the log at {key} in Redis is damaged ({error.reason})") from error
        if header.ended is not None:
            return None, raw
        size = (header.length - header.base) * 24
        content = raw[first : first + size]
        facts = (header.generation, header.base, header.length, header.base_link, header.link)
        history = LogRecord("", user, *facts, 0, content).history()
        if history is None:
            raise DataError(f"the log at {key} in Redis is damaged (hash)")
        return history, raw

    def _head(self, user: bytes, raw: bytes) -> Head | None:
        first = 80 if raw[4:6] == b"\1\0" else HEADER_BYTES
        try:
            header = self._headers.read(raw[:first], user)
        except Unfit:
            return Head(b"", 0, raw)  # it is read, and named as damaged
        return None if header.ended is not None else Head(header.generation, header.length, header.link)
