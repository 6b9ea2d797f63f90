"""The engine: asyncio in front, one thread that owns the device, a bounded queue between them.

Every accepted request gets exactly one answer: a result, an error of its own, a deadline or a shutdown.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from opentelemetry import trace
from prometheus_client import Counter as PrometheusCounter

from mfalcon.backends.base import DEVICE_MICROBATCH
from mfalcon.backends.choice import AUTO
from mfalcon.backends.select import PoolBudget, ServedModel, serve, use_device
from mfalcon.engine.job import DeleteJob, Job, PrefillJob, RankJob
from mfalcon.engine.redis_parts import RedisOptions, RedisParts
from mfalcon.engine.runner import Runner
from mfalcon.engine.scheduler import Scheduler
from mfalcon.engine.step import refuse, step, step_batch
from mfalcon.engine.tiers import Tiers
from mfalcon.engine.warmup import measure_encoding, measure_microbatch, measure_side_by_side
from mfalcon.engine.workers import WorkerPool, take_cores
from mfalcon.errors import EngineFailure, MFalconError, ShuttingDown, StorageUnavailable
from mfalcon.history.chain import user_hash
from mfalcon.history.deletions import Deletion
from mfalcon.history.history import Retention, check_order
from mfalcon.history.local_log import LocalLog
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.fetch import EventLog, Fetched, Fetcher, LowerTier
from mfalcon.kvcache.planner import Predictor
from mfalcon.metrics import StateMetrics
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import CacheInfo, ContextFeatureInfo, Events, ModelInfo, RankRequest, RankResult
from mfalcon.window import window_start

_log = logging.getLogger(__name__)
_tracer = trace.get_tracer("mfalcon")
_VERSION_CHARS = 12
_MOST_TOGETHER = 32
"""Users of one computation on a device."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """threads: cores of the device thread. name: of the served model, its checkpoint's if None. backend: what computes
    (mfalcon.backends.choice). kv_dtype: of the pages of KV states (models.served.KV_DTYPES).

    microbatch: targets per forward, None to measure the best size at start. kv_budget_bytes: of the states in host
    memory; device_budget_bytes: of those on a GPU, 0 for most of what is free there. log_slack: events that a log keeps
    beyond the model's window before it is cut. redis: None keeps everything in this process.
    """

    threads: int
    name: str | None = None
    backend: str = AUTO
    kv_dtype: str = "auto"
    microbatch: int | None = None
    kv_budget_bytes: int = 1 << 30
    device_budget_bytes: int = 0
    queue_size: int = 256
    max_candidates: int = 16_384
    log_slack: int = 1_024
    redis: RedisOptions | None = None


class Engine:
    """Serves one checkpoint. All public methods belong to one event loop; the device thread touches only the runner."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, metrics: StateMetrics | None = None) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._served = served = _serve(checkpoint, config)
        self._info = _model_info(checkpoint, config, served)
        self._device = served.pool.layout.shape.device
        self._metrics = metrics or StateMetrics()
        self._metrics.pool_pages.set(served.pool.accounts.num_pages)
        device, dtype, backend = _computed_by(served)
        self._metrics.backend.labels(device=device, dtype=dtype, backend=backend).set(1)
        self._scheduler = Scheduler(config.queue_size)
        self._tombstones = Tombstones()
        self._predictor = Predictor()
        model = checkpoint.model
        fingerprint = f"{checkpoint.fingerprint}:{model.kv_shape().dtype}"
        if config.kv_dtype != "auto":
            fingerprint += f":{config.kv_dtype}"
        retention = Retention(model.config.max_history, model.config.window_chunk, config.log_slack)
        self._redis = (
            RedisParts(
                _redis_options(config.redis, served),
                model,
                fingerprint,
                retention,
                self._tombstones,
                self._metrics,
                self._forget_everywhere_here,
            )
            if config.redis is not None
            else None
        )
        log_here = self._redis.log if self._redis is not None else None
        self._log: EventLog = log_here or LocalLog(retention)
        shared = [self._redis.writes.offer] if self._redis is not None and model.prefix_stable else []
        waiting = self._redis.options.write_behind_bytes if self._redis is not None else 0
        self._tiers = Tiers(served, fingerprint, config.kv_budget_bytes, self._tombstones, shared, waiting)
        self._store = self._tiers.store
        self._counts = Counter[str]()
        self._fetcher = self._make_recall()
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="mfalcon-device", daemon=True)
        self._thread.start()

    @property
    def model(self) -> ModelInfo:
        """What clients may know of the model."""
        return self._info

    @property
    def unavailable(self) -> tuple[str, ...]:
        """Backends that would be better and cannot run here, with the reason."""
        return self._served.unavailable

    @property
    def ready(self) -> bool:
        """True once the model is warm and until the engine closes."""
        return self._started.is_set() and self._failure is None and not self._scheduler.closed

    def wait_ready(self, timeout: float | None = None) -> None:
        """Block until warm. Raises EngineFailure if the device thread could not start."""
        if not self._started.wait(timeout):
            raise EngineFailure(f"the model was not ready after {timeout} s")
        if self._failure is not None:
            raise EngineFailure(f"the device thread could not start: {self._failure}") from self._failure

    async def start(self) -> None:
        """Begin what runs beside the requests: Redis' probes and the write-behind. Raises ConfigError."""
        if self._redis is not None:
            await self._redis.start()

    async def rank(self, request: RankRequest, deadline: float | None) -> RankResult:
        """Score a request's candidates. deadline: time.monotonic() seconds.

        Raises Overloaded, DeadlineExceeded, ShuttingDown or EngineFailure; InvalidInput for recent events older than
        the log; StorageUnavailable when the log cannot be asked.
        """
        accepted = time.monotonic()
        self._scheduler.check()
        with _tracer.start_as_current_span("rank") as span:
            fetched_history = await self._fetcher.open(request.user_id, deadline)
            check_order(fetched_history.history, request.recent_events, "recent_events")
            job = RankJob(request, fetched_history, deadline, accepted=accepted)
            try:
                result = await self._answer(job, job.future)
            finally:
                del job  # see `_answer`
            self._count(result.cache)
            if span.is_recording():
                span.set_attributes(_explained(result, fetched_history))
        return result

    async def append_events(
        self, user_id: str, events: Events, expected_len: int | None, deadline: float | None = None
    ) -> int:
        """Acknowledge events: when this returns they are in the log. Returns the history's new length.

        Raises LengthMismatch, InvalidInput or ShuttingDown, and then nothing was written; StorageUnavailable says
        whether they may have been.
        """
        if self._scheduler.closed:
            raise ShuttingDown("the server is shutting down")
        return await self._log.append(user_id, events, expected_len, deadline)

    async def prefill(self, user_id: str, deadline: float | None) -> CacheInfo:
        """Encode the user's history ahead of a request. Raises as `rank` does."""
        self._scheduler.check()
        fetched_history = await self._fetcher.open(user_id, deadline)
        if fetched_history.stale:
            raise StorageUnavailable("the event log cannot be asked, so there is nothing newer to encode")
        job = PrefillJob(fetched_history, deadline)
        try:
            cache = await self._answer(job, job.future)
        finally:
            del job  # see `_answer`
        self._count(cache)
        return cache

    async def delete_user(self, user_id: str, deadline: float | None = None) -> None:
        """Forget the history and every state; when this returns none is left here or in Redis, and no work in flight
        can restore one. A caller that leaves does not stop it.

        Raises Overloaded, and then nothing was deleted; StorageUnavailable or ShuttingDown: ask again.
        """
        self._scheduler.check()
        deleting = asyncio.create_task(self._delete(user_id, deadline))
        deleting.add_done_callback(lambda task: task.cancelled() or task.exception())  # its caller may be gone
        await asyncio.shield(deleting)

    async def close(self) -> None:
        """Accept nothing more, answer what is queued with ShuttingDown, and wait for the step in progress."""
        self._refuse_all(ShuttingDown("the server shut down before this request was reached"))
        await asyncio.to_thread(self._thread.join)
        await self._fetcher.close()
        await asyncio.to_thread(self._tiers.close)
        if self._redis is not None:
            await self._redis.close()

    async def _delete(self, user_id: str, deadline: float | None) -> None:
        """The log first: from then on nothing that was made of it is kept anywhere."""
        user = user_hash(user_id)
        generation = await self._log.delete(user_id, deadline)
        self._tombstones.add(generation)
        job = DeleteJob(user)
        self._scheduler.submit(job)
        if self._redis is not None:
            await self._redis.delete(Deletion(user, generation))
        await asyncio.wrap_future(job.future)
        self._metrics.deleted.labels("us").inc()

    def _forget_everywhere_here(self, deletion: Deletion | None) -> None:
        """A user was deleted somewhere, or (None) any may have been; of ours we hear a second time."""
        if deletion is not None:
            if deletion.generation in self._tombstones:
                return
            self._tombstones.add(deletion.generation)
        with contextlib.suppress(ShuttingDown):
            self._scheduler.submit(DeleteJob(None if deletion is None else deletion.user))
        self._metrics.deleted.labels("replica" if deletion else "gap").inc()

    async def _answer(self, job: Job, future: "Future[T]") -> T:
        try:
            self._scheduler.submit(job)
            return await asyncio.wrap_future(future)
        finally:
            del job, future  # an error holds this frame: if that held the error too, its pages would wait for the GC

    def _count(self, cache: CacheInfo) -> None:
        tiers, metrics = self._tiers, self._metrics
        metrics.host_bytes.set(tiers.host.num_bytes)
        metrics.device_bytes.set(tiers.num_device_bytes)
        metrics.pool_free_pages.set(self._served.pool.accounts.num_free)
        self._count_up(metrics.host_evicted, "host evicted", tiers.host.num_evicted)
        if tiers.device is not None and tiers.demotion is not None:
            self._count_up(metrics.device_evicted, "device evicted", tiers.device.num_evicted)
            self._count_up(metrics.demoted, "demoted", tiers.demotion.num_demoted)
            self._count_up(metrics.not_demoted, "not demoted", tiers.demotion.num_dropped)
        self._metrics.lookups.labels(cache.source.name.lower()).inc()
        self._metrics.tokens.labels("reused").inc(cache.reused_tokens)
        self._metrics.tokens.labels("encoded").inc(cache.encoded_tokens)

    def _count_up(self, metric: PrometheusCounter, name: str, total: int) -> None:
        """Bring a metric to a total that is counted elsewhere."""
        metric.inc(total - self._counts[name])
        self._counts[name] = total

    def _make_recall(self) -> Fetcher:
        model, redis = self._checkpoint.model, self._redis
        lower = None
        if redis is not None and model.prefix_stable:
            pool = self._served.host or self._served.pool
            lower = LowerTier(redis.states, redis.writes, pool, redis.workers)
        return Fetcher(
            self._log,
            self._store,
            self._predictor,
            self._metrics,
            lambda length: window_start(length, model.config.max_history, model.config.window_chunk),
            self._scheduler.__len__,
            redis.options.client.timeout_s if redis is not None else 0.0,
            lower,
            guess=redis is not None and redis.log is not None,
        )

    def _run(self) -> None:
        take_cores(self._config.threads)
        use_device(self._device)
        lanes = WorkerPool(1 if self._device.type == "cuda" else self._config.threads)
        with torch.inference_mode():
            try:
                runner = self._start(lanes)
            except Exception as error:  # noqa: BLE001 (the thread's edge: `wait_ready` and the queue must be answered)
                self._failure = error
                self._refuse_all(EngineFailure(f"the device thread could not start: {error}"))
                return
            finally:
                self._started.set()
            while batch := self._next_batch(runner, lanes):
                began = time.monotonic()
                try:
                    self._do(runner, lanes, batch)
                except Exception as error:  # noqa: BLE001 (the thread's edge: nobody may wait for an answer for ever)
                    _log.exception("the device thread ended")
                    self._failure = error
                    refuse(batch, EngineFailure("the device thread ended; the server's log has the cause"))
                    self._refuse_all(EngineFailure("the device thread ended"))
                    break
                for _ in batch:
                    self._predictor.queue.observe((time.monotonic() - began) / len(batch))
                del batch  # what its jobs hold is not kept while waiting for the next
        lanes.close()

    def _next_batch(self, runner: Runner, lanes: WorkerPool) -> list[Job]:
        """What is done at once: users together where that is one computation, else small requests side by side."""
        if self._served.stack.batched:
            return self._scheduler.next_batch(_MOST_TOGETHER, runner.is_rank)
        return self._scheduler.next_batch(lanes.num_workers, runner.is_small)

    def _do(self, runner: Runner, lanes: WorkerPool, batch: list[Job]) -> None:
        if self._served.stack.batched:
            step_batch(runner, batch)
        else:
            lanes.run(partial(step, runner), batch)

    def _refuse_all(self, error: MFalconError) -> None:
        """Accept nothing more and answer what is queued with an error."""
        refuse(self._scheduler.close(), error)

    def _start(self, lanes: WorkerPool) -> Runner:
        served = self._served
        small = 0
        if served.stack.batched or self._device.type == "cuda":
            microbatch = self._config.microbatch or DEVICE_MICROBATCH
            served.stack.prepare(served.pool, microbatch)
        else:
            microbatch = self._config.microbatch or measure_microbatch(served)
            small = measure_side_by_side(served, lanes, microbatch) if lanes.num_workers > 1 else 0
        _log.info(
            "backend %s, %d threads, microbatch %d, side by side up to %d candidates, pool of %d MiB; passed over: %s",
            served.stack.name,
            self._config.threads,
            microbatch,
            small,
            served.pool.num_bytes >> 20,
            "; ".join(served.unavailable) or "none",
        )
        if self._redis is not None:
            measure_encoding(served, self._predictor.encode)
        version = self.model.version
        return Runner(served, self._checkpoint.items, self._store, microbatch, version, self._predictor, small)


def _explained(result: RankResult, fetched_history: Fetched) -> dict[str, str | int | bool]:
    """What a trace tells of a request; never its user."""
    return {
        "mfalcon.candidates": len(result.scores),
        "mfalcon.history_len": result.history_len,
        "mfalcon.stale": result.stale,
        "mfalcon.state.decision": fetched_history.decision.explain()
        if fetched_history.decision
        else "nothing to decide",
        "mfalcon.state.source": result.cache.source.name.lower(),
        "mfalcon.state.reused_tokens": result.cache.reused_tokens,
        "mfalcon.state.encoded_tokens": result.cache.encoded_tokens,
        "mfalcon.queue_us": result.timings.queue_us,
        "mfalcon.state_us": result.timings.state_us,
        "mfalcon.encode_us": result.timings.encode_us,
        "mfalcon.score_us": result.timings.score_us,
    }


def _serve(checkpoint: Checkpoint, config: EngineConfig) -> ServedModel:
    """The model with a pool for the states that are kept or wait to be written, and for what is in flight."""
    waiting = config.redis.write_behind_bytes if config.redis is not None else 0
    model = checkpoint.model
    budget = PoolBudget(
        config.kv_budget_bytes + waiting, config.threads, model.config.max_history, config.device_budget_bytes
    )
    return serve(model, config.backend, budget, config.kv_dtype)


def _redis_options(options: RedisOptions, served: ServedModel) -> RedisOptions:
    """States that wait to be written keep their pages: on a device, of a quarter of its pool at most."""
    if served.host is None:
        return options
    return replace(options, write_behind_bytes=min(options.write_behind_bytes, served.pool.num_bytes // 4))


def _computed_by(served: ServedModel) -> tuple[str, str, str]:
    """Device, dtype and backend."""
    shape = served.pool.layout.shape
    return str(shape.device), str(shape.dtype).removeprefix("torch."), served.stack.name


def _model_info(checkpoint: Checkpoint, config: EngineConfig, served: ServedModel) -> ModelInfo:
    model, ranker = checkpoint.model, checkpoint.model.config
    return ModelInfo(
        name=config.name or ranker.name,
        version=checkpoint.fingerprint[:_VERSION_CHARS],
        architecture=ranker.architecture,
        tasks=tuple(task.name for task in ranker.tasks),
        actions=ranker.actions,
        context_features=tuple(
            ContextFeatureInfo(f.name, f.num_values, f.values, f.derive is not None) for f in ranker.context_features
        ),
        max_history=ranker.max_history,
        max_candidates=config.max_candidates,
        prefix_stable=model.prefix_stable,
        backend=" ".join((*_computed_by(served), *([f"{config.kv_dtype} pages"] if config.kv_dtype != "auto" else []))),
    )
