"""A log is moved between a file and Redis while it is written to: afterwards both hold the same, to the version."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loadtest.faults.redis_server import RedisServer
from mfalcon.cli.log_migrate import RedisPlace, to_file, to_redis
from mfalcon.errors import ConfigError
from mfalcon.history.directory_lock import DirectoryLock
from mfalcon.history.history import Retention, no_history
from mfalcon.history.log import EventLog
from mfalcon.history.redis_log import LogOptions, RedisLog
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, RedisSettings
from mfalcon.redis.keys import Keys
from mfalcon.types import Append
from tests.history.logs import opened
from tests.small import random_events

USERS = [f"user-{number}" for number in range(60)]
RETENTION = Retention(max_events=70, slack=32)
SECRET = b"0123456789abcdef"


@asynccontextmanager
async def redis_log(server: RedisServer, prefix: str = "m") -> AsyncIterator[RedisLog]:
    metrics = StateMetrics()
    client = RedisClient(RedisSettings(server.url, 5.0, 5.0), metrics)
    try:
        yield RedisLog(client, Keys(prefix), RETENTION, metrics, LogOptions(secret=SECRET))
    finally:
        await client.close()


async def write(log: EventLog, seed: int, stop: asyncio.Event) -> None:
    """Append and delete, until told to stop."""
    rng, now = random.Random(seed), seed * 10**13
    while not stop.is_set():
        now += 10**10
        user_id = rng.choice(USERS)
        if rng.random() < 0.1:
            await log.delete(user_id, None)
        else:
            await log.append(user_id, Append(random_events(rng.choice([1, 3, 40]), rng.randrange(99), now)), None)
        await asyncio.sleep(0.001)


async def assert_same(one: EventLog, other: EventLog) -> None:
    num_empty = 0
    for user_id in USERS:
        ours, theirs = [(await log.read(user_id, 5.0)).history for log in (one, other)]
        assert (ours.generation, ours.base, len(ours), ours.version) == (
            theirs.generation,
            theirs.base,
            len(theirs),
            theirs.version,
        )
        assert ours.events.tobytes() == theirs.events.tobytes()
        num_empty += not ours.generation
    assert num_empty < len(USERS) / 2


async def test_a_log_moves_to_redis_and_back_while_it_is_written_to(redis_server: RedisServer, tmp_path: Path) -> None:
    place, said = RedisPlace(redis_server.url, "m", SECRET), list[str]()
    stop = asyncio.Event()
    async with opened("file", tmp_path / "first") as one:
        for number, user_id in enumerate(USERS):
            await one.log.append(user_id, Append(random_events(number + 1, number)), None)
        writer = asyncio.create_task(write(one.log, 1, stop))
        moving = asyncio.create_task(
            to_redis(tmp_path / "first", place, once=False, delete_others=False, say=said.append)
        )
        await asyncio.sleep(1.0)
        assert not moving.done()  # it follows
        stop.set()
        await writer
    assert await asyncio.wait_for(moving, 30)
    assert any("following" in line or "a pass over" in line for line in said)
    async with opened("file", tmp_path / "first") as one, redis_log(redis_server) as redis:
        await assert_same(one.log, redis)

    stop.clear()
    async with redis_log(redis_server) as redis:
        writer = asyncio.create_task(write(redis, 2, stop))
        moving = asyncio.create_task(to_file(place, tmp_path / "second", delete_others=False, say=said.append))
        await asyncio.sleep(1.0)
        stop.set()
        await writer
        assert await asyncio.wait_for(moving, 30)
        assert await to_file(place, tmp_path / "second", delete_others=True, say=said.append)
        async with opened("file", tmp_path / "second") as one:
            await assert_same(redis, one.log)
            told = await one.log.append("user-3", Append(random_events(1, 1, 10**14)), None)
            assert told.history_len >= 1  # whose id the file learns by that


async def test_what_did_not_come_from_the_source_is_left_alone(redis_server: RedisServer, tmp_path: Path) -> None:
    place, said = RedisPlace(redis_server.url, "m", SECRET), list[str]()
    async with opened("file", tmp_path) as one, redis_log(redis_server) as redis:
        await one.log.append("ann", Append(random_events(3)), None)
        await one.log.append("bob", Append(random_events(3)), None)
        await redis.append("ann", Append(random_events(2, 7)), None)
        await redis.append("carl", Append(random_events(2, 7)), None)
        theirs = (await redis.read("ann", 5.0)).history.version
    assert not await to_redis(tmp_path, place, once=True, delete_others=False, say=said.append)
    assert f"another history in the target: {no_history('ann').user.hex()}" in said
    assert "1 users are in the target alone; --delete-others deletes them" in said
    assert said[-1] == "1 of 2 users are the same in both logs"
    async with redis_log(redis_server) as redis:
        assert (await redis.read("ann", 5.0)).history.version == theirs
        assert len((await redis.read("bob", 5.0)).history) == 3
        told = await redis.append("bob", Append(random_events(1, 1, 10**14)), None)
        assert told.history_len == 4
    # A second move does not take back what was acknowledged since the first one.
    assert not await to_redis(tmp_path, place, once=True, delete_others=True, say=said.append)
    async with redis_log(redis_server) as redis:
        assert len((await redis.read("bob", 5.0)).history) == 4
        assert len((await redis.read("carl", 5.0)).history) == 0


async def test_a_target_that_is_in_use_is_refused(redis_server: RedisServer, tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    try:
        with pytest.raises(ConfigError, match="is in use by process"):
            await to_file(RedisPlace(redis_server.url, "m", None), tmp_path, delete_others=False, say=print)
    finally:
        lock.release()


async def test_damage_is_named_and_the_rest_moves(redis_server: RedisServer, tmp_path: Path) -> None:
    place, said = RedisPlace(redis_server.url, "m", SECRET), list[str]()
    async with redis_log(redis_server) as redis:
        for user_id in ("ann", "bob"):
            await redis.append(user_id, Append(random_events(3)), None)
    key = Keys("m").log(no_history("ann").user)
    redis_server.command("SETRANGE", key, 120, b"?")
    assert not await to_file(place, tmp_path, delete_others=False, say=said.append)
    assert f"damaged in the source: {no_history('ann').user.hex()}" in said
    async with opened("file", tmp_path) as one:
        assert len(one.log) == 1
        assert len((await one.log.read("bob", 5.0)).history) == 3
