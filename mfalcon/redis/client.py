"""Redis as we use it: one round trip per call, bounded by the caller's time, never retried, refused while it is down.

A caller that gives up leaves its exchange behind: the exchange reads its reply to the end, or until the socket's own
timeout, and only then frees its connection. Nobody else can read that reply, and nothing inside redis-py is ever
cancelled: a cancel in the wrong place there keeps a connection for good. Lives on the event loop.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import redis.asyncio
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MaxConnectionsError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from mfalcon.errors import StorageUnavailable
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.breaker import Breaker
from mfalcon.redis.cluster import Cluster
from mfalcon.redis.command import Command
from mfalcon.redis.sentinel import MasterPool
from mfalcon.redis.url import connect, disconnect

_log = logging.getLogger(__name__)

T = TypeVar("T")
Reply: TypeAlias = Any
"""What hiredis makes of RESP: bytes, int, None or a list of them."""

ERRORS: tuple[type[Exception], ...] = (RedisError, RedisClusterException, OSError)
"""What redis-py raises; TimeoutError is an OSError."""

BULK = frozenset({"chunks_read", "chunk_write"})
"""Calls that move states."""
LOG_APPEND, DURABLE_APPEND = "log_append", "log_append_durable"
LOG_DELETE, DURABLE_DELETE = "log_delete", "log_delete_durable"
_DURABLE = frozenset({DURABLE_APPEND, DURABLE_DELETE})
_WAITING = 128
"""Most calls to a node at once that wait there for its disk or its replica, on connections of their own: nobody's read
waits for them.
"""

_SPARE = 8
"""Connections beside the calls': probes, INFO."""
_PASSES = 10
_TELL_AGAIN_S = 10.0
_FAIR_SHARE = 0.8
"""Of the time that a server is given, for its silence to count against it."""
FAILURES_TO_OPEN = 3
PROBE_SECONDS = 0.2
"""Between two probes: an idle breaker opens after FAILURES_TO_OPEN of them and their timeouts, within 0.75 s."""


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """timeout_s: longest wait of a read. write_timeout_s: of an append or a deletion, which somebody must know the end
    of.
    """

    url: str = field(repr=False)
    timeout_s: float = 0.04
    write_timeout_s: float = 1.0
    max_connections: int = 32


class RedisClient:
    """Calls that are answered within their time or raise StorageUnavailable."""

    def __init__(self, settings: RedisSettings, metrics: StateMetrics) -> None:
        self.settings = settings
        self._metrics = metrics
        self._slots: dict[tuple[str, str], asyncio.Semaphore] = {}
        most = settings.max_connections + _WAITING + _SPARE  # opened as they are needed
        client = connect(settings.url, settings.write_timeout_s, settings.write_timeout_s, most)
        self._redis: redis.asyncio.Redis | Cluster = Cluster(client) if isinstance(client, RedisCluster) else client
        self._exchanges: set[asyncio.Task[Any]] = set()
        self._told_at: dict[tuple[str, str], float] = {}
        self._pings: dict[str, asyncio.Task[Any]] = {}
        self._breakers: dict[str, Breaker] = {}
        self._probe: asyncio.Task[None] | None = None

    def start(self, on_alive: Callable[[], Awaitable[None]] | None = None) -> None:
        """Begin to probe; `on_alive` runs after each probe that was answered."""
        self._probe = asyncio.create_task(self._keep_probing(on_alive), name="redis-probe")

    async def close(self) -> None:
        """Stop probing, let exchanges end as far as that is quick, and close the connections."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait((self._probe,))
        unfinished = {*self._exchanges, *self._pings.values()}
        if unfinished:
            _, left = await asyncio.wait(unfinished, timeout=self.settings.write_timeout_s)
            for task in left:
                task.cancel()
        await (
            self._redis.close(self.settings.write_timeout_s)
            if isinstance(self._redis, Cluster)
            else disconnect(self._redis)
        )

    def available(self, key: str) -> bool:
        """False while the breaker of the key's node is open."""
        return not self._breaker(self.node(key)).open

    def node(self, key: str) -> str:
        """The node that owns the key; one name for all where there is no cluster."""
        return self._redis.name_of(key) if isinstance(self._redis, Cluster) else ""

    async def call(self, op: str, key: str, commands: Sequence[Command], timeout_s: float) -> list[Reply]:
        """Send commands of one key's slot together and read their replies; one that Redis refuses fails the call,
        though those before it are done.

        Raises StorageUnavailable when the breaker is open, the time is up, the connection breaks or Redis refuses. A
        caller in a greater hurry than `settings.timeout_s` proves nothing about the server: its breaker is left alone.
        """
        return await self._call(op, self.node(key), key, lambda: self._exchange(key, commands), timeout_s)

    async def nodes(self) -> list[str]:
        """Names of all nodes that hold data. Raises StorageUnavailable."""
        if not isinstance(self._redis, Cluster):
            return [""]
        try:
            await self._redis.know()
        except ERRORS as error:
            raise self._unanswered("layout", "connection", "no node tells the layout of the cluster") from error
        return self._redis.names()

    async def call_node(self, op: str, node: str, commands: Sequence[Command], timeout_s: float) -> list[Reply]:
        """As `call`, to a node: for what is about all that it holds."""
        redis_ = self._redis
        if isinstance(redis_, Cluster):
            return await self._call(op, node, None, lambda: redis_.on(node, commands), timeout_s)
        return await self._call(op, node, None, lambda: self._exchange("", commands), timeout_s)

    async def _call(
        self,
        op: str,
        node: str,
        key: str | None,
        exchange_of: Callable[[], Coroutine[Any, Any, list[Reply]]],
        timeout_s: float,
    ) -> list[Reply]:
        breaker = self._breaker(node)
        if breaker.open:
            self._metrics.redis_errors.labels(op, "breaker").inc()
            raise StorageUnavailable("Redis does not answer; it is not tried until a probe is answered")
        began = time.monotonic()
        slots = self._slots_of(node, op)
        try:
            async with asyncio.timeout(timeout_s):  # wait_for may lose a cancellation that comes with the slot
                await slots.acquire()
        except TimeoutError as error:
            raise self._busy(op) from error
        exchange = self._begin(exchange_of())
        exchange.add_done_callback(lambda _: slots.release())
        if not await _done_within(exchange, timeout_s - (time.monotonic() - began)):
            if timeout_s >= _FAIR_SHARE * self.settings.timeout_s:
                breaker.failed(key)
            raise self._unanswered(op, "timeout", f"no answer within {timeout_s * 1000:.0f} ms")
        try:
            replies = exchange.result()
        except ERRORS as error:
            raise self._explain(op, breaker, error, key) from error
        for at, reply in enumerate(replies):
            if isinstance(reply, Exception):
                raise self._explain(op, breaker, reply, key, may_be_done=at > 0) from reply
        breaker.succeeded()
        self._metrics.redis_seconds.labels(op).observe(time.monotonic() - began)
        return replies

    async def info(self, section: str) -> list[Mapping[str, Any]]:
        """INFO of every node that holds data. Raises StorageUnavailable."""
        asking = self._begin(self._info(section))
        if not await _done_within(asking, self.settings.write_timeout_s):
            raise self._unanswered("info", "timeout", "no answer")
        try:
            return asking.result()
        except ERRORS as error:
            self._tell_seldom("info", section, error)
            raise StorageUnavailable(f"Redis gave no INFO {section}; the server's log has what it said") from error

    def _begin(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start what goes on when its caller does not."""
        task = asyncio.create_task(_connected(work))
        self._exchanges.add(task)
        task.add_done_callback(self._exchanges.discard)
        task.add_done_callback(_look_at)
        return task

    def _slots_of(self, node: str, op: str) -> asyncio.Semaphore:
        """What keeps us below the limit of a node's pool: a full pool raises, we wait within the call's time. Large
        values, and what waits for a disk or a replica, have connections of their own: however slow they are, the log
        gets through.
        """
        kind = "bulk" if op in BULK else "waiting" if op in _DURABLE else "log"
        if (node, kind) not in self._slots:
            bulk = max(1, self.settings.max_connections // 2)
            most = {"bulk": bulk, "waiting": _WAITING, "log": max(1, self.settings.max_connections - bulk)}
            self._slots[node, kind] = asyncio.Semaphore(most[kind])
        return self._slots[node, kind]

    async def _exchange(self, key: str, commands: Sequence[Command]) -> list[Reply]:
        if isinstance(self._redis, Cluster):
            return await self._redis.exchange(key, commands)
        if len(commands) == 1:
            return [await self._redis.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=False))

    async def _info(self, section: str) -> list[Mapping[str, Any]]:
        if isinstance(self._redis, Cluster):
            return await self._redis.on_each("INFO", section)
        return [await self._redis.info(section)]

    def _explain(
        self, op: str, breaker: Breaker, error: Exception, key: str | None = None, *, may_be_done: bool = False
    ) -> StorageUnavailable:
        """Count an error. A server that answers with a refusal, whatever it is, keeps nobody waiting. key: whose value
        may be why an answer took too long. may_be_done: whether it had not refused what it was asked before.
        """
        if isinstance(error, MaxConnectionsError):
            return self._busy(op)
        reason = next((reason for kind, reason in _REFUSED.items() if isinstance(error, kind)), None)
        if reason is None and not isinstance(error, ResponseError):
            is_late = isinstance(error, TimeoutError | RedisTimeoutError)
            breaker.failed(key if is_late else None)
            _log.debug("redis %s: %s", op, error)
            return self._unanswered(op, "timeout" if is_late else "connection", "the connection failed")
        if "unauthenticated" in str(error):  # how a server without our password takes a large command
            reason = "auth"
        breaker.succeeded()
        self._metrics.redis_errors.labels(op, reason or "error").inc()
        self._tell_seldom(op, reason or "error", error)
        text = f"Redis refused ({reason or 'error'}); the server's log has what it said"
        return StorageUnavailable(text, may_be_done=may_be_done)

    def _tell_seldom(self, op: str, reason: str, error: Exception) -> None:
        """What Redis says is for the operator: it may name keys, scripts and addresses."""
        now = time.monotonic()
        if now - self._told_at.get((op, reason), -_TELL_AGAIN_S) >= _TELL_AGAIN_S:
            self._told_at[op, reason] = now
            _log.warning("redis said to %s (%s): %s", op, reason, error)

    def _busy(self, op: str) -> StorageUnavailable:
        self._metrics.redis_errors.labels(op, "busy").inc()
        return StorageUnavailable("all connections to Redis are busy")

    def _unanswered(self, op: str, reason: str, text: str) -> StorageUnavailable:
        self._metrics.redis_errors.labels(op, reason).inc()
        return StorageUnavailable(f"Redis is unreachable ({reason}): {text}", may_be_done=True)

    def _breaker(self, node: str) -> Breaker:
        if node not in self._breakers:
            gauge = self._metrics.breaker_open.labels(node)

            def changed(is_open: bool) -> None:
                gauge.set(is_open)
                if is_open:
                    self._metrics.breaker_opened.inc()
                _log.warning("redis%s: breaker %s", f" {node}" if node else "", "open" if is_open else "closed")

            self._breakers[node] = Breaker(FAILURES_TO_OPEN, changed)
        return self._breakers[node]

    async def _keep_probing(self, on_alive: Callable[[], Awaitable[None]] | None) -> None:
        while True:
            try:
                if await self._probe_nodes() and on_alive is not None:
                    await on_alive()
            except StorageUnavailable as error:
                _log.debug("after a probe: %s", error)
            except Exception:  # noqa: BLE001 (the task's edge: without it an open breaker would stay open)
                _log.exception("a probe of redis failed")
            await asyncio.sleep(PROBE_SECONDS)

    async def _probe_nodes(self) -> bool:
        """Ping every node past its breaker; True if any answered."""
        if not isinstance(self._redis, Cluster):
            if isinstance(self._redis.connection_pool, MasterPool):
                self._redis.connection_pool.look()
            return await self._ping("", self._redis.ping)
        self._redis.refresh_if_old()
        pings = self._redis.pings()
        if not pings:
            return await self._ping("", self._redis.know)
        answered = await asyncio.gather(*(self._ping(node, ping) for node, ping in pings.items()))
        self._forget_others(set(pings))
        return any(answered)

    def _forget_others(self, nodes: set[str]) -> None:
        """Nodes that left the cluster leave no breaker behind, nor does the time before its layout was known."""
        for node in self._breakers.keys() - nodes:
            del self._breakers[node]
            self._metrics.breaker_open.remove(node)
        self._slots = {(node, kind): slots for (node, kind), slots in self._slots.items() if node in nodes}

    async def _ping(self, node: str, ping: Callable[[], Awaitable[Any]]) -> bool:
        """Wait a little for an answer. One that comes later is no better than none; until it has come, nothing new is
        sent.
        """
        breaker, is_new = self._breaker(node), node not in self._pings
        if is_new:
            self._pings[node] = asyncio.create_task(_pinged(ping))
            self._pings[node].add_done_callback(_look_at)
        pinging = self._pings[node]
        done = await _done_within(pinging, self.settings.timeout_s)
        if done:
            del self._pings[node]
        if not (done and is_new):
            breaker.failed()
            self._metrics.redis_errors.labels("probe", "timeout").inc()
            return False
        error = pinging.exception()
        if error is None:
            breaker.succeeded()
        elif isinstance(error, ERRORS):
            self._explain("probe", breaker, error)
        else:
            breaker.failed()
            _log.error("a ping failed", exc_info=error)
        return error is None and not breaker.open


async def _pinged(ping: Callable[[], Awaitable[Any]]) -> None:
    await _connected(ping())


async def _connected(work: Awaitable[T]) -> T:
    """What it gives. uvloop raises RuntimeError where redis-py writes to a connection that Redis has just closed."""
    try:
        return await work
    except RuntimeError as error:
        if "closed" not in str(error):
            raise
        raise ConnectionError("the connection was closed") from error


async def _done_within(task: "asyncio.Task[Any]", seconds: float) -> bool:
    """Wait for a task that goes on if it takes longer. A loop that was held up has timers and replies due at once: what
    has arrived by then counts.
    """
    await asyncio.wait((task,), timeout=max(0.0, seconds))
    for _ in range(_PASSES):
        if task.done():
            break
        await asyncio.sleep(0)
    return task.done()


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
