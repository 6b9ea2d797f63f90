"""A replica's way to a KV state, in parts that a benchmark can steer: the engine's own log, store, Redis tier, recall
and runner, put together as `mfalcon/engine/engine.py` does, without its queue.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import torch

from mfalcon.backends.select import ServedModel, serve
from mfalcon.engine.job import PrefillJob
from mfalcon.engine.redis_parts import RedisOptions, RedisParts
from mfalcon.engine.runner import Runner
from mfalcon.engine.warmup import measure_encoding
from mfalcon.history.history import History, Retention
from mfalcon.history.local_log import LocalLog
from mfalcon.history.log import EventLog
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import Found, KVCache
from mfalcon.kvcache.cost import NOTHING
from mfalcon.kvcache.decision import Choice, Decision
from mfalcon.kvcache.fetch import Fetcher
from mfalcon.kvcache.planner import Predictor, Situation
from mfalcon.kvcache.state import KVState
from mfalcon.kvcache.tier import Entry
from mfalcon.metrics import StateMetrics
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import CacheInfo
from mfalcon.window import WindowRule

_HOST_BYTES = 4 << 30
_LOG_SLACK = 1_024
_WAITING_BYTES = 256 << 20

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
    recall: Fetcher
    runner: Runner


class Device:
    """The one thread that computes."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(1, "bench-device", initializer=torch.set_num_threads, initargs=(threads,))

    async def run(self, work: Callable[[], T]) -> T:
        """Run on the device thread, in inference mode as the engine does."""

        def inferring() -> T:
            with torch.inference_mode():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._executor, inferring)

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown()


class Replica:
    """`async with Replica(...) as replica`. predictor: learns from the requests that it decides, as an engine's does.

    served: the checkpoint's model, which replicas may share. probing: whether Redis is probed five times a second, as
    it is in service.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: RedisOptions,
        device: Device,
        *,
        served: ServedModel | None = None,
        probing: bool = True,
    ) -> None:
        model = checkpoint.model
        self.served = served or serve(model)
        config, fingerprint = model.config, f"{checkpoint.fingerprint}:{model.kv_shape().dtype}"
        retention, tombstones = Retention(config.max_history, _LOG_SLACK), Tombstones()
        self.metrics = StateMetrics()
        self.redis = RedisParts(options, retention, self.metrics, lambda _: None)
        self.remote = self.redis.attach(model, fingerprint, _WAITING_BYTES, tombstones)
        self.log: EventLog = self.redis.log or LocalLog(retention)
        self.predictor = Predictor()
        self._cache = KVCache(fingerprint, self.served.pool, _HOST_BYTES, tombstones, remote=self.remote)
        self._checkpoint, self._device, self._probing = checkpoint, device, probing
        self._free = self._way(self.predictor)
        self._forced: dict[Choice, _Way] = {
            "fetch": self._way(_Always(choice="fetch")),
            "recompute": self._way(_Always(choice="recompute")),
        }

    async def __aenter__(self) -> Self:
        if self._probing:
            await self.redis.start()
        else:
            self.remote.writes.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.redis.detach(self.remote)
        await self.redis.close()

    async def warm_up(self) -> None:
        """What an engine measures before its first request."""
        await self._device.run(lambda: measure_encoding(self.served, self.predictor.encode))

    async def bring(self, user_id: str, way: Choice | None = None) -> Brought:
        """The user's state, by a way or by the one that the predictor chooses; then wait until Redis has it too."""
        chosen = self._free if way is None else self._forced[way]
        began = time.perf_counter()
        fetched_history = await chosen.recall.open(user_id, None, NOTHING)
        cache = await self._device.run(lambda: chosen.runner.prefill(PrefillJob(fetched_history, None)))
        seconds = time.perf_counter() - began
        await asyncio.sleep(0)  # what was kept is offered to the write-behind from the device thread
        await self.remote.writes.idle()
        return Brought(seconds, cache, fetched_history.decision)

    async def read(self, user_id: str) -> History:
        """The user's history now."""
        return (await self.log.read(user_id, self.redis.options.client.timeout_s)).history

    async def hold(self, history: History, state: KVState | None) -> None:
        """Make a state of the history's first events everything that the host tier has; None: nothing."""

        def hold() -> None:
            self._cache.delete(None)
            if state is not None:
                stop = state.num_tokens // self._checkpoint.model.tokens_per_event
                self._cache.host.put(Entry(self._cache.key(history, 0, stop), state))

        await self._device.run(hold)

    async def acquire(self, history: History) -> float:
        """Seconds of finding the history's state on the host."""

        def acquire() -> tuple[float, Found | None]:
            began = time.perf_counter()
            found = self._cache.lookup(history, 0)
            return time.perf_counter() - began, found

        seconds, found = await self._device.run(acquire)
        assert found is not None and found.stop == len(history)
        return seconds

    def counted(self, name: str, **labels: str) -> float:
        """A sample of the replica's metrics."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def _way(self, predictor: Predictor) -> _Way:
        checkpoint = self._checkpoint
        config = checkpoint.model.config
        recall = Fetcher(
            self.log,
            self._cache,
            predictor,
            WindowRule(config.max_history, config.window_chunk),
            self.metrics,
            self.redis.options.client.timeout_s,
            is_shared=False,
        )
        # A microbatch matters to scoring alone.
        return _Way(recall, Runner(self.served, checkpoint.items, self._cache, 1, "bench", predictor))
