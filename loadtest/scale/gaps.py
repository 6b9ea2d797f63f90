"""How long users stay away, for hit rates without a simulation: the gaps of `loadtest/load/visit_times.py` as a
distribution, of a user who comes so often a day.

A cache that keeps what was used within a time T answers the share of visits whose gap is at most T, and holds a user's
state for the part of the time that is within T of the last visit: Che's approximation for visits in bursts.
"""

import math
from dataclasses import dataclass

from loadtest.load.visit_times import (
    MINUTE_S,
    SHORTEST_S,
    TEN_MINUTES_S,
    WITHIN_A_MINUTE,
    WITHIN_TEN,
)

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Gaps:
    """visits_a_day: at most about 350, or the bursts themselves take longer than there is time."""

    visits_a_day: float

    @property
    def mean_s(self) -> float:
        """From a visit to the next."""
        return DAY_S / self.visits_a_day

    def hit_rate(self, seconds: float) -> float:
        """Share of the gaps that are at most so long."""
        within = min(max(seconds, SHORTEST_S), MINUTE_S)
        share = WITHIN_A_MINUTE * math.log(within / SHORTEST_S) / math.log(MINUTE_S / SHORTEST_S)
        within = min(max(seconds, MINUTE_S), TEN_MINUTES_S)
        share += (WITHIN_TEN - WITHIN_A_MINUTE) * math.log(within / MINUTE_S) / math.log(TEN_MINUTES_S / MINUTE_S)
        beyond = max(0.0, seconds - TEN_MINUTES_S)
        return share + (1 - WITHIN_TEN) * -math.expm1(-beyond / self._away_s)

    def held(self, seconds: float) -> float:
        """Share of the time that a state is kept which goes so long after the last visit: E[min(gap, T)] / E[gap]."""
        short = WITHIN_A_MINUTE * _mean_below(SHORTEST_S, MINUTE_S, seconds)
        short += (WITHIN_TEN - WITHIN_A_MINUTE) * _mean_below(MINUTE_S, TEN_MINUTES_S, seconds)
        beyond = max(0.0, seconds - TEN_MINUTES_S)
        long = min(seconds, TEN_MINUTES_S) + self._away_s * -math.expm1(-beyond / self._away_s)
        return (short + (1 - WITHIN_TEN) * long) / self.mean_s

    def kept_s(self, share: float) -> float:
        """How long after the last visit a state is kept where there is room for the states of this share of the users;
        infinite where there is room for all.
        """
        low, high = 0.0, 100 * DAY_S
        if share >= self.held(high):
            return math.inf
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.held(middle) < share else (low, middle)
        return high

    @property
    def _away_s(self) -> float:
        """Mean of what a long gap has beyond ten minutes."""
        short = WITHIN_A_MINUTE * _mean_below(SHORTEST_S, MINUTE_S, math.inf)
        short += (WITHIN_TEN - WITHIN_A_MINUTE) * _mean_below(MINUTE_S, TEN_MINUTES_S, math.inf)
        return max(1.0, (self.mean_s - short) / (1 - WITHIN_TEN) - TEN_MINUTES_S)


def _mean_below(low: float, high: float, seconds: float) -> float:
    """E[min(gap, seconds)] of a gap that is log-uniform."""
    if seconds <= low:
        return seconds
    top = min(seconds, high)
    width = math.log(high / low)
    return (top - low) / width + top * math.log(high / top) / width
