"""The device: one thread that owns it, the workers that share its cores, and the queue in front of them.

A device knows no checkpoint: it is given a runner for each model by name, and a job says which model it is for.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import torch

from mfalcon.backends.select import use_device
from mfalcon.engine.job import CallJob, Job, RankJob
from mfalcon.engine.runner import Runner
from mfalcon.engine.scheduler import Scheduler
from mfalcon.engine.step import refuse, step, step_batch
from mfalcon.engine.workers import WorkerPool, take_cores
from mfalcon.errors import EngineFailure, MFalconError, Overloaded, ShuttingDown
from mfalcon.kvcache.cost import Estimate, QueueCost

_log = logging.getLogger(__name__)
_LARGEST_BATCH = 32
"""Users of one computation on a GPU."""

T = TypeVar("T")
Runners = Mapping[str, Runner]


class Device:
    """Runs the jobs of all models, step after step. Any thread may submit; the device thread alone computes."""

    def __init__(self, device: torch.device, threads: int, queue_size: int) -> None:
        """threads: cores that compute. queue_size: jobs that may wait."""
        self.device = device
        self.threads = threads
        self.workers = WorkerPool(1 if device.type == "cuda" else threads)
        self._queue_cost = QueueCost()
        self._scheduler = Scheduler(queue_size)
        self._runners: Runners = {}
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._busy_since: float | None = None
        self._thread: threading.Thread | None = None

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

    def check(self) -> None:
        """Raise Overloaded when the queue is full, ShuttingDown after `close` and on a device that is lost."""
        if self._failure is not None:
            raise ShuttingDown("the device is lost, and the server ends; ask another one")
        self._scheduler.check()

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

    def submit(self, job: Job) -> None:
        """Queue a job. Raises as `check` does; a job that deletes is never too many."""
        self._scheduler.submit(job)

    def call(self, work: Callable[[], T]) -> "Future[T]":
        """Do something on the device thread, behind what is queued. Raises ShuttingDown."""
        job = CallJob(work)
        self._scheduler.submit(job)
        return job.future

    def num_queued(self) -> int:
        """Jobs that wait."""
        return len(self._scheduler)

    def expected_wait(self) -> Estimate:
        """What a job would wait behind those that are queued, of whichever model."""
        return self._queue_cost.predict(len(self._scheduler))

    def admit(self, deadline: float | None) -> None:
        """Raise as `check` does, and Overloaded for a job that would probably be answered after its deadline: of what
        is begun and comes too late nobody has anything. Where nothing is queued everything is taken. deadline:
        time.monotonic() seconds.
        """
        self.check()
        ahead = len(self._scheduler)
        if deadline is None or not ahead:
            return
        wait, left = self._queue_cost.predict(ahead + 2), deadline - time.monotonic()  # what is being done, and itself
        if 0 < left < wait.upper:  # what is late already is answered as that
            raise Overloaded(
                f"deadline: got {1e3 * left:.0f} ms, must be at least {1e3 * wait.upper:.0f} ms behind {ahead} other "
                "requests; try again later"
            )

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
            while batch := self._next_batch():
                began = time.monotonic()
                self._busy_since = None if isinstance(batch[0], CallJob) else began  # a reload measures for long
                try:
                    self._do(batch)
                except Exception as error:  # noqa: BLE001 (the thread's edge: nobody may wait for an answer for ever)
                    _log.exception("the device thread ended")
                    self._failure = error
                    refuse(batch, EngineFailure("the device thread ended; the server's log has the cause"))
                    self.close(EngineFailure("the device thread ended"))
                    break
                self._busy_since = None
                for _ in batch:
                    self._queue_cost.observe((time.monotonic() - began) / len(batch))
                del batch  # what its jobs hold is not kept while waiting for the next
        self.workers.close()

    def _next_batch(self) -> list[Job]:
        """What is done at once: users of one model as one computation, or small requests side by side, a core each."""
        batched = any(runner.batched for runner in self._runners.values())
        return self._scheduler.next_batch(_LARGEST_BATCH if batched else self.workers.num_workers, self._joins)

    def _joins(self, first: Job, other: Job) -> bool:
        if not isinstance(first, RankJob) or not isinstance(other, RankJob):
            return False
        one, two = self._runners.get(first.model), self._runners.get(other.model)
        if one is None or two is None:
            return False
        if one.batched or two.batched:
            return one is two
        return one.is_small(first) and two.is_small(other)

    def _do(self, batch: list[Job]) -> None:
        first = batch[0]
        runner = self._runners.get(first.model) if isinstance(first, RankJob) else None
        if runner is not None and runner.batched:
            step_batch(runner, batch)
        elif len(batch) == 1:
            step(self._runners, first)
        else:
            self.workers.run(partial(step, self._runners), batch)
