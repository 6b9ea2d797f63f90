"""Quality as a law of layers, width, history and data, fitted to short runs.

AUC = b + sum over x in (layers, width, history, data) of w_x (ln x + p_x / x^e_x), 13 parameters: "Performance Law of
Large Models for Sequential Recommendation" (Shen et al. 2024, arXiv 2412.00430), which has the decay terms because more
of a thing helps less the more there is, and at last not at all. data is events times their entropy. For given exponents
the rest is linear, and a ridge regression: the law is the mean of those over a grid of exponents, each weighted by how
likely it makes the runs. Their spread is the interval.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]

_EXPONENTS = (0.25, 0.5, 1.0, 2.0)
_NOISE = 0.005
"""AUC: what a run is off the law: two seeds of one shape differ by .002, and no law knows all."""
_USUAL_WEIGHT, _USUAL_DECAY = 0.01, 0.03
"""AUC: what e times as much of a thing usually brings, and how far its decay usually reaches; the ridge draws to 0. Of
those tried, these make the runs on MovieLens-100K the likeliest."""
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True, slots=True)
class Prediction:
    """An AUC and the standard deviation of it."""

    auc: float
    deviation: float


@dataclass(frozen=True, slots=True)
class _Fit:
    """For some exponents: mean and covariance of the linear parameters, and the log evidence."""

    exponents: Reals
    mean: Reals
    covariance: Reals
    evidence: float


class Law:
    """Fitted to runs. Sizes are positive: [num_runs, 4] of layers, width, history, data."""

    def __init__(self, sizes: Reals, auc: Reals) -> None:
        assert len(sizes) == len(auc) > 1
        self._base = sizes.min(0)
        fits = [self._fit(sizes, auc, np.array(exponents)) for exponents in product(_EXPONENTS, repeat=sizes.shape[1])]
        best = max(fit.evidence for fit in fits)
        likely = [(math.exp(fit.evidence - best), fit) for fit in fits]
        total = sum(weight for weight, _ in likely)
        self._fits = [(weight / total, fit) for weight, fit in likely if weight > _NEGLIGIBLE * total]

    def at(self, sizes: Reals) -> Reals:
        """AUC [num] of sizes [num, 4]."""
        out = np.zeros(len(sizes))
        for weight, fit in self._fits:
            out += weight * (self._columns(sizes, fit.exponents) @ fit.mean)
        return out

    def predict(self, sizes: Sequence[float]) -> Prediction:
        """Of one shape, as a new run would give it: noise is part of the deviation."""
        found = self._spread(lambda exponents: self._columns(np.array([sizes], dtype=np.float64), exponents)[0])
        return Prediction(found.auc, math.hypot(found.deviation, _NOISE))

    def gain(self, now: Sequence[float], then: Sequence[float]) -> Prediction:
        """What going from one shape to another brings."""
        both = np.array([now, then], dtype=np.float64)
        return self._spread(lambda exponents: np.subtract(*self._columns(both, exponents)[::-1]))

    def _spread(self, row_of: Callable[[Reals], Reals]) -> Prediction:
        """Of a linear function of the parameters, which depends on the exponents."""
        mean = second = 0.0
        for weight, fit in self._fits:
            row = row_of(fit.exponents)
            value = float(row @ fit.mean)
            mean += weight * value
            second += weight * (value**2 + float(row @ fit.covariance @ row))
        return Prediction(mean, math.sqrt(max(0.0, second - mean**2)))

    def _columns(self, sizes: Reals, exponents: Reals) -> Reals:
        times = sizes / self._base
        return np.concatenate([np.ones((len(times), 1)), np.log(times), times**-exponents], axis=1)

    def _fit(self, sizes: Reals, auc: Reals, exponents: Reals) -> _Fit:
        columns, num = self._columns(sizes, exponents), sizes.shape[1]
        usual = np.array([1.0] + num * [_USUAL_WEIGHT] + num * [_USUAL_DECAY])
        covariance = np.linalg.inv(columns.T @ columns / _NOISE**2 + np.diag(usual**-2)).astype(np.float64)
        mean = covariance @ (columns.T @ auc) / _NOISE**2
        of_data = columns * usual @ (columns * usual).T + _NOISE**2 * np.eye(len(auc))
        evidence = -0.5 * (auc @ np.linalg.solve(of_data, auc) + np.linalg.slogdet(of_data)[1])
        return _Fit(exponents, mean, covariance, float(evidence))


class PlainLogs:
    """The same without decay, by least squares: what the law has to beat."""

    def __init__(self, sizes: Reals, auc: Reals) -> None:
        self._mean = np.linalg.lstsq(self._columns(sizes), auc, rcond=None)[0]

    def at(self, sizes: Reals) -> Reals:
        """AUC [num] of sizes [num, 4]."""
        return self._columns(sizes) @ self._mean

    @staticmethod
    def _columns(sizes: Reals) -> Reals:
        return np.concatenate([np.ones((len(sizes), 1)), np.log(sizes)], axis=1)


def left_out(kind: type[Law] | type[PlainLogs], sizes: Reals, auc: Reals) -> Reals:
    """[num_runs] how far each run is from what a law fitted to the others says of it."""
    errors = np.zeros(len(auc))
    for index in range(len(auc)):
        others = np.arange(len(auc)) != index
        errors[index] = kind(sizes[others], auc[others]).at(sizes[index : index + 1])[0] - auc[index]
    return errors
