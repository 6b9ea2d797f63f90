"""What users do, in simulated time: visits by Zipf's law at a rate, or those of the trace of returning users."""

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from loadtest.load.trace import Append, Rank, Step
from loadtest.load.traffic import poisson_arrivals
from loadtest.load.visit_times import HOTTEST_CYCLE_S, cycle_s, visit_times
from loadtest.scale.gaps import DAY_S


class Act(NamedTuple):
    """A user's events are appended, or candidates are ranked; the other number is 0."""

    time_s: float
    user: int
    added: int
    candidates: int


@dataclass(frozen=True, slots=True)
class Visits:
    """Poisson visits of Zipf users. Histories of before are log-uniform; `append_share` of the visits follow an append
    of 1 to `max_append` events. hot_share: of the visits, one user's more than by the law.
    """

    rate: float
    seconds: float
    num_users: int = 10_000
    exponent: float = 1.0
    min_history: int = 64
    max_history: int = 2_048
    append_share: float = 0.6
    max_append: int = 10
    candidates: int = 500
    hot_share: float = 0.0
    seed: int = 0

    def with_hot_user(self) -> Self:
        """The first user has a quarter of the visits beside its own."""
        return replace(self, hot_share=0.25)


def zipf(num_users: int, exponent: float) -> NDArray[np.float64]:
    """[num_users]: the share of the visits of each, the most frequent first."""
    weights: NDArray[np.float64] = np.arange(1, num_users + 1, dtype=np.float64) ** -exponent
    weights /= weights.sum()
    return weights


def histories(visits: Visits) -> NDArray[np.int64]:
    """[num_users] events of before."""
    low, high = math.log(visits.min_history), math.log(visits.max_history)
    drawn = np.random.default_rng((visits.seed, 1)).uniform(low, high, visits.num_users)
    return np.exp(drawn).round().astype(np.int64)


def acts(visits: Visits) -> Iterator[Act]:
    """In the order of time. Users come with their histories: nothing is appended before a first visit."""
    rng = np.random.default_rng(visits.seed)
    times = poisson_arrivals(visits.rate, visits.seconds, rng)
    users = np.searchsorted(np.cumsum(zipf(visits.num_users, visits.exponent)), rng.random(len(times)))
    users = np.minimum(users, visits.num_users - 1)
    users[rng.random(len(times)) < visits.hot_share] = 0
    added = rng.integers(1, visits.max_append + 1, len(times)) * (rng.random(len(times)) < visits.append_share)
    for time_s, user, count in zip(times.tolist(), users.tolist(), added.tolist(), strict=True):
        if count:
            yield Act(time_s, user, count, 0)
        yield Act(time_s, user, 0, visits.candidates)


def returning(num_users: int, visits_a_day: float, seconds: float, added: int, candidates: int) -> Iterator[Act]:
    """Users who are alike and come in bursts, each visit after an append: what `gaps.py` has as a distribution."""
    # Of the user of rank 2 a cycle is 2 ** exponent times that of the first, and has four visits.
    exponent = math.log2(4 * DAY_S / visits_a_day / HOTTEST_CYCLE_S)
    cycle = cycle_s(2, exponent)
    starts = np.random.default_rng(0).uniform(0, cycle, num_users)
    waiting = [(start, user) for user, start in enumerate(starts.tolist()) if start < seconds]
    heapq.heapify(waiting)
    times: dict[int, Iterator[float]] = {}
    while waiting:
        time_s, user = heapq.heappop(waiting)
        if user not in times:
            times[user] = visit_times(np.random.default_rng((0, user)), 2, exponent, time_s)
            next(times[user])
        yield Act(time_s, user, added, 0)
        yield Act(time_s, user, 0, candidates)
        if (next_s := next(times[user])) < seconds:
            heapq.heappush(waiting, (next_s, user))
        else:
            del times[user]


def acts_of(steps: Iterable[Step]) -> Iterator[Act]:
    """The appends and ranks of a trace, which has neither deletes nor edits."""
    for step in steps:
        match step:
            case Append():
                yield Act(step.time_s, step.user, len(step.events), 0)
            case Rank():
                yield Act(step.time_s, step.user, 0, len(step.candidates))
            case _:
                raise ValueError(f"{type(step).__name__}: not simulated")
