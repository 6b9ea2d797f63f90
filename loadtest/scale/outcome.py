"""What became of every simulated request, and the figures that are read off that."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Outcome = Literal["host", "redis", "none", "refused", "late", "failed"]
"""Answered from a state in the block pool, from one that was fetched, or from none; refused at admission; given up at
its deadline; or lost with a replica, its retry too.
"""
ANSWERED: tuple[Outcome, ...] = ("host", "redis", "none")


@dataclass(frozen=True, slots=True)
class Ended:
    """A request. replica: that ended it, -1 if none took it. encoded: tokens. retried: whether another had it first."""

    user: int
    began: float
    ended: float
    outcome: Outcome
    replica: int
    encoded: int = 0
    retried: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """Over a time: counts, rates, latencies of answers. moved: answers by another replica than the user's last one."""

    seconds: float
    counts: dict[Outcome, int]
    retried: int
    moved: int
    encoded: int
    p50_s: float
    p99_s: float

    @property
    def answered(self) -> int:
        """Requests with scores."""
        return sum(self.counts[name] for name in ANSWERED)

    @property
    def total(self) -> int:
        """All requests."""
        return sum(self.counts.values())

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds if self.seconds else 0.0

    def share(self, outcome: Outcome) -> float:
        """Of the answers."""
        return self.counts[outcome] / self.answered if self.answered else 0.0


def summary(requests: Sequence[Ended], begin: float, end: float) -> Summary:
    """Of the requests that ended in a time."""
    owners: dict[int, int] = {}
    counts: Counter[Outcome] = Counter()
    taken: list[float] = []
    retried = moved = encoded = 0
    for request in requests:
        is_answered = request.outcome in ANSWERED
        has_moved = is_answered and owners.get(request.user, request.replica) != request.replica
        if is_answered:
            owners[request.user] = request.replica
        if not begin <= request.ended < end:
            continue
        counts[request.outcome] += 1
        retried += request.retried
        moved += has_moved
        if is_answered:
            encoded += request.encoded
            taken.append(request.ended - request.began)
    p50, p99 = np.percentile(taken or [0.0], (50, 99)).tolist()
    every: dict[Outcome, int] = {name: counts[name] for name in (*ANSWERED, "refused", "late", "failed")}
    return Summary(end - begin, every, retried, moved, encoded, p50, p99)
