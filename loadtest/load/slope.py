"""Whether a figure that is sampled over a run grows: its slope an hour, with an interval that is honest about noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SETTLED_AFTER = 0.2
"""A server warms up in the first part of a run, which is left out."""
NUM_BLOCKS = 20
_FEWEST = 2 * NUM_BLOCKS
_T_95 = 2.101
"""Student's t of 18 degrees of freedom, those that a line leaves to the blocks: 95% on two sides."""
_BIAS = 3 / NUM_BLOCKS
"""What is left around a line shows the correlation of neighbours too low by about this."""
_MOST_ALIKE = 0.9


@dataclass(frozen=True, slots=True)
class Slope:
    """What a figure gains an hour, and the ends of the 95% interval."""

    per_hour: float
    low: float
    high: float

    @property
    def zero_within_noise(self) -> bool:
        """The interval contains zero."""
        return self.low <= 0 <= self.high


def slope_of(seconds: Sequence[float], values: Sequence[float]) -> Slope | None:
    """Least squares over the last part of the run; None for too few samples. seconds: ascending.

    Samples that follow each other are alike, so each is little evidence of its own, and an interval from all of them
    would be far too narrow. It is taken from means of blocks, and widened by how alike neighbouring blocks still are.
    """
    samples = np.array([seconds, values], dtype=np.float64)
    if samples.shape[1]:
        first, last = samples[0, 0], samples[0, -1]
        samples = samples[:, samples[0] >= first + SETTLED_AFTER * (last - first)]
    if samples.shape[1] < _FEWEST:
        return None
    times, means = np.array([block.mean(axis=1) for block in np.array_split(samples, NUM_BLOCKS, axis=1)]).T
    hours = (times - times.mean()) / 3600
    rest = means - means.mean()
    spread = hours @ hours
    per_hour = hours @ rest / spread
    rest -= per_hour * hours
    alike = rest[1:] @ rest[:-1] / (rest @ rest or 1.0) + _BIAS
    wider = (1 + min(alike, _MOST_ALIKE)) / (1 - min(alike, _MOST_ALIKE)) if alike > 0 else 1.0
    half = _T_95 * np.sqrt(wider * (rest @ rest) / (NUM_BLOCKS - 2) / spread)
    return Slope(float(per_hour), float(per_hour - half), float(per_hour + half))
