"""A cluster: the fault of one master, or of one key, is nobody else's."""

import asyncio
from collections.abc import Callable

import pytest

from loadtest.faults.redis_cluster import RedisCluster
from loadtest.faults.redis_server import RedisServer
from mfalcon.errors import StorageUnavailable
from mfalcon.history.history import Retention, no_history
from mfalcon.history.redis_log import RedisLog
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.breaker import Breaker
from mfalcon.redis.client import RedisClient, RedisSettings
from mfalcon.redis.keys import Keys
from mfalcon.types import Append
from tests.small import random_events

KEYS = Keys("t")
USERS = [f"u{number}" for number in range(48)]


def key(user_id: str) -> str:
    return KEYS.log(no_history(user_id).user)


def _kill(server: RedisServer) -> None:
    server.kill()


def _freeze(server: RedisServer) -> None:
    server.freeze()


@pytest.mark.parametrize("fault", [_kill, _freeze])
async def test_a_dead_master_costs_users_of_the_others_no_append(
    redis_cluster: RedisCluster, fault: Callable[[RedisServer], None]
) -> None:
    metrics = StateMetrics()
    client = RedisClient(RedisSettings(redis_cluster.url, 0.5, 2.0), metrics)
    log = RedisLog(client, KEYS, Retention(200, 64), metrics)
    failed: dict[str, list[str]] = {user_id: [] for user_id in USERS}
    appended = dict.fromkeys(USERS, 0)
    is_over = False

    async def keep_appending(user_id: str) -> None:
        while not is_over:
            events = random_events(1, 0, 10**12 + appended[user_id] * 10**9)
            try:
                appended[user_id] = (await log.append(user_id, Append(events), None)).history_len
            except StorageUnavailable as error:
                failed[user_id].append(str(error))
            await asyncio.sleep(0.02)

    try:
        client.start()
        writers = [asyncio.create_task(keep_appending(user_id)) for user_id in USERS]
        for _ in range(500):
            if all(appended.values()):
                break
            await asyncio.sleep(0.02)
        dead = redis_cluster.servers[0]  # the first seed of the URL
        theirs = {user_id for user_id in USERS if str(dead.port) in client.node(key(user_id))}
        assert theirs and len(theirs) < len(USERS)
        fault(dead)
        before = dict(appended)
        await asyncio.sleep(3.5)  # three probes of half a second, with pauses, and what a busy machine adds
        is_over = True
        await asyncio.gather(*writers)
        others = set(USERS) - theirs
        assert {user_id: failed[user_id] for user_id in others if failed[user_id]} == {}
        assert all(failed[user_id] for user_id in theirs)
        assert not any(client.available(key(user_id)) for user_id in theirs)
        assert all(client.available(key(user_id)) for user_id in others)
        assert all(appended[user_id] > before[user_id] for user_id in others)
    finally:
        await client.close()


async def test_a_layout_that_changed_is_followed_whoever_finds_out(redis_cluster: RedisCluster) -> None:
    """Slots that move under many writers: each MOVED is followed, and the layout is then known to all."""
    metrics = StateMetrics()
    client = RedisClient(RedisSettings(redis_cluster.url, 2.0, 2.0), metrics)
    log = RedisLog(client, KEYS, Retention(200, 64), metrics)
    masters: dict[str, str] = {}
    try:
        for number, user_id in enumerate(USERS[:12]):
            await log.append(user_id, Append(random_events(5, number), 0), None)
        for number, user_id in enumerate(USERS[:12]):
            slot = redis_cluster.servers[0].command("CLUSTER", "KEYSLOT", key(user_id))
            assert isinstance(slot, int)
            target = redis_cluster.servers[number % 3]
            await asyncio.to_thread(redis_cluster.move_slot, slot, target)
            later = random_events(5, number, 10**13)
            assert (await log.append(user_id, Append(later, 5), None)).history_len == 10
            masters[user_id] = str(target.port)
        # A layout that was asked for before a move may come after it: then the next call is told once more.
        for _ in range(200):
            if all(port in client.node(key(user_id)) for user_id, port in masters.items()):
                break
            for user_id in masters:
                assert len((await log.read(user_id, 5.0)).history) == 10
            await asyncio.sleep(0.05)
        else:
            pytest.fail(f"{masters}: {[client.node(key(user_id)) for user_id in masters]}")
    finally:
        await client.close()


async def test_one_slow_key_opens_no_breaker(redis_server: RedisServer) -> None:
    """A value that takes longer than its caller waits says nothing of the server; silence towards two users does."""
    client = RedisClient(RedisSettings(redis_server.url, 0.05, 2.0), StateMetrics())
    try:
        for _ in range(6):
            with pytest.raises(StorageUnavailable, match="timeout"):
                await client.call("test", "slow", [("BLPOP", "slow", 1)], 0.05)
        assert client.available("other") and await client.call("test", "other", [("PING",)], 5)
    finally:
        await client.close()


def test_the_breaker_counts_only_what_may_be_the_servers_own_fault() -> None:
    of_one_key, of_two, probed = (Breaker(3, lambda _: None) for _ in range(3))
    for _ in range(10):
        of_one_key.failed("a")
    for key_of_a_user in ("a", "b", "a"):
        of_two.failed(key_of_a_user)
    for _ in range(2):
        probed.failed("a")
    probed.failed()
    assert not of_one_key.open
    assert of_two.open and probed.open
