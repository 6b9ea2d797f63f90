"""Everything of Redis that a server owns, put together and kept alive."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mfalcon.engine.workers import take_cores
from mfalcon.errors import ConfigError, StorageUnavailable
from mfalcon.history.deletions import Deletion, Deletions
from mfalcon.history.durability import FSYNC_SINCE
from mfalcon.history.history import Retention
from mfalcon.history.log_sweep import LogSweep
from mfalcon.history.redis_log import LogOptions, RedisLog
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import RemoteTier
from mfalcon.kvcache.chunk import ChunkLayout, PayloadDtype
from mfalcon.kvcache.codec import exact_dtype
from mfalcon.kvcache.remote import RedisStates, RemoteOptions
from mfalcon.kvcache.write_behind import WriteBehind
from mfalcon.metrics.states import StateMetrics
from mfalcon.models.base import PrefixRanker, Ranker, prefix_ranker
from mfalcon.redis.client import RedisClient, RedisSettings
from mfalcon.redis.keys import Keys
from mfalcon.redis.url import redacted

_log = logging.getLogger(__name__)

_UPKEEP_SECONDS = 0.5
_SAY_AGAIN_SECONDS = 10.0
_DRAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """holds_log: whether the event log is in Redis, or in this process. log: of that log. state_dtype: of the states in
    Redis, None for the compute dtype, which moves no score. budget_bytes: of Redis' memory, past which no state is
    written; 0 for none. secret: signs the states.
    """

    client: RedisSettings
    prefix: str = "mfalcon"
    holds_log: bool = True
    log: LogOptions = field(default_factory=LogOptions)
    state_dtype: PayloadDtype | None = None
    ttl_s: float = 86_400.0
    budget_bytes: int = 0
    secret: bytes | None = field(default=None, repr=False)


class RedisParts:
    """What a server has of Redis, whatever it serves: client, log, deletions, the threads that code payloads, and the
    states of its models, each of which is attached by its ranker.

    Built before there is an event loop's work, started on it. on_deletion: another replica deleted a user, or None if
    some deletions may have been missed. on_expired: a user was deleted for the age of his log; states and counters are
    left to do.
    """

    def __init__(
        self,
        options: RedisOptions,
        retention: Retention,
        metrics: StateMetrics,
        on_deletion: Callable[[Deletion | None], None],
        on_expired: Callable[[Deletion], None] = lambda _: None,
    ) -> None:
        self.options = options
        self.client = RedisClient(options.client, metrics)
        self.keys = Keys(options.prefix)
        self.workers = codec_workers()
        self._metrics = metrics
        self._on_deletion = on_deletion
        self.log: RedisLog | None = None
        self.deletions: Deletions | None = None
        self._sweep: LogSweep | None = None
        if options.holds_log:
            self.log = RedisLog(self.client, self.keys, retention, metrics, options.log)
            if options.log.max_age_s:
                age_s = options.log.max_age_s
                self._sweep = LogSweep(self.client, self.keys, self.log, age_s, on_expired, metrics)
            self.deletions = Deletions(self.client, self.keys)
        self._remote: list[RemoteTier] = []
        self._started = False
        self._kept_up_at = 0.0
        self._is_safe: bool | None = None

    def attach(self, model: PrefixRanker, fingerprint: str, budget_bytes: int, tombstones: Tombstones) -> RemoteTier:
        """The states of a model, kept in step with deletions and with Redis' memory from now on. Any thread.

        fingerprint: of the checkpoint and the compute dtype. budget_bytes: of states that wait to be written.
        """
        ours = self.options
        options = RemoteOptions(ours.ttl_s, ours.holds_log, ours.secret)
        layout = layout_of(model, fingerprint, ours.state_dtype)
        states = RedisStates(self.client, self.keys, layout, model.config.max_history, options, self._metrics)
        writes = WriteBehind(
            states,
            tombstones,
            self._metrics,
            self.workers,
            budget_bytes=budget_bytes,
            timeout_s=ours.client.write_timeout_s,
        )
        tier = RemoteTier(states, writes, self.workers)
        self._remote.append(tier)
        return tier

    def start_writes(self, tier: RemoteTier) -> None:
        """Let a tier write that came after `start`. On the event loop."""
        if self._started:
            tier.writes.start()

    async def detach(self, tier: RemoteTier) -> None:
        """Undo `attach`, after what waits has been written as far as that is quick; what is there expires."""
        await tier.writes.close(_DRAIN_SECONDS)
        self._remote.remove(tier)

    async def start(self) -> None:
        """Look at the server once, then probe and write in the background.

        A Redis that is not there is no error: it is asked again until it is. ConfigError if it would evict the log.
        """
        try:
            await self._check_server()
        except StorageUnavailable as error:
            _log.warning("%s: %s; it is asked again", redacted(self.options.client.url), error)
        self._started = True
        for tier in self._remote:
            tier.writes.start()
        self.client.start(self._keep_up)
        if self._sweep is not None:
            self._sweep.start()

    async def reach(self) -> None:
        """Return once the server has answered, and log until then why it has not. ConfigError if it would evict the
        log.
        """
        said, said_at = "", 0.0
        while True:
            try:
                await self.client.info("server")
                if self._is_safe is not True:
                    await self._check_server()
                if self.client.available(""):  # a probe closes the breaker that the wait has opened
                    return
            except StorageUnavailable as error:
                now = time.monotonic()
                if str(error) != said or now - said_at >= _SAY_AGAIN_SECONDS:
                    said, said_at = str(error), now
                    _log.warning("waiting for %s: %s", redacted(self.options.client.url), error)
            await asyncio.sleep(_UPKEEP_SECONDS)

    async def delete(self, deletion: Deletion) -> None:
        """Erase a user whose log has been erased: states here and in Redis; other replicas are told.

        Raises StorageUnavailable.
        """
        await asyncio.gather(*(tier.writes.delete(deletion.user) for tier in self._remote))
        timeout_s = self.options.client.write_timeout_s
        await asyncio.gather(*(tier.states.delete(deletion.user, timeout_s) for tier in self._remote))
        if self.deletions is not None:
            await self.deletions.publish(deletion)

    async def close(self) -> None:
        """Close the connections, after every ranker has detached its tier."""
        if self._sweep is not None:
            await self._sweep.close()
        await self.client.close()
        self.workers.shutdown()

    async def _keep_up(self) -> None:
        """After an answered probe, twice a second: the server's settings once, its memory, deletions elsewhere."""
        now = time.monotonic()
        if now - self._kept_up_at < _UPKEEP_SECONDS:
            return
        self._kept_up_at = now
        if self.deletions is not None and self.log is not None:
            await self._follow(self.deletions, self.log)
        if self.options.budget_bytes:
            used = [int(memory["used_memory"]) for memory in await self.client.info("memory")]
            for tier in self._remote:
                tier.writes.paused = sum(used) > self.options.budget_bytes
        if self._is_safe is None:
            try:
                await self._check_server()
            except ConfigError as error:
                _log.error("%s", error)

    async def _follow(self, stream: Deletions, log: RedisLog) -> None:
        """Forget here whom another replica has deleted."""
        deletions = await stream.poll()
        if deletions is None:
            log.drop_all()
            self._on_deletion(None)
        for deletion in deletions or ():
            log.drop(deletion.user)
            self._on_deletion(deletion)
            for tier in self._remote:
                tier.writes.drop(deletion.user)

    async def _check_server(self) -> None:
        """ConfigError if the event log is in a Redis that may evict it; a warning if a restart may lose it."""
        if not self.options.holds_log:
            self._is_safe = True
            return
        for memory in await self.client.info("memory"):
            policy = str(memory.get("maxmemory_policy", "unknown"))
            if int(memory.get("maxmemory", 0)) and policy.startswith("allkeys-"):
                self._is_safe = False
                raise ConfigError(
                    f"redis maxmemory-policy: got {policy}, which may evict the event log, must be volatile-lfu, "
                    "another volatile-* or noeviction"
                )
        for persistence in await self.client.info("persistence"):
            if not int(persistence.get("aof_enabled", 1)):
                if self.options.log.durability == "fsync":
                    self._is_safe = False
                    raise ConfigError("redis appendonly: got no, must be yes with append_durability fsync")
                _log.warning("redis appendonly: got no; acknowledged events may be lost when Redis restarts")
        if self.options.log.durability == "fsync":
            await self._check_version()
        if self.options.log.durability == "replica":
            await self._look_for_replicas()
        self._is_safe = True

    async def _check_version(self) -> None:
        for server in await self.client.info("server"):
            version = str(server.get("redis_version", "0"))
            if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < FSYNC_SINCE:
                self._is_safe = False
                raise ConfigError(
                    f"redis version: got {version}, must be at least 7.2 with append_durability fsync; on an older one "
                    "appendfsync always gives the same with append_durability memory"
                )

    async def _look_for_replicas(self) -> None:
        """No error where there are none: after a failover they come a moment later."""
        for replication in await self.client.info("replication"):
            if not int(replication.get("connected_slaves", 0)):
                _log.warning(
                    "redis replication: a master has no replica; with append_durability replica nothing is appended "
                    "until it has one"
                )


def codec_workers() -> ThreadPoolExecutor:
    """Threads that turn states into payloads and back. One torch thread each: the cores belong to the device thread."""
    return ThreadPoolExecutor(2, "mfalcon-codec", take_cores, (1,))


def layout_of(model: Ranker, fingerprint: str, dtype: PayloadDtype | None = None) -> ChunkLayout:
    """How the chunks of a model's states lie. fingerprint: of the checkpoint and the compute dtype, any text.

    dtype: None for the compute dtype. Raises ConfigError for a model that has none.
    """
    model = prefix_ranker(model)
    shape = model.kv_shape()
    return ChunkLayout(
        fingerprint=hashlib.blake2b(fingerprint.encode(), digest_size=16).digest(),
        tokens_per_event=model.tokens_per_event,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        qk_dim=shape.qk_dim,
        v_dim=shape.v_dim,
        dtype=dtype or exact_dtype(shape.dtype),
    )
