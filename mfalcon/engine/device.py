"""The device: one thread that owns it, the workers that share its cores, and the schedule in front of them.

A device knows no checkpoint: it is given a runner for each model by name, and a job says which model it is for.
"""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

import torch

from mfalcon.backends.select import use_device
from mfalcon.engine.job import CallJob, RankJob
from mfalcon.engine.runner import Runner
from mfalcon.engine.scheduler import Scheduler, Turn
from mfalcon.engine.step import call, refuse, step
from mfalcon.engine.workers import WorkerPool, take_cores
from mfalcon.errors import EngineFailure, MFalconError, ShuttingDown
from mfalcon.kvcache.cost import Estimate
from mfalcon.load import Load
from mfalcon.metrics.device import DeviceMetrics

_log = logging.getLogger(__name__)
_LARGEST_BATCH = 32
"""Users of one computation on a GPU."""
SLICE_S = 0.008
_LOST = "the device is lost, and the server ends; ask another one"
_GAP_S = 0.001
"""The time between two steps is a part of the second if it is shorter than this: the device was not idle."""

T = TypeVar("T")
Runners = Mapping[str, Runner]


class Device:
    """Runs the jobs of all models, step after step. Any thread may submit; the device thread alone computes."""

    def __init__(
        self, device: torch.device, threads: int, queue_size: int, metrics: DeviceMetrics, slice_s: float = SLICE_S
    ) -> None:
        """threads: cores that compute. queue_size: jobs that may wait. slice_s: seconds that a step is predicted to
        take at most.
        """
        self.device = device
        self.threads = threads
        self.workers = WorkerPool(1 if device.type == "cuda" else threads)
        self._slice_s = slice_s
        self._scheduler = Scheduler(queue_size, slice_s)
        self._runners: Runners = {}
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._busy_since: float | None = None
        self._num_running = 0
        self._letting_go = threading.Lock()
        self._largest_batch = _LARGEST_BATCH
        self._thread: threading.Thread | None = None
        self._metrics = metrics
        metrics.watch(self.num_queued, self.num_running, lambda: self.expected_wait().seconds, self.heartbeat)

    def start(self, prepare: Callable[[], Runners]) -> None:
        """Begin. prepare: makes the runners, by name of their model, on the device thread; jobs may queue meanwhile."""
        self._thread = threading.Thread(target=self._run, args=(prepare,), name="mfalcon-device", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """True from the end of `prepare` until the device is closed or lost."""
        return self._started.is_set() and self._failure is None and not self._scheduler.closed

    @property
    def closed(self) -> bool:
        """True once nothing more is accepted."""
        return self._scheduler.closed

    def wait_ready(self, timeout: float | None = None) -> None:
        """Block until warm. Raises EngineFailure if the device thread could not start."""
        if not self._started.wait(timeout):
            raise EngineFailure(f"the model was not ready after {timeout} s")
        if self._failure is not None:
            raise EngineFailure(f"the device thread could not start: {self._failure}") from self._failure

    def check_open(self) -> None:
        """Raise ShuttingDown after `close` and on a device that is lost."""
        if self._failure is not None:
            raise ShuttingDown(_LOST)
        if self.closed:
            raise ShuttingDown("the server is shutting down")

    def lost(self, stall_s: float) -> str | None:
        """Why nobody will be answered any more: the thread has ended, or a step of requests takes longer than `stall_s`
        seconds (0: however long). None while all is well. Any thread may ask.
        """
        if self._failure is not None:
            return f"the device thread ended: {self._failure}"
        since = self._busy_since
        if stall_s and since is not None and time.monotonic() - since > stall_s:
            return f"a step of the device takes longer than {stall_s:g} s"
        return None

    def heartbeat(self) -> float:
        """Seconds since the step of requests in progress began, 0 while there is none. Any thread may ask."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def coming(self, deadline: float | None) -> AbstractContextManager[None]:
        """Count a job that will be submitted; see `Scheduler.coming`."""
        self.check_open()
        return self._scheduler.coming(deadline)

    def submit(self, job: RankJob) -> None:
        """Queue a job. Raises as `check_open` does, and Overloaded for one that is too many or would come too late; see
        `Scheduler.admit`.
        """
        self.check_open()
        runner = self._runners.get(job.model)
        if runner is not None:
            job.forecast = runner.forecast(job)
        self._scheduler.submit(job)

    def discard(self, job: RankJob) -> None:
        """Forget a job whose caller has left."""
        if self._scheduler.discard(job) and job.progress is not None:
            with contextlib.suppress(ShuttingDown):
                self.call(partial(self._let_go, job))

    def call(self, work: Callable[[], T]) -> "Future[T]":
        """Do something on the device thread, before its next step. Raises ShuttingDown."""
        job = CallJob(work)
        self._scheduler.call(job)
        return job.future

    def delete(self, user: bytes | None) -> "Future[None]":
        """Delete every state of a user in every model, or of all users if that is None. Raises ShuttingDown."""

        def delete() -> None:
            for runner in self._runners.values():
                runner.delete(user)

        return self.call(delete)

    def num_running(self) -> int:
        """Jobs of the step in progress. Any thread."""
        return self._num_running

    def num_queued(self) -> int:
        """Jobs that wait."""
        return len(self._scheduler)

    def expected_wait(self) -> Estimate:
        """What a job would wait behind those that are queued, of whichever model."""
        return self._scheduler.expected_wait()

    def load(self) -> Load:
        """How busy it is, for those who ask from afar."""
        return self._scheduler.load()

    def close(self, why: MFalconError) -> None:
        """Accept nothing more, and answer what is queued with an error; the step in progress goes on."""
        refuse(self._scheduler.close(), why)

    def join(self) -> None:
        """Wait for the step in progress and the end of the thread."""
        if self._thread is not None:
            self._thread.join()

    @property
    def runners(self) -> dict[str, Runner]:
        """Those that do the jobs now, by name of their model."""
        return dict(self._runners)

    def serve(self, runners: Runners) -> None:
        """Have these runners do the jobs from now on. On the device thread."""
        self._runners = runners

    def _run(self, prepare: Callable[[], Runners]) -> None:
        take_cores(self.threads)
        use_device(self.device)
        with torch.inference_mode():
            try:
                self._runners = prepare()
            except Exception as error:  # noqa: BLE001 (the thread's edge: `wait_ready` and the queue must be answered)
                self._failure = error
                self.close(EngineFailure(f"the device thread could not start: {error}"))
                return
            finally:
                del prepare
                self._started.set()
            ended = time.monotonic()
            while turn := self._scheduler.next_turn(*self._bounds()):
                began = time.monotonic()
                self._scheduler.idle(began - ended)
                self._busy_since = began if turn.jobs else None  # a reload measures for long
                self._num_running = len(turn.jobs)
                try:
                    self._do(turn, ended if began - ended < _GAP_S else began)
                except Exception as error:  # noqa: BLE001 (the thread's edge: nobody may wait for an answer for ever)
                    _log.exception("the device thread ended")
                    self._failure = error
                    refuse(turn.jobs, EngineFailure("the device thread ended; the server's log has the cause"))
                    self.close(ShuttingDown(_LOST))  # what was only queued may be asked of another server
                    break
                self._busy_since, self._num_running = None, 0
                ended = time.monotonic()
                del turn  # what its jobs hold is not kept while waiting for the next
        self.workers.close()

    def _bounds(self) -> tuple[int, float]:
        """Most jobs of one step, and the seconds that it is predicted to take at most: users of one model as one
        computation, or small requests side by side, a core each.
        """
        if any(runner.batched for runner in self._runners.values()):
            return self._largest_batch, self._slice_s
        return self.workers.num_workers, math.inf

    def _do(self, turn: Turn, began: float) -> None:
        if turn.call is not None:
            call(turn.call)
            return
        jobs, done = turn.jobs, list[RankJob]()
        left = {id(job): job.left_s for job in jobs}
        runner = self._runners.get(jobs[0].model)
        if len(jobs) == 1 or (runner is not None and runner.batched):
            done += self._step(jobs)
        else:
            self.workers.run(lambda job: done.extend(self._step([job])), jobs)
        done_s = sum(left[id(job)] - job.left_s for job in done)
        took_s = time.monotonic() - began
        if done:
            self._metrics.step(done[0].model, len(done), self._scheduler.pace.predict(done_s, 1).seconds, took_s)
        refuse(
            self._scheduler.did(jobs, done_s, took_s),
            ShuttingDown("the server shut down before this request was done"),
        )

    def _step(self, jobs: Sequence[RankJob]) -> list[RankJob]:
        return step(self._runners, jobs, self._scheduler.slice_of(jobs), self._make_room)

    def _make_room(self, num_jobs: int) -> bool:
        """So many jobs at once were too much for the memory: try no batch of more than half again, and have the jobs
        that wait give up their pages. They will find their states again, or make them.
        """
        with self._letting_go:
            self._largest_batch = max(1, min(self._largest_batch, num_jobs // 2 or self._largest_batch))
            suspended = self._scheduler.suspended
            for job in suspended:
                self._let_go(job)
            return bool(suspended)

    def _let_go(self, job: RankJob) -> None:
        runner = self._runners.get(job.model)
        if runner is not None:
            runner.let_go(job)
