"""Real Redis for tests: `redis_server`, `redis_cluster`, and `own_redis` for tests that kill what they talk to."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

import pytest
import redis

from loadtest.faults.redis_cluster import RedisCluster
from loadtest.faults.redis_server import RedisServer, Reply

__all__ = [
    "OwnRedis",
    "keys_left",
    "own_redis",
    "redis_cluster",
    "redis_server",
    "session_redis_cluster",
    "session_redis_server",
]


class OwnRedis(Protocol):
    """Starts a server that ends with the test; the options are those of `RedisServer`."""

    def __call__(
        self,
        *,
        append_only: bool = False,
        arguments: Sequence[str] = (),
        tls: bool = False,
        password: str | None = None,
    ) -> RedisServer: ...


@pytest.fixture(scope="session")
def session_redis_server() -> Iterator[tuple[RedisServer, dict[str, str]]]:
    """A server and its settings as it started."""
    with RedisServer() as server:
        yield server, _settings(server)


@pytest.fixture
def redis_server(session_redis_server: tuple[RedisServer, dict[str, str]]) -> RedisServer:
    """Running, thawed, empty and with its first settings, whatever the last test did; the same URL for every test."""
    server, settings = session_redis_server
    if server.running:
        server.thaw()
    if not _answers_with(server, settings):
        server.kill()
        server.start()
    server.flush()
    return server


@pytest.fixture(scope="session")
def session_redis_cluster() -> Iterator[RedisCluster]:
    """Three masters; two seconds to start."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(session_redis_cluster: RedisCluster) -> RedisCluster:
    """Running, thawed and empty; slots stay where the last test moved them."""
    session_redis_cluster.restore()
    return session_redis_cluster


@pytest.fixture
def own_redis() -> Iterator[OwnRedis]:
    """A factory of servers that nobody else uses."""
    with ExitStack() as stack:

        def start(
            *,
            append_only: bool = False,
            arguments: Sequence[str] = (),
            tls: bool = False,
            password: str | None = None,
        ) -> RedisServer:
            server = RedisServer(append_only=append_only, arguments=arguments, tls=tls, password=password)
            return stack.enter_context(server)

        yield start


def keys_left(server: RedisServer, pattern: str) -> list[str]:
    """Keys that fit a pattern, without tombstones of deleted logs, which have no events and expire."""
    names = server.command("KEYS", pattern)
    assert isinstance(names, list)
    return [name for name in map(_word, names) if not (name.endswith(":log") and _is_tombstone(server, name))]


def _is_tombstone(server: RedisServer, name: str) -> bool:
    expires, size = server.command("TTL", name), server.command("STRLEN", name)
    assert isinstance(expires, int)
    return size == 112 and expires > 0


def _answers_with(server: RedisServer, settings: dict[str, str]) -> bool:
    """False also for a server that is dead or still obeys a CLIENT PAUSE."""
    try:
        return _settings(server) == settings
    except (redis.ConnectionError, redis.TimeoutError):
        return False


def _settings(server: RedisServer) -> dict[str, str]:
    reply = server.command("CONFIG", "GET", "*")
    assert isinstance(reply, list)
    words = [_word(word) for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))


def _word(reply: Reply) -> str:
    assert isinstance(reply, bytes)
    return reply.decode()
