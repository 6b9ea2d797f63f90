"""Deletions, told to every replica: a stream in Redis that each one follows.

No answer depends on it (a state of a deleted user fits no history that is read afterwards); it makes what lies in the
memory of other replicas go within a second. A replica that could not follow for longer than entries live is told to
drop everything.
"""

import time
from dataclasses import dataclass

from mfalcon.redis.client import RedisClient, Reply
from mfalcon.redis.command import Command
from mfalcon.redis.keys import Keys

KEEP_SECONDS = 3_600
_PAGE = 1_000

_ADD = """
local now = redis.call('TIME')
local oldest = (tonumber(now[1]) - tonumber(ARGV[3])) * 1000
local minid = string.format('%.0f', oldest)
return redis.call('XADD', KEYS[1], 'MINID', '~', minid, '*', 'user', ARGV[1], 'generation', ARGV[2])
"""
_NOW = "return redis.call('TIME')"


@dataclass(frozen=True, slots=True)
class Deletion:
    """user: hash. generation: the life of the log that ended."""

    user: bytes
    generation: bytes


class Deletions:
    """The stream. Lives on the event loop."""

    def __init__(self, client: RedisClient, keys: Keys) -> None:
        self._client = client
        self._key = keys.deletions
        self._last: str | None = None
        self._followed_at = 0.0

    async def publish(self, deletion: Deletion) -> None:
        """Tell every replica. Raises StorageUnavailable."""
        command = ("EVAL", _ADD, 1, self._key, deletion.user, deletion.generation, KEEP_SECONDS)
        await self._call(command, self._client.settings.write_timeout_s)

    async def retained(self) -> list[Deletion]:
        """All that the stream still has: those of the last hour, by whichever replica. Raises StorageUnavailable."""
        deletions, _ = await self._after("-")
        return deletions

    async def poll(self) -> list[Deletion] | None:
        """Deletions since the last poll; None if some may have been missed. Raises StorageUnavailable."""
        now = time.monotonic()
        missed = self._last is not None and now - self._followed_at > KEEP_SECONDS / 2
        if self._last is None or missed:
            seconds, microseconds = await self._call(("EVAL", _NOW, 1, self._key), self._client.settings.timeout_s)
            self._last = f"{int(seconds) * 1000 + int(microseconds) // 1000}"
            self._followed_at = now
            return None if missed else []
        deletions, last = await self._after(f"({self._last}")
        self._last, self._followed_at = last or self._last, now
        return deletions

    async def _after(self, first: str) -> tuple[list[Deletion], str]:
        """Deletions from an entry on, and the id of the last entry, "" if there is none. Raises StorageUnavailable."""
        deletions, last = list[Deletion](), ""
        while True:
            command = ("XRANGE", self._key, f"({last}" if last else first, "+", "COUNT", _PAGE)
            entries = await self._call(command, self._client.settings.timeout_s)
            for entry_id, fields in entries:
                last = entry_id.decode()
                if b"user" in fields and b"generation" in fields:
                    deletions.append(Deletion(fields[b"user"], fields[b"generation"]))
            if len(entries) < _PAGE:
                return deletions, last

    async def _call(self, command: Command, timeout_s: float) -> Reply:
        (reply,) = await self._client.call("deletions", self._key, [command], timeout_s)
        return reply
