"""What is acknowledged is as durable as was asked: real servers with a disk and a replica, and without."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest

from loadtest.faults.redis_cluster import RedisCluster
from loadtest.faults.redis_sentinel import RedisSentinel
from loadtest.faults.redis_server import HOST, RedisServer
from mfalcon.engine.redis_parts import RedisOptions, RedisParts
from mfalcon.errors import ConfigError, StorageUnavailable
from mfalcon.history.durability import Durability, is_reached, wait_command
from mfalcon.history.history import Retention, no_history
from mfalcon.history.redis_header import HEADER_BYTES
from mfalcon.history.redis_log import LogOptions, RedisLog
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, RedisSettings
from mfalcon.redis.keys import Keys
from mfalcon.types import Append
from tests.redis_fixtures import OwnRedis
from tests.small import random_events

RETENTION = Retention(200, 64)
MakeLog = Callable[..., RedisLog]
PATIENCE_S = 60.0


@pytest.fixture
async def make_log() -> AsyncIterator[MakeLog]:
    clients = []

    def make(url: str, durability: Durability, write_timeout_s: float = 2.0) -> RedisLog:
        clients.append(RedisClient(RedisSettings(url, 2.0, write_timeout_s), StateMetrics()))
        clients[-1].start()  # a breaker that has opened is closed by a probe
        return RedisLog(clients[-1], Keys("t"), RETENTION, StateMetrics(), LogOptions(durability=durability))

    yield make
    for client in clients:
        await client.close()


def with_replica(master: RedisServer, own_redis: OwnRedis) -> RedisServer:
    replica = own_redis(arguments=("--replicaof", f"{HOST} {master.port}"))
    return replica


async def in_step(master: RedisServer, replica: RedisServer) -> None:
    for _ in range(1200):
        if "state=online" in master.text("INFO", "replication") and "link_status:up" in replica.text("INFO"):
            return
        await asyncio.sleep(0.05)


async def refused(append: Callable[[], Awaitable[object]]) -> StorageUnavailable:
    """What an append says that waits in vain; a loop that was held up as long as that takes its connection for dead."""
    for _ in range(10):
        with pytest.raises(StorageUnavailable) as told:
            await append()
        if "the connection failed" not in str(told.value):
            break
    return told.value


async def test_a_replica_has_what_is_acknowledged(own_redis: OwnRedis, make_log: MakeLog) -> None:
    master = own_redis(arguments=("--repl-diskless-sync-delay", "0"))
    replica = with_replica(master, own_redis)
    log, hasty = make_log(master.url, "replica", PATIENCE_S), make_log(master.url, "replica")
    events = random_events(20)
    await in_step(master, replica)
    assert (await log.append("ann", Append(events[:10], append_id="a"), None)).history_len == 10
    assert replica.command("STRLEN", Keys("t").log((await log.read("ann", 2)).history.user)) == HEADER_BYTES + 10 * 24
    replica.freeze()
    for attempt in range(2):  # the second one finds it written, and the replica still without it
        late = await refused(lambda: hasty.append("ann", Append(events[10:], 10, append_id="b"), None))
        assert "not yet in a replica of Redis; it may have been written" in str(late)
        assert late.may_be_done, attempt
        assert len((await log.read("ann", 2)).history) == 20
    replica.thaw()
    told = await log.append("ann", Append(events[10:], 10, append_id="b"), None)
    assert told.was_written and told.history_len == 20
    assert replica.command("STRLEN", Keys("t").log((await log.read("ann", 2)).history.user)) == HEADER_BYTES + 20 * 24


async def test_an_append_whose_wait_is_refused_may_be_written(own_redis: OwnRedis, make_log: MakeLog) -> None:
    """The master becomes a replica while the append waits for one: Redis does not wait on, but what it ran is done."""
    master, other = own_redis(), own_redis()
    log = make_log(master.url, "replica", PATIENCE_S)
    append = asyncio.create_task(log.append("ann", Append(random_events(5)), None))
    for _ in range(6000):
        if master.command("EXISTS", Keys("t").log(no_history("ann").user)):
            break
        await asyncio.sleep(0.01)
    master.command("REPLICAOF", HOST, other.port)
    with pytest.raises(StorageUnavailable, match=r"Redis refused.*it may have been written") as refused:
        await append
    assert refused.value.may_be_done


async def test_a_deletion_is_as_durable_as_an_append(own_redis: OwnRedis, make_log: MakeLog) -> None:
    master = own_redis(arguments=("--repl-diskless-sync-delay", "0"))
    replica = with_replica(master, own_redis)
    await in_step(master, replica)
    log, key = make_log(master.url, "replica", PATIENCE_S), Keys("t").log(no_history("ann").user)
    hasty = make_log(master.url, "replica")
    await log.append("ann", Append(random_events(10)), None)
    generation = (await log.read("ann", 2)).history.generation
    replica.freeze()
    for _ in range(2):
        with pytest.raises(StorageUnavailable, match="erased, but not yet in a replica of Redis; ask again") as late:
            await hasty.delete("ann", None)
        assert late.value.may_be_done
    replica.thaw()
    assert await log.delete("ann", None) == generation
    assert replica.command("GET", key) == master.command("GET", key)
    assert not len((await log.read("ann", 2)).history)


async def test_only_what_was_acknowledged_is_told_as_lost(own_redis: OwnRedis, make_log: MakeLog) -> None:
    """The log goes back by what no replica had, as in a failover, and then by what one had."""
    master = own_redis(arguments=("--repl-diskless-sync-delay", "0"))
    replica = with_replica(master, own_redis)
    await in_step(master, replica)
    log, events = make_log(master.url, "replica", 4.0), random_events(30)
    key = Keys("t").log(no_history("ann").user)
    await log.append("ann", Append(events[:10]), None)
    ten = master.command("GET", key)
    assert isinstance(ten, bytes)
    replica.freeze()
    late = await refused(lambda: log.append("ann", Append(events[10:13], append_id="a"), None))
    assert "not yet in a replica of Redis" in str(late)
    assert len((await log.read("ann", 2)).history) == 13
    master.command("SET", key, ten)
    assert len((await log.read("ann", 2)).history) == 10
    replica.thaw()
    assert (await log.append("ann", Append(events[13:20]), None)).lost_events == 0
    master.command("SET", key, ten)
    assert (await log.append("ann", Append(events[20:]), None)).lost_events == 7


async def test_reads_do_not_wait_for_those_that_wait(own_redis: OwnRedis, make_log: MakeLog) -> None:
    """No replica at all: forty users' appends wait for one, on more connections than reads have."""
    master = own_redis(arguments=("--repl-diskless-sync-delay", "0"))
    log = make_log(master.url, "replica", PATIENCE_S)
    waiting = [asyncio.create_task(log.append(f"u{i}", Append(random_events(1)), None)) for i in range(40)]
    async with asyncio.timeout(PATIENCE_S):
        while [len((await log.read(f"u{i}", PATIENCE_S)).history) for i in range(40)] != [1] * 40:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    with_replica(master, own_redis)
    assert [told.history_len for told in await asyncio.gather(*waiting)] == [1] * 40


async def test_of_a_join_only_what_was_refused_has_another_answer(own_redis: OwnRedis, make_log: MakeLog) -> None:
    log = make_log(own_redis().url, "replica", 2.0)
    appends = (Append(random_events(1)), Append(random_events(1), 7), Append(random_events(1), append_id="a"))
    first = asyncio.create_task(log.append("ann", Append(random_events(1)), None))
    await asyncio.sleep(0)
    ends = await asyncio.gather(*(log.append("ann", append, None) for append in appends), return_exceptions=True)
    assert [isinstance(end, StorageUnavailable) and end.may_be_done for end in ends] == [True, False, True]
    assert "the history has 2 events" in str(ends[1])
    with pytest.raises(StorageUnavailable):
        await first


async def test_the_disk_has_what_is_acknowledged(own_redis: OwnRedis, make_log: MakeLog) -> None:
    server, events = own_redis(append_only=True), random_events(30)
    server.command("CONFIG", "SET", "appendfsync", "everysec")
    log = make_log(server.url, "fsync", PATIENCE_S)
    for stop in (10, 20, 30):
        await log.append("ann", Append(events[stop - 10 : stop]), None)
        server.kill()
        await asyncio.to_thread(server.start)
        server.command("CONFIG", "SET", "appendfsync", "everysec")
        assert len((await log.read("ann", 2)).history) == stop
    server.command("CONFIG", "SET", "appendfsync", "no")
    hasty, append = make_log(server.url, "fsync", 2.0), Append(random_events(1, 1, 10**13), append_id="a")
    assert "not yet on the disk of Redis" in str(await refused(lambda: hasty.append("ann", append, None)))


async def test_a_cluster_waits_on_the_node_of_the_user(make_log: MakeLog) -> None:
    with RedisCluster(arguments=("--appendonly", "yes", "--appendfsync", "always")) as cluster:
        fsync, replica = make_log(cluster.url, "fsync", PATIENCE_S), make_log(cluster.url, "replica", 1.5)
        for number in range(3):
            assert (await fsync.append(f"u{number}", Append(random_events(3)), None)).history_len == 3
            append = partial(replica.append, f"u{number}", Append(random_events(1, 1, 10**13), append_id="a"), None)
            assert "not yet in a replica" in str(await refused(append))


async def test_no_failover_loses_what_a_replica_has(make_log: MakeLog) -> None:
    with RedisSentinel() as sentinel:
        log = make_log(sentinel.url, "replica", PATIENCE_S)
        told = await log.append("ann", Append(random_events(10), append_id="a"), None)
        sentinel.master.kill()
        async with asyncio.timeout(60):
            while True:
                try:
                    history = (await log.read("ann", 0.5)).history
                    break
                except StorageUnavailable:
                    await asyncio.sleep(0.1)
        assert (len(history), history.version) == (10, told.version)


async def check(url: str, durability: Durability) -> None:
    options = RedisOptions(RedisSettings(url, 2.0, 2.0), log=LogOptions(durability=durability))
    parts = RedisParts(options, RETENTION, StateMetrics(), lambda _: None)
    try:
        await parts.start()
    finally:
        await parts.close()


async def test_a_redis_that_cannot_is_refused_at_start(own_redis: OwnRedis, caplog: pytest.LogCaptureFixture) -> None:
    without = own_redis()
    with pytest.raises(ConfigError, match="redis appendonly: got no, must be yes with append_durability fsync"):
        await check(without.url, "fsync")
    await check(own_redis(append_only=True).url, "fsync")
    await check(without.url, "replica")
    assert "a master has no replica" in caplog.text


def test_redis_is_given_less_time_than_the_call_and_never_all_of_it() -> None:
    assert wait_command("memory", 1.0) is None
    assert wait_command("replica", 2.0) == ("WAIT", 1, 1_600)
    assert wait_command("fsync", 1e-9) == ("WAITAOF", 1, 0, 1)
    assert [is_reached("fsync", reply) for reply in ([1, 0], [0, 3])] == [True, False]
    assert [is_reached("replica", reply) for reply in (2, 0)] == [True, False]
