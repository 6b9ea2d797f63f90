"""From measured runs and prices to one configuration: the best within a latency budget, or the cheapest that is good
enough; the curve that it stands on; and what more of each thing would bring.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mfalcon.planner.grid import FITTED, HELD_OUT, Reach, RunRecord, Shape
from mfalcon.planner.latency import Memory
from mfalcon.planner.law import Law, PlainLogs, Prediction, Reals, left_out

_ALIKE = 0.0005
"""AUC: of predictions that are closer than this, the quicker one is taken."""
_MOST_CHECKED = 3
_MOST_DATA = 64


@dataclass(frozen=True, slots=True)
class Trust:
    """How far the law was from runs, mean absolute error in AUC: each left out of the fit, and those held out; and how
    far a law of plain logarithms was from the same.
    """

    left_out: float
    held_out: float
    plain_left_out: float
    plain_held_out: float
    num_runs: int


@dataclass(frozen=True, slots=True)
class Option:
    """A configuration with what is predicted of it."""

    shape: Shape
    auc: Prediction
    seconds: float


@dataclass(frozen=True, slots=True)
class More:
    """Twice as much of one thing. gain: of AUC. seconds: of a rank then. is_beyond: no run had so much of it."""

    what: str
    gain: Prediction
    seconds: float
    is_beyond: bool


@dataclass(frozen=True, slots=True)
class Check:
    """A configuration that was served with random weights, to see whether it keeps the budget."""

    shape: Shape
    predicted_s: float
    measured_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What is recommended. chosen: None if nothing keeps the budget and reaches the target, then `best` comes nearest.
    curve: those than which nothing quicker is better, the quickest first. data_needed: how many times the data `best`
    would need for the target, infinity if no amount is seen to do.
    """

    chosen: Option | None
    best: Option | None
    checks: tuple[Check, ...]
    curve: tuple[Option, ...]
    more: tuple[More, ...]
    data_needed: float | None
    memory: Memory | None


class Knowledge:
    """The law of quality over runs of one data set."""

    def __init__(self, records: Sequence[RunRecord], entropy: Mapping[float, float], reach: Reach) -> None:
        """records: of all shapes of the grid. entropy: of the users of each share."""
        of = {record.shape: record for record in records}
        fitted, held = ([of[shape] for shape in reach.shapes(rows)] for rows in (FITTED, HELD_OUT))
        self._entropy = entropy
        sizes, held_sizes = self._sizes(fitted), self._sizes(held)
        auc, held_auc = (np.array([record.validation for record in rows]) for rows in (fitted, held))
        judged, plain = Law(sizes, auc), PlainLogs(sizes, auc)
        self.trust = Trust(
            left_out=_mean(left_out(Law, sizes, auc)),
            held_out=_mean(judged.at(held_sizes) - held_auc),
            plain_left_out=_mean(left_out(PlainLogs, sizes, auc)),
            plain_held_out=_mean(plain.at(held_sizes) - held_auc),
            num_runs=len(records),
        )
        self.law = Law(np.concatenate([sizes, held_sizes]), np.concatenate([auc, held_auc]))
        self._most = np.concatenate([sizes, held_sizes]).max(0)
        self.data = float(max(record.events for record in records)) * entropy[1.0]

    def _sizes(self, records: Sequence[RunRecord]) -> Reals:
        rows = [(*_of(r.shape), r.events * self._entropy[r.shape.users_share]) for r in records]
        return np.array(rows, dtype=np.float64)

    def predict(self, shape: Shape, data_times: float = 1.0) -> Prediction:
        """Of a shape trained on all users, or on so many times as much."""
        return self.law.predict((*_of(shape), self.data * data_times))

    def more(self, shape: Shape, seconds_of: Callable[[Shape], float]) -> tuple[More, ...]:
        """What twice as much of each thing would bring."""
        now = (*_of(shape), self.data)
        found = []
        for index, what in enumerate(("layers", "width", "history", "data")):
            then = tuple(2 * size if at == index else size for at, size in enumerate(now))
            larger = shape if what == "data" else _shape(*(int(size) for size in then[:3]))
            is_beyond = then[index] > self._most[index]
            found.append(More(what, self.law.gain(now, then), seconds_of(larger), bool(is_beyond)))
        return tuple(found)

    def data_needed(self, shape: Shape, auc: float) -> float:
        """How many times the data a shape would need, to a tenth; infinity if more than 64 times."""
        for times in np.geomspace(1, _MOST_DATA, 64):
            if self.predict(shape, float(times)).auc >= auc:
                return float(times)
        return math.inf


def make_plan(
    knowledge: Knowledge,
    shapes: Sequence[Shape],
    seconds_of: Callable[[Shape], float],
    budget_s: float,
    target_auc: float | None,
    measured: Callable[[Shape], float],
    memory: Callable[[Shape], Memory],
) -> Plan:
    """Choose among shapes. seconds_of: predicted; measured: by serving it, which is slow."""
    options = [Option(shape, knowledge.predict(shape), seconds_of(shape)) for shape in shapes]
    curve = _curve(options)
    within = [option for option in options if option.seconds <= budget_s]
    checks = list[Check]()
    chosen = best = None
    for option in _by_preference(within, target_auc)[:_MOST_CHECKED]:
        checks.append(Check(option.shape, option.seconds, measured(option.shape)))
        if checks[-1].measured_s <= budget_s:
            best = option
            break
    if best is not None and (target_auc is None or best.auc.auc >= target_auc):
        chosen = best
    needed = None
    if best is not None and target_auc is not None and chosen is None:
        needed = knowledge.data_needed(best.shape, target_auc)
    return Plan(
        chosen=chosen,
        best=best,
        checks=tuple(checks),
        curve=curve,
        more=() if best is None else knowledge.more(best.shape, seconds_of),
        data_needed=needed,
        memory=None if best is None else memory(best.shape),
    )


def regret(records: Sequence[RunRecord], knowledge: Knowledge, seconds_of: Callable[[Shape], float]) -> float:
    """The most AUC that following the law would cost under any budget, among the runs on all users: the best that was
    measured within it, less what was measured of the one that the law prefers.
    """
    whole = [record for record in records if record.shape.users_share == 1]
    by_time = sorted(whole, key=lambda record: seconds_of(record.shape))
    worst = 0.0
    for count in range(1, len(by_time) + 1):
        within = by_time[:count]
        preferred = max(within, key=lambda record: knowledge.predict(record.shape).auc)
        worst = max(worst, max(record.validation for record in within) - preferred.validation)
    return worst


def _by_preference(options: Sequence[Option], target_auc: float | None) -> list[Option]:
    """The quickest that reaches the target first, if any does; else the best, and of those as good the quickest."""
    if reach := [option for option in options if target_auc is not None and option.auc.auc >= target_auc]:
        return sorted(reach, key=lambda option: option.seconds)
    left, order = list(options), list[Option]()
    while left and len(order) < _MOST_CHECKED:
        top = max(option.auc.auc for option in left)
        first = min((o for o in left if o.auc.auc >= top - _ALIKE), key=lambda option: option.seconds)
        left.remove(first)
        order.append(first)
    return order


def _curve(options: Sequence[Option]) -> tuple[Option, ...]:
    out = list[Option]()
    for option in sorted(options, key=lambda option: (option.seconds, -option.auc.auc)):
        if not out or option.auc.auc > out[-1].auc.auc:
            out.append(option)
    return tuple(out)


def _of(shape: Shape) -> tuple[int, int, int]:
    return shape.layers, shape.dim, shape.max_history


def _shape(layers: int, dim: int, max_history: int) -> Shape:
    return Shape(layers=layers, dim=dim, max_history=max_history, users_share=1.0)


def _mean(errors: Reals) -> float:
    return float(np.mean(np.abs(errors)))
