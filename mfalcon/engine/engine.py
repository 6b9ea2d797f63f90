"""The engine: asyncio in front, one thread that owns the device, a bounded queue between them.

Every accepted request gets exactly one answer: a result, an error of its own, a deadline or a shutdown.
"""

import asyncio
import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch

from kernels.dispatch import BACKEND
from mfalcon.engine.job import ForgetJob, Job, PrefillJob, RankJob
from mfalcon.engine.runner import Runner, measure_microbatch
from mfalcon.engine.scheduler import Scheduler
from mfalcon.errors import DeadlineExceeded, EngineFailure, MFalconError, ShuttingDown
from mfalcon.kv import KVState
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.state.history import HistoryLog, check_order
from mfalcon.state.store import StateStore
from mfalcon.types import CacheInfo, ContextFeatureInfo, Events, ModelInfo, RankRequest, RankResult

_log = logging.getLogger(__name__)
_VERSION_CHARS = 12

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """threads: torch threads of the device thread. name: of the served model, its checkpoint's if None.

    microbatch: targets per forward, None to measure the best size at start.
    """

    threads: int
    name: str | None = None
    microbatch: int | None = None
    kv_budget_bytes: int = 1 << 30
    queue_size: int = 256
    max_candidates: int = 16_384


class Engine:
    """Serves one checkpoint. All public methods belong to one event loop; the device thread touches only the runner."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._info = _model_info(checkpoint, config)
        self._log = HistoryLog()
        self._scheduler = Scheduler(config.queue_size)
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="mfalcon-device", daemon=True)
        self._thread.start()

    @property
    def model(self) -> ModelInfo:
        """What clients may know of the model."""
        return self._info

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

    async def rank(self, request: RankRequest, deadline: float | None) -> RankResult:
        """Score a request's candidates. deadline: time.monotonic() seconds.

        Raises Overloaded, DeadlineExceeded, ShuttingDown or EngineFailure; InvalidInput for recent events older than
        the log.
        """
        log = self._log.snapshot(request.user_id)
        check_order(log.events, request.recent_events, "recent_events")
        job = RankJob(request, log, deadline)
        return await self._answer(job, job.future)

    async def append_events(self, user_id: str, events: Events, expected_len: int | None) -> int:
        """Acknowledge events: when this returns they are in the log. Returns the history's new length.

        Raises LengthMismatch, InvalidInput or ShuttingDown, and then nothing was written.
        """
        if self._scheduler.closed:
            raise ShuttingDown("the server is shutting down")
        return self._log.append(user_id, events, expected_len)

    async def prefill(self, user_id: str, deadline: float | None) -> CacheInfo:
        """Encode the user's history ahead of a request. Raises as `rank` does."""
        job = PrefillJob(self._log.snapshot(user_id), deadline)
        return await self._answer(job, job.future)

    async def delete_user(self, user_id: str) -> None:
        """Forget the history and every state; when this returns none is left, and no work in flight can restore one.

        A caller that leaves does not stop it.
        """
        job = ForgetJob(user_id)
        self._scheduler.submit(job)
        self._log.delete(user_id)
        await asyncio.shield(asyncio.wrap_future(job.future))

    async def close(self) -> None:
        """Accept nothing more, answer what is queued with ShuttingDown, and wait for the step in progress."""
        self._refuse_all(ShuttingDown("the server shut down before this request was reached"))
        await asyncio.to_thread(self._thread.join)

    async def _answer(self, job: Job, future: "Future[T]") -> T:
        self._scheduler.submit(job)
        return await asyncio.wrap_future(future)

    def _run(self) -> None:
        torch.set_num_threads(self._config.threads)
        with torch.inference_mode():
            try:
                runner = self._start()
            except Exception as error:  # noqa: BLE001 (the thread's edge: `wait_ready` and the queue must be answered)
                self._failure = error
                self._refuse_all(EngineFailure(f"the device thread could not start: {error}"))
                return
            finally:
                self._started.set()
            while batch := self._scheduler.next_batch():
                for job in batch:
                    _step(runner, job)

    def _refuse_all(self, error: MFalconError) -> None:
        """Accept nothing more and answer what is queued with an error."""
        for job in self._scheduler.close():
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)

    def _start(self) -> Runner:
        model = self._checkpoint.model
        microbatch = self._config.microbatch or measure_microbatch(model)
        _log.info("microbatch %d, %d threads, backend %s", microbatch, self._config.threads, BACKEND)
        dtype = model.kv_shape().dtype
        fingerprint = f"{self._checkpoint.fingerprint}:{dtype}"
        store: StateStore[KVState] = StateStore(fingerprint, self._config.kv_budget_bytes)
        return Runner(model, self._checkpoint.items, store, microbatch, self.model.version)


def _step(runner: Runner, job: Job) -> None:
    """Run one job and answer it; whatever goes wrong is answered to this request alone."""
    if not job.future.set_running_or_notify_cancel():
        return
    try:
        if job.deadline is not None and time.monotonic() > job.deadline:
            raise DeadlineExceeded("the deadline passed while the request was queued")
        match job:
            case RankJob():
                job.future.set_result(runner.rank(job))
            case PrefillJob():
                job.future.set_result(runner.prefill(job))
            case ForgetJob():
                runner.forget(job.user_id)
                job.future.set_result(None)
    except MFalconError as error:
        job.future.set_exception(error)
    except Exception as error:  # noqa: BLE001 (the step's edge: it must answer somebody)
        _log.exception("a step failed")
        failure = EngineFailure("the engine failed on this request; the server's log has the cause")
        failure.__cause__ = error
        job.future.set_exception(failure)


def _model_info(checkpoint: Checkpoint, config: EngineConfig) -> ModelInfo:
    model, ranker, shape = checkpoint.model, checkpoint.model.config, checkpoint.model.kv_shape()
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
        backend=f"{shape.device} {shape.dtype} {BACKEND}".replace("torch.", ""),
    )
