"""What users do, in simulated time: visits by Zipf's law at a rate, or those of the trace of returning users."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtest.load.trace import Append, Rank, Step
from loadtest.load.traffic import poisson_arrivals


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
