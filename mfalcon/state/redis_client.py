"""Redis as we use it: one round trip per call, bounded by the caller's time, never retried, refused while it is down.

A caller that gives up leaves its exchange behind: the exchange reads its reply to the end, or until the socket's own
timeout, and only then frees its connection. Nobody else can read that reply, and nothing inside redis-py is ever
cancelled: a cancel in the wrong place there keeps a connection for good. Lives on the event loop.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from mfalcon.errors import StorageUnavailable
from mfalcon.state.breaker import Breaker
from mfalcon.state.metrics import StateMetrics
from mfalcon.state.redis_url import AnyRedis, connect, disconnect

_log = logging.getLogger(__name__)

Command: TypeAlias = tuple[str | bytes | int, ...]
Reply: TypeAlias = Any
"""What hiredis makes of RESP: bytes, int, None or a list of them."""

ERRORS: tuple[type[Exception], ...] = (RedisError, RedisClusterException, OSError)
"""What redis-py raises; TimeoutError is an OSError."""

_SPARE_CONNECTIONS = 8
FAILURES_TO_OPEN = 3
PROBE_SECONDS = 0.2
"""Between two probes: an idle breaker opens after FAILURES_TO_OPEN of them and their timeouts, within 0.75 s."""


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """timeout_s: longest wait of a read. write_timeout_s: of an append or a deletion, which somebody must know the end
    of.
    """

    url: str
    timeout_s: float = 0.04
    write_timeout_s: float = 1.0
    max_connections: int = 32


class RedisClient:
    """Calls that are answered within their time or raise StorageUnavailable."""

    def __init__(self, settings: RedisSettings, metrics: StateMetrics) -> None:
        self.settings = settings
        self._metrics = metrics
        # The semaphore keeps us below the pools' limit: a full pool raises, we wait within the call's time.
        self._slots = asyncio.Semaphore(settings.max_connections)
        self._redis: AnyRedis = connect(
            settings.url, settings.timeout_s, settings.write_timeout_s, settings.max_connections + _SPARE_CONNECTIONS
        )
        self._exchanges: set[asyncio.Task[list[Reply]]] = set()
        self._pings: dict[str, asyncio.Future[object]] = {}
        self._breakers: dict[str, Breaker] = {}
        self._probe: asyncio.Task[None] | None = None

    def start(self, on_alive: Callable[[], Awaitable[None]] | None = None) -> None:
        """Begin to probe; `on_alive` runs after each probe that was answered."""
        self._probe = asyncio.create_task(self._keep_probing(on_alive), name="redis-probe")

    async def close(self) -> None:
        """Stop probing and close the connections."""
        if self._probe is not None:
            self._probe.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probe
        unfinished: set[asyncio.Future[Any]] = {*self._exchanges, *self._pings.values()}
        if unfinished:
            await asyncio.wait(unfinished)
        await disconnect(self._redis)

    def available(self, key: str) -> bool:
        """False while the breaker of the key's node is open."""
        return not self._breaker(self._node(key)).open

    async def call(self, op: str, key: str, commands: Sequence[Command], timeout_s: float) -> list[Reply]:
        """Send commands of one key's slot together and read their replies; one that Redis refuses fails the call.

        Raises StorageUnavailable when the breaker is open, the time is up, the connection breaks or Redis refuses.
        """
        node = self._node(key)
        breaker = self._breaker(node)
        if breaker.open:
            self._metrics.redis_errors.labels(op, "breaker").inc()
            raise StorageUnavailable("Redis does not answer; it is not tried until a probe is answered")
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                replies = await self._begin(commands)
        except (TimeoutError, RedisTimeoutError) as error:
            raise self._failed(op, breaker, "timeout", f"no answer within {timeout_s * 1000:.0f} ms") from error
        except ERRORS as error:
            raise self._refused(op, breaker, error) from error
        breaker.succeeded()
        self._metrics.redis_seconds.labels(op).observe(time.monotonic() - began)
        return replies

    async def info(self, section: str) -> list[Mapping[str, Any]]:
        """INFO of every node that holds data. Raises StorageUnavailable."""
        client = self._redis
        try:
            async with asyncio.timeout(self.settings.write_timeout_s):
                if not isinstance(client, RedisCluster):
                    return [await client.info(section)]
                await client.initialize()
                nodes = client.get_primaries()
                return [await client.execute_command("INFO", section, target_nodes=node) for node in nodes]
        except ERRORS as error:
            raise StorageUnavailable(f"Redis is unreachable: {error}") from error

    async def _begin(self, commands: Sequence[Command]) -> list[Reply]:
        """Start an exchange and wait for it; it goes on when its caller does not."""
        await self._slots.acquire()
        exchange = asyncio.create_task(self._exchange(commands))
        self._exchanges.add(exchange)
        exchange.add_done_callback(self._ended)
        return await asyncio.shield(exchange)

    def _ended(self, exchange: "asyncio.Task[list[Reply]]") -> None:
        self._exchanges.discard(exchange)
        self._slots.release()
        _look_at(exchange)

    async def _exchange(self, commands: Sequence[Command]) -> list[Reply]:
        if len(commands) == 1:
            return [await self._redis.execute_command(*commands[0])]
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute())

    def _refused(self, op: str, breaker: Breaker, error: Exception) -> StorageUnavailable:
        """Count an error. A server that answers with a refusal, whatever it is, keeps nobody waiting."""
        reason = next((reason for kind, reason in _REFUSED.items() if isinstance(error, kind)), None)
        if reason is None and isinstance(error, RedisConnectionError | OSError):
            return self._failed(op, breaker, "connection", str(error))
        if "unauthenticated" in str(error):  # how a server without our password takes a large command
            reason = "auth"
        breaker.succeeded()
        self._metrics.redis_errors.labels(op, reason or "error").inc()
        return StorageUnavailable(f"Redis refused ({reason or 'error'}): {error}")

    def _failed(self, op: str, breaker: Breaker, reason: str, text: str) -> StorageUnavailable:
        breaker.failed()
        self._metrics.redis_errors.labels(op, reason).inc()
        return StorageUnavailable(f"Redis is unreachable ({reason}): {text}", may_be_done=True)

    def _node(self, key: str) -> str:
        """The node that owns the key; one name for all where there is no cluster."""
        if isinstance(self._redis, RedisCluster):
            try:
                return self._redis.get_node_from_key(key).name  # type: ignore[union-attr]
            except (RedisClusterException, AttributeError):
                return ""  # the cluster's layout is not known yet
        return ""

    def _breaker(self, node: str) -> Breaker:
        if node not in self._breakers:
            gauge = self._metrics.breaker_open.labels(node)

            def changed(is_open: bool) -> None:
                gauge.set(is_open)
                if is_open:
                    self._metrics.breaker_opened.inc()
                _log.warning("redis %s: breaker %s", node, "open" if is_open else "closed")

            self._breakers[node] = Breaker(FAILURES_TO_OPEN, changed)
        return self._breakers[node]

    async def _keep_probing(self, on_alive: Callable[[], Awaitable[None]] | None) -> None:
        while True:
            answered = await self._probe_nodes()
            if answered and on_alive is not None:
                try:
                    await on_alive()
                except StorageUnavailable as error:
                    _log.debug("after a probe: %s", error)
            await asyncio.sleep(PROBE_SECONDS)

    async def _probe_nodes(self) -> bool:
        """Ping every node past its breaker; True if all answered."""
        client = self._redis
        if not isinstance(client, RedisCluster):
            return await self._ping("", client.ping)
        nodes = client.get_primaries()
        if not nodes:
            return await self._ping("", client.initialize)

        def ping(node: Any) -> Callable[[], Awaitable[object]]:
            return lambda: client.execute_command("PING", target_nodes=node)

        return all(await asyncio.gather(*(self._ping(node.name, ping(node)) for node in nodes)))

    async def _ping(self, node: str, ping: Callable[[], Awaitable[object]]) -> bool:
        """Wait a little for an answer, to the last ping if it has none yet."""
        breaker = self._breaker(node)
        if node not in self._pings:
            self._pings[node] = asyncio.ensure_future(ping())
            self._pings[node].add_done_callback(_look_at)
        pinging = self._pings[node]
        done, _ = await asyncio.wait((pinging,), timeout=self.settings.timeout_s)
        if not done:
            self._failed("probe", breaker, "timeout", "")
            return False
        del self._pings[node]
        try:
            pinging.result()
        except ERRORS as error:
            self._refused("probe", breaker, error)
        else:
            breaker.succeeded()
        return not breaker.open


def _look_at(future: "asyncio.Future[Any]") -> None:
    """Take note of its error, if nobody else does."""
    if not future.cancelled():
        future.exception()


_REFUSED: dict[type[Exception], str] = {
    AuthenticationError: "auth",
    BusyLoadingError: "loading",
    ClusterDownError: "clusterdown",
    MovedError: "moved",
    NoPermissionError: "permission",
    OutOfMemoryError: "oom",
    ReadOnlyError: "readonly",
}
"""Errors by which a server says that it did not do what it was asked."""
