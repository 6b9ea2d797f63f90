"""The one schedule: what the device does next, and what is refused because it would come too late.

Work comes in slices of a bounded predicted time. The earliest deadline goes first within two priorities: a job of less
than a slice is short and goes before long ones, which keep a share of the device while both wait. What would miss its
deadline behind the rest, or make another miss its own, is refused when it comes: it would cost the others what nobody
has any use of. Where a job may be answered in part, it is taken instead if its first candidates can be scored in time;
the rest of it has what all others leave of the device. Sources: earliest deadline first is optimal on one processor
that may preempt (Liu and Layland, 1973); mandatory and optional parts of imprecise computations (Liu et al., 1991).
"""

import math
import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from mfalcon.engine.job import CallJob, RankJob
from mfalcon.errors import Overloaded, ShuttingDown
from mfalcon.kvcache.cost import Estimate, Pace
from mfalcon.load import Load

LONG_SHARE = 0.25
"""Of the device's time, what long jobs get at least while short ones wait too."""
_USUAL_GAIN = 0.05
_LOAD_SECONDS = 1.0
"""Over which the short jobs' part of the device's time is measured."""

_Queued = tuple[float, int, RankJob]
"""When it is wanted, order of arrival, job."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What is done next: jobs as one step, or a call; neither when the scheduler is closed."""

    jobs: Sequence[RankJob] = ()
    call: CallJob | None = None

    def __bool__(self) -> bool:
        return bool(self.jobs) or self.call is not None


@dataclass(slots=True)
class _Lane:
    """Jobs of one priority, by deadline."""

    jobs: list[_Queued] = field(default_factory=list)

    def take(self, most: int, seconds: float) -> list[RankJob]:
        """The most urgent job, and up to `most` in all that share a batch with it while their sum is predicted to take
        no longer than `seconds`. A user's other jobs of a model are passed over, unless what they need is the same.
        """
        batch = [self.jobs.pop(0)[2]]
        forecast, left = batch[0].forecast, seconds - batch[0].left_s
        if forecast.batch is None:
            return batch
        twins, index = {(batch[0].user, batch[0].model): forecast.twin}, 0
        while index < len(self.jobs) and len(batch) < most:
            other = self.jobs[index][2]
            owner, twin = (other.user, other.model), other.forecast.twin
            is_twin = twin is not None and twins.get(owner) == twin
            if other.forecast.batch == forecast.batch and other.left_s <= left and (is_twin or owner not in twins):
                batch.append(self.jobs.pop(index)[2])
                twins[owner] = twin
                left -= other.left_s
            else:
                index += 1
        return batch

    def seconds(self, due: float = math.inf) -> float:
        """Predicted, of what is to be answered by then."""
        return sum(job.owed_s for wanted_by, _, job in self.jobs if wanted_by <= due)


class Scheduler:
    """Accepts jobs from any thread, hands them to one.

    queue_size: jobs that may wait. slice_s: the bound of a slice, seconds at the usual speed.
    """

    def __init__(self, queue_size: int, slice_s: float) -> None:
        self._usual_slice_s = slice_s
        self._slowness = 1.0
        self.pace = Pace()
        self._queue_size = queue_size
        self._short, self._long, self._extra = _Lane(), _Lane(), _Lane()
        self._calls: deque[CallJob] = deque()
        self._running: Sequence[RankJob] = ()
        self._coming: dict[int, float] = {}
        self._usual_s = 0.0
        self._credit_s = 0.0
        self._short_load = 0.0
        self._busy, self._ended_at = 0.0, time.monotonic()
        self._number = 0
        self._changed = threading.Condition(threading.RLock())
        self._closed = False

    def check(self) -> None:
        """Raise Overloaded when the queue is full, ShuttingDown after `close`."""
        self._check_open()
        if len(self) + len(self._coming) >= self._queue_size:
            raise Overloaded(f"the queue holds {self._queue_size} requests, which is its limit; try again later")

    @contextmanager
    def coming(self, deadline: float | None) -> Iterator[None]:
        """Count a job that will be submitted by then: others that are admitted meanwhile wait behind it. Raises as
        `admit` does, for a job that costs nothing.
        """
        with self._changed:
            self.admit(deadline, 0.0, is_short=True)
            self._number += 1
            number = self._number
            self._coming[number] = self._usual_s
        try:
            yield
        finally:
            with self._changed:
                self._coming.pop(number)

    def admit(self, deadline: float | None, seconds: float, *, is_short: bool) -> None:
        """Raise as `check` does, and Overloaded for a job of so many predicted seconds that would probably be answered
        after its deadline, or make another so. Where nothing waits or runs everything is taken: what nobody else wants
        costs nothing, and a prediction that is too high would never be corrected. deadline: time.monotonic() seconds.
        """
        with self._changed:
            self.check()
            if self._num_ahead and (refusal := self._refusal(deadline, seconds, is_short=is_short)):
                raise refusal

    def submit(self, job: RankJob) -> None:
        """Queue a job, with its forecast. Raises as `admit` does."""
        with self._changed:
            job.left_s, self._slowness = job.forecast.seconds, job.forecast.slowness
            job.is_short = job.left_s <= self._slice_s
            if job.request.allow_partial and self._refusal(job.deadline, job.left_s, is_short=job.is_short):
                job.extra_s = job.left_s - job.forecast.least_s
                job.is_short = job.owed_s <= self._slice_s
            self.admit(job.deadline, job.owed_s, is_short=job.is_short)
            self._usual_s += _USUAL_GAIN * (job.owed_s - self._usual_s)
            self._put(job)
            self._changed.notify()

    def call(self, job: CallJob) -> None:
        """Have something else done before the next step; it is never too much. Raises ShuttingDown."""
        with self._changed:
            self._check_open()
            self._calls.append(job)
            self._changed.notify()

    def next_turn(self, most: int, seconds: float) -> Turn:
        """Wait for work. most: jobs of one step; seconds: what a step of several is predicted to take at most."""
        with self._changed:
            while not (self._calls or len(self) or self._closed):
                self._changed.wait()
            if self._calls:
                return Turn(call=self._calls.popleft())
            if not len(self):
                return Turn()
            self._running = self._next_lane().take(most, seconds)
            return Turn(self._running)

    def did(self, jobs: Sequence[RankJob], predicted: float, seconds: float) -> list[RankJob]:
        """A step is over: queue again what is not answered, and learn how long it took. Returns what will not go on
        because the scheduler is closed.
        """
        with self._changed:
            self._running = ()
            self.pace.observe(predicted, seconds)
            is_short = jobs[0].is_short
            self._busy += (1 - self._busy) * min(1.0, seconds / _LOAD_SECONDS)
            self._ended_at = time.monotonic()
            self._short_load += (is_short - self._short_load) * min(1.0, seconds / _LOAD_SECONDS)
            if not is_short:
                self._credit_s = max(0.0, self._credit_s - seconds)
            elif self._long.jobs:
                self._credit_s += seconds * LONG_SHARE / (1 - LONG_SHARE)
            unanswered = [job for job in jobs if not job.future.done()]
            if self._closed:
                return unanswered
            for job in unanswered:
                self._put(job)
            return []

    def slice_of(self, jobs: Sequence[RankJob]) -> float:
        """Predicted seconds that a step of these may take: less where one is soon answered with what it has, or has not
        yet what it was taken for.
        """
        with self._changed:
            now, rate, seconds = time.monotonic(), self.pace.predict(1.0, 1).seconds, self._slice_s
            for job in jobs:
                seconds = min(seconds, max(0.0, job.cut_at - now) / rate)
                if job.extra_s and job.so_far is None:
                    seconds = min(seconds, job.owed_s)
            return seconds

    def idle(self, seconds: float) -> None:
        """Nothing was to be done for so long."""
        with self._changed:
            self._short_load -= self._short_load * min(1.0, seconds / _LOAD_SECONDS)
            self._busy -= self._busy * min(1.0, seconds / _LOAD_SECONDS)

    def discard(self, job: RankJob) -> bool:
        """Forget a job whose caller has left; False if it does not wait."""
        with self._changed:
            for lane in self._lanes:
                jobs = [entry for entry in lane.jobs if entry[2] is not job]
                if len(jobs) < len(lane.jobs):
                    lane.jobs = jobs
                    return True
            return False

    @property
    def suspended(self) -> list[RankJob]:
        """Jobs that have begun and wait to go on."""
        with self._changed:
            return [job for lane in self._lanes for _, _, job in lane.jobs if job.progress is not None]

    def expected_wait(self) -> Estimate:
        """What a job without a deadline would wait."""
        with self._changed:
            seconds = self._ahead() + self._long.seconds()
            return self.pace.predict(seconds, 1 + seconds / self._slice_s)

    def load(self) -> Load:
        """What a short job finds that is due after all others; it need not be asked again while nothing waits."""
        with self._changed:
            is_full = len(self) + len(self._coming) >= self._queue_size
            now, busy = time.monotonic(), self._busy
            if not self._running:  # since the last step, which `idle` hears of when there is another one
                busy *= max(0.0, 1 - (now - self._ended_at) / _LOAD_SECONDS)
            busy = round(busy, 2)
            if not len(self):
                return Load(is_full=is_full, utilisation=busy)
            last_due = self._short.jobs[-1][0] if self._short.jobs else 0.0
            return Load(now + self._wait(math.inf, 0.0, is_short=True), last_due, is_full, busy)

    def close(self) -> list[RankJob | CallJob]:
        """Accept nothing more; returns what was still queued, for the caller to answer."""
        with self._changed:
            self._closed = True
            left: list[RankJob | CallJob] = [*self._calls]
            left += [job for lane in self._lanes for _, _, job in lane.jobs]
            self._calls.clear()
            self._short, self._long, self._extra = _Lane(), _Lane(), _Lane()
            self._changed.notify_all()
            return left

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._closed

    def __len__(self) -> int:
        return sum(len(lane.jobs) for lane in self._lanes)

    @property
    def _lanes(self) -> tuple[_Lane, _Lane, _Lane]:
        """The first two count as work that is to be done; nobody waits for the last."""
        return self._short, self._long, self._extra

    @property
    def _slice_s(self) -> float:
        """The bound of a slice now: what is short and what a slice holds does not change with a neighbour's load."""
        return self._usual_slice_s * self._slowness

    @property
    def _num_ahead(self) -> int:
        return len(self) + len(self._at_work)

    @property
    def _at_work(self) -> list[RankJob]:
        """Those of the step that runs that have no answer yet: the end of a step comes a little behind its answers."""
        return [job for job in self._running if not job.future.done()]

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDown("the server is shutting down")

    def _put(self, job: RankJob) -> None:
        self._number += 1
        if job.extra_s and job.so_far is not None:
            lane, job.is_short = self._extra, False
        else:
            lane = self._short if job.is_short else self._long
        insort(lane.jobs, (job.wanted_by, self._number, job))

    def _next_lane(self) -> _Lane:
        if not self._long.jobs:
            self._credit_s = 0.0
            return self._short if self._short.jobs else self._extra
        is_owed = self._credit_s >= min(self._slice_s, self._long.jobs[0][2].left_s)
        return self._long if is_owed or not self._short.jobs else self._short

    def _ahead(self, due: float = math.inf, *, of_short: bool = False) -> float:
        """Predicted seconds of what goes before a short job of that deadline: other short ones, the slice that runs,
        and what is coming. of_short: of that no more than a slice each, as what is long goes behind a short job.
        """
        longest = self._slice_s if of_short else math.inf
        running = sum(min(job.left_s, self._slice_s) for job in self._at_work)
        return running + self._short.seconds(due) + sum(min(seconds, longest) for seconds in self._coming.values())

    def _refusal(self, deadline: float | None, seconds: float, *, is_short: bool) -> Overloaded | None:
        """Why a new job should not be taken, if it should not: it, or another one, would be late."""
        now = time.monotonic()
        if deadline is None or deadline <= now:  # what is late already is answered as that
            return None
        usual = seconds / self._slowness  # what slows this machine is not on every other one
        if now + usual > deadline:
            return Overloaded(
                f"deadline: got {1e3 * (deadline - now):.0f} ms, must be at least {1e3 * usual:.0f} ms even where "
                "nothing else is to be done",
                elsewhere=False,
            )
        needed = self._wait(deadline, seconds, is_short=is_short)
        if now + needed > deadline:
            return Overloaded(
                f"deadline: got {1e3 * (deadline - now):.0f} ms, must be at least {1e3 * needed:.0f} ms behind "
                f"{self._num_ahead} other requests; try again later",
                retry_after_s=now + needed - deadline,
            )
        if seconds and (late := self._made_late(now, deadline, seconds, is_short=is_short)) is not None:
            return Overloaded(
                f"deadline: got {1e3 * (deadline - now):.0f} ms, which would make another of {self._num_ahead} "
                "requests miss its own; try again later",
                retry_after_s=late,
            )
        return None

    def _wait(self, due: float, seconds: float, *, is_short: bool) -> float:
        """Seconds until a new job is answered, which 19 of 20 stay below."""
        work = self._ahead(due, of_short=True) if is_short else self._ahead() + self._long.seconds(due)
        return self._upper(work + seconds) / self._rest(is_short=is_short)

    def _made_late(self, now: float, due: float, seconds: float, *, is_short: bool) -> float | None:
        """By how many seconds a new job would make one of a later deadline late that is not so without it, at most."""
        lane, rest = self._short if is_short else self._long, self._rest(is_short=is_short)
        work = self._ahead(-math.inf, of_short=True) if is_short else self._ahead()
        own, worst = self.pace.predict(seconds, 1).seconds / rest, 0.0
        for wanted_by, _, job in lane.jobs:
            work += job.owed_s
            if due < wanted_by and job.due < math.inf:
                left = job.due - now - self._upper(work) / rest
                if 0 <= left < own:
                    worst = max(worst, own - left)
        return worst or None

    def _upper(self, seconds: float) -> float:
        return self.pace.predict(seconds, 1 + seconds / self._slice_s).upper

    def _rest(self, *, is_short: bool) -> float:
        """The part of the device's time that the other priority leaves."""
        if is_short:
            return 1 - LONG_SHARE if self._long.jobs else 1.0
        return max(LONG_SHARE, 1 - self._short_load)
