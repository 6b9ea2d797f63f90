"""The move of an event log between a file and Redis: passes while it is written to, and when they end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from mfalcon.errors import ConfigError
from mfalcon.history.directory_lock import DirectoryLock
from mfalcon.history.file_store import FILE_NAME
from mfalcon.history.history import Retention
from mfalcon.history.migration import Migration, Pass
from mfalcon.history.migration_ends import FileEnd, RedisEnd
from mfalcon.history.redis_header import Headers
from mfalcon.history.redis_log import LogOptions, RedisLog
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, RedisSettings
from mfalcon.redis.keys import Keys

Say = Callable[[str], None]

_TIMEOUT_S = 10.0
_MIN_SECRET_BYTES = 16
_NAMED = 20
_AGAIN_S = 1.0
_RETENTION = Retention(10**9, 0)
"""Nothing is cut on the way: what a server keeps is its own setting."""


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """Where logs are in Redis. secret: signs them."""

    url: str = field(repr=False)
    prefix: str
    secret: bytes | None = field(repr=False)


def read_secret(path: Path) -> bytes:
    """The secret of a file. Raises ConfigError."""
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"redis_secret_file: cannot read {path}: {error.strerror}") from error
    if len(secret) < _MIN_SECRET_BYTES:
        raise ConfigError(f"redis_secret_file: got {len(secret)} bytes, must be at least {_MIN_SECRET_BYTES}")
    return secret


async def to_redis(directory: Path, place: RedisPlace, *, once: bool, delete_others: bool, say: Say) -> bool:
    """Move a file's histories to Redis; returns whether all of them are there. Ends when the file's server has ended
    and a pass after that found nothing, or with `once` when a pass found nothing.
    """
    if not (directory / FILE_NAME).is_file():
        raise ConfigError(f"{directory}: holds no event log ({FILE_NAME})")
    source = FileEnd(directory, writes=False)
    lock: DirectoryLock | None = None
    try:
        async with _redis(place) as target:
            migration, is_told = Migration(source, target, replace_others=delete_others), False
            while True:
                lock = lock or _lock_if_free(directory)
                told = await migration.run_pass()
                if not told.is_quiet:
                    say(_words(told))
                elif lock is not None or once:
                    return await _finish(migration, target, told, delete_others=delete_others, say=say)
                elif not is_told:
                    is_told = True
                    say(f"{told.users:,} users are in Redis; following. Stop the server of {directory} to finish")
                if told.is_quiet:
                    await asyncio.sleep(_AGAIN_S)
    finally:
        await source.close()
        if lock is not None:
            lock.release()


async def to_file(place: RedisPlace, directory: Path, *, delete_others: bool, say: Say) -> bool:
    """Move the histories in Redis to a file; returns whether all of them are there. Ends when a pass found nothing; run
    it once more when the servers have ended.
    """
    lock = DirectoryLock(directory)
    try:
        target = FileEnd(directory, writes=True)
        try:
            async with _redis(place) as source:
                migration = Migration(source, target, replace_others=delete_others)
                while not (told := await migration.run_pass()).is_quiet:
                    say(_words(told))
                is_whole = await _finish(migration, target, told, delete_others=delete_others, say=say)
                say("If servers still write to Redis, stop them and run this again")
                return is_whole
        finally:
            await target.close()
    finally:
        lock.release()


async def _finish(
    migration: Migration, target: FileEnd | RedisEnd, told: Pass, *, delete_others: bool, say: Say
) -> bool:
    others = await migration.only_there()
    if delete_others:
        for user, head in others:
            await target.delete(user, head.generation)
        say(f"{len(others):,} users whom the source does not have were deleted")
    elif others:
        say(f"{len(others):,} users are in the target alone; --delete-others deletes them")
    for what, users in (("damaged in the source", told.damaged), ("another history in the target", told.conflicts)):
        for user in users[:_NAMED]:
            say(f"{what}: {user.hex()}")
    left = len(told.damaged) + len(told.conflicts)
    say(f"{told.users - left:,} of {told.users:,} users are the same in both logs")
    return not left


def _words(told: Pass) -> str:
    return f"a pass over {told.users:,} users copied {told.copied:,} and deleted {told.deleted:,}"


def _lock_if_free(directory: Path) -> DirectoryLock | None:
    with contextlib.suppress(ConfigError):
        return DirectoryLock(directory)
    return None


@contextlib.asynccontextmanager
async def _redis(place: RedisPlace) -> AsyncIterator[RedisEnd]:
    metrics, keys = StateMetrics(), Keys(place.prefix)
    client = RedisClient(RedisSettings(place.url, _TIMEOUT_S, _TIMEOUT_S), metrics)
    client.start()
    try:
        log = RedisLog(client, keys, _RETENTION, metrics, LogOptions(cache_bytes=0, secret=place.secret))
        yield RedisEnd(client, keys, Headers(place.secret), log)
    finally:
        await client.close()
