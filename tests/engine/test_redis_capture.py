"""A user whom one replica deletes is unreadable in the captures of another: while that runs, and when it is back."""

import asyncio
from pathlib import Path

from loadtest.faults.redis_server import RedisServer
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.redis.client import RedisSettings
from mfalcon.types import Append
from tests.capture.capturing import capturing, counted, options, read_all, until_written
from tests.engine.replicas import CHECKPOINT, ITEMS, PATIENCE_S
from tests.small import random_events, rank_request

EVENTS = random_events(20)


def shared(server: RedisServer) -> HistoryOptions:
    return HistoryOptions(redis=RedisOptions(RedisSettings(server.url, PATIENCE_S, PATIENCE_S), prefix="t"))


def users(directory: Path) -> list[str]:
    return [one.raw.user.removeprefix("tag of ") for one in read_all(directory)[0]]


async def test_another_replica_deletes(redis_server: RedisServer, tmp_path: Path) -> None:
    captures = [options(tmp_path / name, one_life=True) for name in ("here", "there")]
    async with capturing(captures[1], CHECKPOINT, histories=shared(redis_server)) as there:
        async with capturing(captures[0], CHECKPOINT, histories=shared(redis_server)) as here:
            for user in ("ann", "bob", "cid"):
                await there.append_events(user, Append(EVENTS))
                await here.rank(rank_request(user, ITEMS), None)
            await until_written(here, 3)
            await there.delete_user("ann")
            async with asyncio.timeout(60):
                while not counted(here.metrics, "mfalcon_capture_deleted_users_total"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert users(tmp_path / "here") == ["bob", "cid"]
        await there.delete_user("bob")  # while the other one is down
        assert users(tmp_path / "here") == ["bob", "cid"]
        async with capturing(captures[0], CHECKPOINT, histories=shared(redis_server)) as here:
            async with asyncio.timeout(60):
                while not counted(here.metrics, "mfalcon_capture_deleted_users_total"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert users(tmp_path / "here") == ["cid"]
            for user in ("ann", "bob"):  # they are back: what is captured now is theirs to keep
                await here.append_events(user, Append(EVENTS))
                await here.rank(rank_request(user, ITEMS), None)
            await until_written(here, 2)
        async with capturing(captures[0], CHECKPOINT, histories=shared(redis_server)) as here:
            await here.rank(rank_request("cid", ITEMS), None)
            await until_written(here, 1)
        assert users(tmp_path / "here") == ["cid", "ann", "bob", "cid"]


async def test_a_user_of_another_life_has_lost_what_was_captured_before(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Whoever was away for so long that no deletion is told any more learns of it when the user comes back."""
    capture = options(tmp_path, one_life=True)
    async with capturing(capture, CHECKPOINT, histories=shared(redis_server)) as engine:
        for user in ("ann", "bob"):
            await engine.append_events(user, Append(EVENTS))
            await engine.rank(rank_request(user, ITEMS), None)
    async with capturing(None, CHECKPOINT, histories=shared(redis_server)) as other:
        await other.delete_user("ann")
        await other.append_events("ann", Append(EVENTS))
    redis_server.command("DEL", "t:deletions")
    async with capturing(capture, CHECKPOINT, histories=shared(redis_server)) as engine:
        assert users(tmp_path) == ["ann", "bob"]
        await engine.rank(rank_request("ann", ITEMS), None)
        await until_written(engine, 1)
    assert users(tmp_path) == ["bob", "ann"]
