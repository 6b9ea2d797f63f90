"""A proxied server answers the same, later. Times have lower bounds only: a busy machine can but make them longer."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from loadtest.faults.redis_server import RedisServer
from loadtest.faults.slow_proxy import SlowProxy

PATIENCE_S = 5.0


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[SlowProxy]:
    with SlowProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: SlowProxy) -> Iterator[redis.Redis]:
    """Connected, so that a connection's own round trips are in no measurement."""
    with redis.Redis.from_url(proxy.url, socket_timeout=PATIENCE_S, retry=Retry(NoBackoff(), 0)) as client:
        client.ping()
        yield client


def test_bytes_pass_unchanged(client: redis.Redis, redis_server: RedisServer) -> None:
    value = bytes(range(256)) * 4096
    client.set("key", value)
    assert client.get("key") == value
    assert redis_server.command("GET", "key") == value


def test_every_reply_is_delayed(proxy: SlowProxy, client: redis.Redis) -> None:
    proxy.delay_s = 0.05
    began = time.monotonic()
    for _ in range(4):
        client.ping()
    assert time.monotonic() - began >= 4 * 0.05


def test_delay_is_not_a_throttle(proxy: SlowProxy, client: redis.Redis) -> None:
    """A reply of 256 chunks under a delay of 100 ms: chunk after chunk it would take 26 s, five times the client's
    patience.
    """
    client.set("key", bytes(1 << 24))
    proxy.delay_s = 0.1
    assert client.strlen("key") == len(client.get("key") or b"")


def test_delay_can_exceed_the_patience_of_a_client(proxy: SlowProxy, client: redis.Redis) -> None:
    proxy.delay_s = 60.0
    with redis.Redis.from_url(proxy.url, socket_timeout=0.05, retry=Retry(NoBackoff(), 0)) as hasty:
        with pytest.raises(redis.TimeoutError):
            hasty.ping()
        proxy.delay_s = 0.0
    assert client.ping()


def test_throttle_bounds_both_directions(proxy: SlowProxy, client: redis.Redis) -> None:
    value = bytes(20_000)
    proxy.bytes_per_second = 100_000
    exchanges: tuple[Callable[[], object], ...] = (lambda: client.set("key", value), lambda: client.get("key"))
    for exchange in exchanges:
        began = time.monotonic()
        exchange()
        assert time.monotonic() - began >= len(value) / 100_000


def test_dropped_connections_are_reset_and_new_ones_work(proxy: SlowProxy, client: redis.Redis) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_S) as raw:
        raw.sendall(b"PING\r\n")
        assert raw.recv(100) == b"+PONG\r\n"
        proxy.drop()
        with pytest.raises(ConnectionResetError):
            raw.recv(100)
    assert client.ping()


def test_server_that_is_down_closes_the_connection(proxy: SlowProxy, redis_server: RedisServer) -> None:
    redis_server.kill()
    with (
        redis.Redis.from_url(proxy.url, socket_timeout=PATIENCE_S, retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(redis.ConnectionError),
    ):
        client.ping()
    redis_server.start()
    with redis.Redis.from_url(proxy.url, socket_timeout=PATIENCE_S, retry=Retry(NoBackoff(), 0)) as client:
        assert client.ping()


def test_a_direction_that_stalls_passes_nothing_until_it_is_resumed(
    proxy: SlowProxy, redis_server: RedisServer
) -> None:
    """Where replies stall what was asked is done; where requests do, it is not."""
    for replies, done in ((True, b"1"), (False, None)):
        redis_server.flush()
        with redis.Redis.from_url(proxy.url, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client:
            client.ping()
            proxy.stall(replies=replies, requests=not replies)
            with pytest.raises(redis.TimeoutError):
                client.set("key", 1)
            assert redis_server.command("GET", "key") == done
            proxy.drop()
            proxy.resume()
        with redis.Redis.from_url(proxy.url, socket_timeout=PATIENCE_S, retry=Retry(NoBackoff(), 0)) as client:
            assert client.ping()


def test_what_waited_is_passed_on(proxy: SlowProxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(99) == b"+PONG\r\n"
        proxy.stall(replies=False, requests=True)
        connection.sendall(b"ECHO late\r\n")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(99)
        proxy.resume()
        connection.settimeout(PATIENCE_S)
        assert connection.recv(99) == b"$4\r\nlate\r\n"
