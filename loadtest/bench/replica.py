"""A replica whose way to a KV state a benchmark can steer: an engine as it is served, driven through its parts.

What is chosen freely goes through the engine's own fetcher; a forced way has a fetcher of its own on the same log and
cache. Both compute by a runner on the engine's device, without its queue's other jobs.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from mfalcon.algorithm import prefill
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.job import prefill_job
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.engine.runner import Runner
from mfalcon.history.history import History
from mfalcon.history.log import EventLog
from mfalcon.kvcache.cache import Found, RemoteTier
from mfalcon.kvcache.cost import NOTHING
from mfalcon.kvcache.decision import Choice, Decision
from mfalcon.kvcache.fetch import Fetcher
from mfalcon.kvcache.planner import Predictor, Situation
from mfalcon.kvcache.state import KVState
from mfalcon.kvcache.tier import Entry
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.models.base import event_tokens
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import CacheInfo
from mfalcon.window import WindowRule

_HOST_BYTES = 1 << 30
_READY_S = 120.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Always(Predictor):
    """Chooses one way; what it learns is used for nothing."""

    choice: Choice = "recompute"

    def decide(self, at: Situation) -> Decision:
        return Decision(self.choice, "only way", NOTHING, NOTHING)


@dataclass(frozen=True, slots=True)
class Brought:
    """A state in hand. seconds: from the request's arrival to a state that can be scored against."""

    seconds: float
    cache: CacheInfo
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class _Way:
    fetcher: Fetcher
    runner: Runner


class Replica:
    """`async with Replica(...)`. probing: whether Redis is probed five times a second, as it is in service."""

    def __init__(self, checkpoint: Checkpoint, redis: RedisOptions, *, threads: int = 1, probing: bool = True) -> None:
        self.metrics = ServerMetrics()
        self._redis, self._probing = redis, probing
        window = checkpoint.model.config.max_history
        # A microbatch matters to scoring alone.
        self._engine = compose(
            checkpoint,
            EngineConfig(
                threads,
                ranker=RankerOptions(microbatch=64, kv_budget_bytes=_HOST_BYTES),
                histories=HistoryOptions(log_max_events=window, redis=redis),
            ),
            self.metrics,
        )
        self._ranker = ranker = self._engine.catalog.default
        assert ranker.remote is not None
        self.remote: RemoteTier = ranker.remote
        self.log: EventLog = self._engine.histories.log
        self.predictor = ranker.predictor
        assert isinstance(ranker.fetcher, Fetcher)
        self._free = _Way(ranker.fetcher, self._runner(ranker.predictor))
        self._forced: dict[Choice, _Way] = {
            "fetch": self._way(_Always(choice="fetch")),
            "recompute": self._way(_Always(choice="recompute")),
        }

    async def __aenter__(self) -> Self:
        """Once the engine has measured what one measures before its first request."""
        await asyncio.to_thread(self._engine.wait_ready, _READY_S)
        if self._probing:
            await self._engine.start()
        else:
            self.remote.writes.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._engine.close()

    async def bring(self, user_id: str, way: Choice | None = None) -> Brought:
        """The user's state, by a way or by the one that the predictor chooses; then wait until Redis has it too."""
        chosen = self._free if way is None else self._forced[way]
        began = time.perf_counter()
        fetched = await chosen.fetcher.open(user_id, None, NOTHING)
        cache = await self.compute(lambda: chosen.runner.rank(prefill_job(fetched, None)).cache)
        seconds = time.perf_counter() - began
        await asyncio.sleep(0)  # what was kept is offered to the write-behind from the device thread
        await self.remote.writes.idle()
        return Brought(seconds, cache, fetched.decision)

    async def read(self, user_id: str) -> History:
        """The user's history now."""
        return (await self.log.read(user_id, self._redis.client.timeout_s)).history

    async def encoded(self, history: History, num_events: int) -> KVState:
        """A state of the history's first events that nobody keeps."""
        served, items = self._ranker.prefix, self._ranker.checkpoint.items
        events = history.events[:num_events]
        return await self.compute(lambda: prefill(served, event_tokens(events, items, self._engine.device.device)))

    async def hold(self, history: History, state: KVState | None) -> None:
        """Make a state of the history's first events everything that the host tier has; None: nothing."""
        cache, per_event = self._ranker.cache, self._ranker.checkpoint.prefix_model.tokens_per_event

        def hold() -> None:
            cache.delete(None)
            if state is not None:
                cache.host.put(Entry(cache.key(history, 0, state.num_tokens // per_event), state))

        await self.compute(hold)

    async def acquire(self, history: History) -> float:
        """Seconds of finding the history's state on the host."""

        def acquire() -> tuple[float, Found | None]:
            began = time.perf_counter()
            found = self._ranker.cache.lookup(history, 0)
            return time.perf_counter() - began, found

        seconds, found = await self.compute(acquire)
        assert found is not None and found.stop == len(history)
        return seconds

    async def compute(self, work: Callable[[], T]) -> T:
        """Do something on the device thread."""
        return await asyncio.wrap_future(self._engine.device.call(work))

    def counted(self, name: str, **labels: str) -> float:
        """A sample of the replica's metrics."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def _way(self, predictor: Predictor) -> _Way:
        ranker = self._ranker
        config, timeout_s = ranker.checkpoint.model.config, self._redis.client.timeout_s
        window = WindowRule(config.max_history, config.window_chunk)
        fetcher = Fetcher(self.log, ranker.cache, predictor, window, self.metrics.states, timeout_s, is_shared=False)
        return _Way(fetcher, self._runner(predictor))

    def _runner(self, predictor: Predictor) -> Runner:
        ranker = self._ranker
        return Runner(ranker.served, ranker.checkpoint.items, ranker.cache, 1, "bench", predictor)
