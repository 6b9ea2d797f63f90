"""A client of Sentinel is with the master that is named, and with no other: also where another one still answers."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from loadtest.faults.redis_sentinel import RedisSentinel
from loadtest.faults.redis_server import HOST, RedisServer
from mfalcon.errors import StorageUnavailable
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, RedisSettings
from mfalcon.redis.sentinel import Named, newest

WAIT_S = 60.0
A, B = ("a", 1), ("b", 2)


@pytest.fixture
def sentinel() -> Iterator[RedisSentinel]:
    with RedisSentinel() as running:
        yield running


async def on_port(client: RedisClient) -> int:
    """The port of the server that answers."""
    ((_, port),) = await client.call("test", "k", [("CONFIG", "GET", "port")], WAIT_S)
    return int(port)


async def asked_from_many(client: RedisClient, number: int = 8) -> set[int]:
    return set(await asyncio.gather(*(on_port(client) for _ in range(number))))


def name_another(sentinel: RedisSentinel) -> RedisServer:
    """As where a failover took place and the old master, cut off from the sentinels, does not know."""
    old = sentinel.master
    (new,) = (server for server in sentinel.servers if server is not old)
    new.command("REPLICAOF", "NO", "ONE")
    sentinel.sentinel.command("SENTINEL", "REMOVE", sentinel.NAME)
    sentinel.sentinel.command("SENTINEL", "MONITOR", sentinel.NAME, HOST, new.port, 1)
    return new


async def test_connections_to_a_master_that_was_replaced_are_not_used(sentinel: RedisSentinel) -> None:
    client = RedisClient(RedisSettings(sentinel.url, WAIT_S, WAIT_S), StateMetrics())
    try:
        client.start()
        assert await asked_from_many(client) == {sentinel.master.port}
        new = await asyncio.to_thread(name_another, sentinel)
        until = time.monotonic() + WAIT_S
        while await asked_from_many(client) != {new.port}:  # the old one answers as before
            assert time.monotonic() < until, "connections to the old master are still used"
            await asyncio.sleep(0.05)
        assert await asked_from_many(client, 24) == {new.port}
    finally:
        await client.close()


async def test_a_replica_is_not_taken_for_the_master(sentinel: RedisSentinel) -> None:
    """The sentinel goes on to name it: for some seconds it believes that this may change."""
    client = RedisClient(RedisSettings(sentinel.url, WAIT_S, WAIT_S), StateMetrics())
    try:
        master, (replica,) = sentinel.master, [each for each in sentinel.servers if each is not sentinel.master]
        replica.command("REPLICAOF", "NO", "ONE")
        master.command("REPLICAOF", HOST, replica.port)
        with pytest.raises(StorageUnavailable, match="the connection failed"):
            await on_port(client)
    finally:
        await client.close()


def test_who_knows_of_the_last_failover_is_believed() -> None:
    assert newest([]) is None
    assert newest([Named(A, 3, False), Named(B, 4, False), Named(A, 3, False)]) == B
    assert newest([Named(B, 4, True), Named(B, 4, False)]) == B
    assert newest([Named(A, 3, False), Named(B, 4, True)]) is None
