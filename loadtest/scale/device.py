"""A replica's device in the simulation: one thing at a time, in slices, as `mfalcon/engine/scheduler.py` has it.

The earliest deadline goes first within two priorities: what takes less than a slice goes before what takes longer,
which keeps a share of the device while both wait. What would come after its deadline is refused when it comes.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from simpy import Environment, Event

from loadtest.scale.cores import Cores
from loadtest.scale.thread import Doing
from mfalcon.engine.scheduler import LONG_SHARE

_NEARLY_NOTHING = 1e-12
"""Seconds that a clock in floating point may leave."""


@dataclass(slots=True, eq=False)
class Job:
    """Work for a device. begin: is called when its turn first comes, and tells how many seconds it really takes.

    done: happens with whether it was done: not if its deadline passed, or the replica died.
    """

    due: float
    forecast_s: float
    begin: Callable[[], float]
    done: Event
    left_s: float = math.nan
    is_short: bool = field(init=False, default=False)

    @property
    def owed_s(self) -> float:
        """Seconds to go, as far as is known."""
        return self.forecast_s if math.isnan(self.left_s) else self.left_s


class Device:
    """`num_waiting` jobs are queued or under way."""

    def __init__(self, env: Environment, cores: Cores, slice_s: float) -> None:
        self._env = env
        self._cores = cores
        self._slice_s = slice_s
        self._order = count()
        self._short: list[tuple[float, int, Job]] = []
        self._long: list[tuple[float, int, Job]] = []
        self._running: Job | None = None
        self._credit_s = 0.0
        self._life = 0
        self._changed = env.event()
        env.process(self._work())

    def admits(self, due: float, seconds: float) -> bool:
        """Whether a job of so many seconds is predicted to be done in time. Where nothing waits, everything is."""
        ahead = [job for _, _, job in self._short]
        now = min(self._running.owed_s, self._slice_s) if self._running else 0.0
        if not (ahead or self._long or self._running):
            return True
        if seconds > self._slice_s:
            ahead += [job for due_at, _, job in self._long if due_at <= due]
            now = self._running.owed_s if self._running else 0.0
        return self._env.now + now + sum(job.owed_s for job in ahead) + seconds <= due

    def submit(self, job: Job) -> None:
        """Queue a job."""
        job.is_short = job.forecast_s <= self._slice_s
        self._put(job)
        if not self._changed.triggered:
            self._changed.succeed()

    def kill(self) -> None:
        """The process is gone, and everything that it had to do."""
        self._life += 1
        jobs = [job for _, _, job in (*self._short, *self._long)]
        jobs += [self._running] if self._running else []
        self._short, self._long, self._running = [], [], None
        for job in jobs:
            job.done.succeed(False)

    def _put(self, job: Job) -> None:
        heapq.heappush(self._short if job.is_short else self._long, (job.due, next(self._order), job))

    def _next(self) -> Job:
        if not self._long:
            self._credit_s = 0.0
            return heapq.heappop(self._short)[2]
        is_owed = self._credit_s >= min(self._slice_s, self._long[0][2].owed_s)
        return heapq.heappop(self._long if is_owed or not self._short else self._short)[2]

    def _work(self) -> Doing:
        while True:
            while not (self._short or self._long):
                self._changed = self._env.event()
                yield self._changed
            job, life = self._next(), self._life
            if self._env.now > job.due:
                job.done.succeed(False)
                continue
            if math.isnan(job.left_s):
                job.left_s = job.begin()
            self._running = job
            seconds = min(job.left_s, self._slice_s)
            yield self._cores.run(seconds)
            if life != self._life:
                continue
            self._running = None
            job.left_s -= seconds
            if not job.is_short:
                self._credit_s = max(0.0, self._credit_s - seconds)
            elif self._long:
                self._credit_s += seconds * LONG_SHARE / (1 - LONG_SHARE)
            if job.left_s <= _NEARLY_NOTHING:
                job.done.succeed(True)
            else:
                self._put(job)
