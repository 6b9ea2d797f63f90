"""What is the users': their histories, what was deleted of them, and Redis. A server has one, whatever it serves."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mfalcon.counters.local import LocalCounters
from mfalcon.counters.redis_counters import RedisCounters
from mfalcon.counters.redis_records import forget_in_others, name_of
from mfalcon.counters.sets import CounterSets
from mfalcon.counters.standing import Insertion, Standing
from mfalcon.counters.store import ItemCounters
from mfalcon.engine.redis_parts import RedisOptions, RedisParts
from mfalcon.errors import ConfigError, EngineFailure, StorageUnavailable
from mfalcon.features.counters import LikeRule
from mfalcon.history.budget import LogBudget
from mfalcon.history.chain import user_hash
from mfalcon.history.deletions import Deletion
from mfalcon.history.file_log import FileLog, FileLogOptions
from mfalcon.history.history import History, Retention
from mfalcon.history.local_log import LocalLog
from mfalcon.history.log import EventLog
from mfalcon.history.tombstones import Tombstones
from mfalcon.metrics.counters import CounterMetrics
from mfalcon.metrics.logs import LogMetrics
from mfalcon.metrics.states import StateMetrics
from mfalcon.types import Append, Appended, Events, LateEvents

_READ_S = 1.0
_MOST_EVICTED = 100_000
"""Whose states in Redis wait to be deleted; those of older ones end with their time to live."""
_TRY_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class HistoryOptions:
    """log_max_events: of a user, the newest that are always kept: at least the longest window served. log_slack: events
    beyond them before a log is cut. max_counted_items: of which counters are kept, where a model reads them.
    late_events: of those that a request brings, see `recent_behind`. redis: None keeps everything on this machine.
    file: the log's, None keeps it in this process or in Redis. budget: of a log on this machine.
    """

    log_max_events: int = 16_384
    log_slack: int = 1_024
    max_counted_items: int = 10_000_000
    late_events: LateEvents = "reject"
    redis: RedisOptions | None = None
    file: FileLogOptions | None = None
    budget: LogBudget = field(default_factory=LogBudget)


class Histories:
    """Owns the event log, the tombstones and the connection to Redis. Lives on the event loop."""

    def __init__(
        self,
        options: HistoryOptions,
        metrics: StateMetrics,
        counters: CounterMetrics | None = None,
        logs: LogMetrics | None = None,
    ) -> None:
        self.options = options
        self.tombstones = Tombstones()
        self._listener: Callable[[Deletion | None], None] = lambda _: None
        retention = Retention(options.log_max_events, options.log_slack)
        self.redis = (
            RedisParts(options.redis, retention, metrics, self._deleted_elsewhere, self._evict)
            if options.redis is not None
            else None
        )
        self._on_eviction: Callable[[Deletion], None] = lambda _: None
        self._evicted: deque[Deletion] = deque(maxlen=_MOST_EVICTED)
        self._forgetting: asyncio.Task[None] | None = None
        shared = self.redis.log if self.redis is not None else None
        self.local: LocalLog | FileLog | None = None
        if options.file is not None:
            assert shared is None
            logs = logs or LogMetrics()
            self.local = FileLog(options.file, options.budget, retention, metrics, logs, self._evict)
        elif shared is None:
            self.local = LocalLog(retention, options.budget, logs, self._evict)
        log = shared or self.local
        assert log is not None
        self.log: EventLog = log
        self.counters = CounterSets(
            partial(self._new_counters, counters or CounterMetrics()),
            self.local.histories if self.local is not None else lambda: None,
            self.tombstones.__contains__,
        )

    @property
    def is_shared(self) -> bool:
        """Whether other replicas write to the same log."""
        return self.redis is not None and self.redis.log is not None

    def copy(self, user: bytes) -> History | None:
        """What is known here of a user's history in Redis, without asking; None if that is nothing."""
        return self.redis.log.copy(user) if self.redis is not None and self.redis.log is not None else None

    def check_window(self, model: str, max_events: int, what: str = "the window") -> None:
        """Raise ConfigError if a model looks back further than what a log keeps for certain."""
        if max_events > self.options.log_max_events:
            raise ConfigError(
                f"log_max_events: got {self.options.log_max_events}, must be at least {max_events}, {what} of "
                f"model {model}"
            )

    async def append(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """Acknowledge events, see `EventLog.append`, and count them."""
        if not self.counters.stores:
            return await self.log.append(user_id, append, deadline)
        if append.late_events == "insert":
            await self._count_before(user_id, append.events)
        told = await self.log.append(user_id, append, deadline)
        try:
            history = await self._history(user_id)
        except (StorageUnavailable, EngineFailure):  # the events are acknowledged all the same
            self.counters.missed(user_id)
            return told
        if told.inserted and not told.was_written:
            await self.counters.inserted(_insertion(history, append, told))
        await self.counters.catch_up(history)
        return told

    async def _count_before(self, user_id: str, events: Events) -> None:
        """Before events go between older ones: have those counted, as far as is known here, because what is not could
        not be told from what is new.
        """
        with contextlib.suppress(StorageUnavailable, EngineFailure):  # the append says it
            history = await self._history(user_id)
            if len(history.events) and events["time_ms"].min() < history.events["time_ms"][-1]:
                await self.counters.catch_up(history)

    async def _history(self, user_id: str) -> History:
        """What is known here, or what the log says. Raises StorageUnavailable."""
        known = self.copy(user_hash(user_id)) if self.is_shared else None
        return known or (await self.log.read(user_id, _READ_S)).history

    async def forget(self, user: bytes, generation: bytes) -> None:
        """Take a user whose log has ended out of all counters, those that no model here reads included.

        generation: the life that ended, empty if it is not known. Raises StorageUnavailable.
        """
        await self.counters.forget(user, generation)
        if self.redis is not None and self.redis.log is not None:
            open_ones = {name_of(store.like) for store in self.counters.stores}
            await forget_in_others(self.redis.client, self.redis.keys, user, generation, open_ones)

    def listen(self, on_deletion: Callable[[Deletion | None], None], on_eviction: Callable[[Deletion], None]) -> None:
        """Tell of users that another replica deleted, None: some deletions may have been missed; and of those that the
        log on this machine deleted to keep its bounds.
        """
        self._listener = on_deletion
        self._on_eviction = on_eviction

    async def start(self) -> None:
        """Begin what runs beside the requests: Redis' probes, the log's thread. Raises ConfigError."""
        if self.local is not None:
            self.local.start()
        if self.redis is not None:
            await self.redis.start()
        self.counters.start()

    async def close(self) -> None:
        """Close the connections."""
        await self.counters.close()
        if self._forgetting is not None:
            self._forgetting.cancel()
            await asyncio.wait((self._forgetting,))
        if self.local is not None:
            await self.local.close()
        if self.redis is not None:
            await self.redis.close()

    def _new_counters(self, metrics: CounterMetrics, like: LikeRule) -> ItemCounters:
        redis, most = self.redis, self.options.max_counted_items
        if redis is not None and redis.log is not None:
            return RedisCounters(like, most, redis.client, redis.keys, redis.log, metrics)
        return LocalCounters(like, self.options.max_counted_items, metrics)

    def _evict(self, deletion: Deletion) -> None:
        """A user is no longer in the log on this machine, or in Redis for his age: nothing made of it is kept."""
        self.tombstones.add(deletion.generation)
        self._on_eviction(deletion)
        self._evicted.append(deletion)
        if self._forgetting is None or self._forgetting.done():
            self._forgetting = asyncio.get_running_loop().create_task(self._forget_evicted())

    async def _forget_evicted(self) -> None:
        while self._evicted:
            deletion = self._evicted[0]
            try:
                await self.forget(deletion.user, deletion.generation)
                if self.redis is not None:
                    await self.redis.delete(deletion)
            except StorageUnavailable:
                await asyncio.sleep(_TRY_AGAIN_S)
                continue
            if self._evicted and self._evicted[0] is deletion:
                self._evicted.popleft()
            await asyncio.sleep(0)

    def _deleted_elsewhere(self, deletion: Deletion | None) -> None:
        self._listener(deletion)


def _insertion(history: History, append: Append, told: Appended) -> Insertion:
    """What an append did to a history, of which this is a later one."""
    is_stored = np.ones(len(append.events), dtype=np.bool_)
    is_stored[list(told.discarded)] = False
    stored = append.events[is_stored]
    before = Standing(history.generation, told.history_len - len(stored), told.previous)
    after = Standing(history.generation, told.history_len, told.version)
    return Insertion(history.user_id, history.user, before, after, stored)
