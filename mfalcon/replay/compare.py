"""What moved between two answers to the same requests: of one request, and of all by slices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mfalcon.best_first import best_first
from mfalcon.types import Floats

TOP: Final = 10
LENGTHS: Final = ((0, 0), (1, 31), (32, 127), (128, 511), (512, 2_047), (2_048, None))
"""Of histories, by which answers are told apart: from, to."""
Reals = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moved:
    """Of one request. spearman, mean_error, max_error: of each task; a correlation is NaN where either side gives all
    candidates one score. top_overlap: the share of the first's ten best that the other has among its ten best.
    top_changed: whether another candidate is first. is_equal: every score is the same to the bit.
    """

    spearman: tuple[float, ...]
    mean_error: tuple[float, ...]
    max_error: tuple[float, ...]
    top_overlap: float
    top_changed: bool
    is_equal: bool


def moved(scores: Floats, task_scores: Floats, others: Floats, other_tasks: Floats) -> Moved:
    """scores, others: [n] blends, n > 0. task_scores, other_tasks: [num_tasks, n] of the same tasks."""
    errors = np.abs(task_scores.astype(np.float64) - other_tasks.astype(np.float64))
    best, bests = best_first(scores, TOP), best_first(others, TOP)
    return Moved(
        spearman=tuple(spearman(one, other) for one, other in zip(task_scores, other_tasks, strict=True)),
        mean_error=tuple(errors.mean(axis=1).tolist()),
        max_error=tuple(errors.max(axis=1).tolist()),
        top_overlap=len(np.intersect1d(best, bests)) / len(best),
        top_changed=bool(best[0] != bests[0]),
        is_equal=scores.tobytes() == others.tobytes() and task_scores.tobytes() == other_tasks.tobytes(),
    )


def spearman(one: Floats, other: Floats) -> float:
    """Rank correlation, ties at their mean rank; NaN where one side has one value alone."""
    a, b = _ranks(one), _ranks(other)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else float("nan")


def _ranks(values: Floats) -> Reals:
    """[n], from 0; equal values have the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: Reals = last - (counts + 1) / 2
    ranks: Reals = means[inverse]
    return ranks


@dataclass(slots=True)
class Slice:
    """Requests that are told together."""

    num: int = 0
    num_equal: int = 0
    num_top_changed: int = 0
    overlap: float = 0.0
    spearman: list[list[float]] = field(default_factory=list)
    mean_error: list[float] = field(default_factory=list)
    max_error: list[float] = field(default_factory=list)

    def add(self, one: Moved) -> None:
        """One request more."""
        if not self.num:
            self.spearman = [[] for _ in one.spearman]
            self.mean_error, self.max_error = [0.0] * len(one.mean_error), [0.0] * len(one.max_error)
        self.num += 1
        self.num_equal += one.is_equal
        self.num_top_changed += one.top_changed
        self.overlap += one.top_overlap
        for at, value in enumerate(one.spearman):
            if not np.isnan(value):
                self.spearman[at].append(value)
        for at, error in enumerate(one.mean_error):
            self.mean_error[at] += error
        self.max_error = [max(pair) for pair in zip(self.max_error, one.max_error, strict=True)]

    def told(self, tasks: Sequence[str]) -> dict[str, object]:
        """For programs. Correlations are None where no request has one."""
        return {
            "num": self.num,
            "equal_to_the_bit": self.num_equal,
            "top1_changed": self.num_top_changed / self.num,
            "top10_overlap": self.overlap / self.num,
            "tasks": {
                task: {
                    "spearman_mean": float(np.mean(values)) if values else None,
                    "spearman_p1": float(np.percentile(values, 1)) if values else None,
                    "spearman_min": min(values) if values else None,
                    "mean_abs_error": self.mean_error[at] / self.num,
                    "max_abs_error": self.max_error[at],
                }
                for at, (task, values) in enumerate(zip(tasks, self.spearman, strict=True))
            },
        }


@dataclass(frozen=True, slots=True)
class Worst:
    """A request that moved much: by whom it is named in the log, and what to look for."""

    user: str
    request_id: str
    time_ms: int
    model: str
    num_candidates: int
    history_len: int
    top_overlap: float
    spearman: float | None
    max_error: float

    @property
    def order(self) -> tuple[float, float, float]:
        """The smallest is the worst."""
        return self.top_overlap, 1.0 if self.spearman is None else self.spearman, -self.max_error


@dataclass(slots=True)
class Comparison:
    """Answers of one side against those of another. tasks: that both have. most_worst: requests to list."""

    tasks: tuple[str, ...]
    most_worst: int = 10
    all: Slice = field(default_factory=Slice)
    by_length: dict[str, Slice] = field(default_factory=dict)
    by_tier: dict[str, Slice] = field(default_factory=dict)
    worst: list[Worst] = field(default_factory=list)

    def add(self, one: Moved, tier: str, worst: Worst) -> None:
        """One request more. tier: that answered when it was captured."""
        self.all.add(one)
        self.by_length.setdefault(length_slice(worst.history_len), Slice()).add(one)
        self.by_tier.setdefault(tier, Slice()).add(one)
        if not one.is_equal and self.most_worst:
            self.worst.append(worst)
            if len(self.worst) > 4 * self.most_worst:
                self._cut()

    def told(self) -> dict[str, object]:
        """For programs."""
        self._cut()
        names = [length_slice(first) for first, _ in LENGTHS]
        return {
            **(self.all.told(self.tasks) if self.all.num else {"num": 0}),
            "by_history_len": {n: self.by_length[n].told(self.tasks) for n in names if n in self.by_length},
            "by_tier": {name: self.by_tier[name].told(self.tasks) for name in sorted(self.by_tier)},
            "worst": [{name: getattr(one, name) for name in one.__slots__} for one in self.worst],
        }

    def _cut(self) -> None:
        self.worst = sorted(self.worst, key=lambda one: one.order)[: self.most_worst]


def length_slice(num_events: int) -> str:
    """The name of the slice of histories of such a length."""
    for first, last in LENGTHS:
        if last is None or num_events <= last:
            return f"{first}+" if last is None else str(first) if first == last else f"{first}-{last}"
    raise AssertionError


def percentiles(micros: Sequence[int]) -> Mapping[str, float]:
    """p50, p90 and p99 in milliseconds; none without numbers."""
    if not micros:
        return {}
    values = np.percentile(np.array(micros), [50, 90, 99]) / 1_000
    return dict(zip(("p50_ms", "p90_ms", "p99_ms"), map(float, values), strict=True))
