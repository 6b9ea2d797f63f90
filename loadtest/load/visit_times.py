"""When a user comes: visits in bursts, and bursts as often as the user's place in Zipf's law allows.

The gap from one visit to the user's next is drawn from three parts: half of the gaps are shorter than a minute, a
quarter lies between one minute and ten, a quarter is longer than ten. The first two are log-uniform (from one second
on). The last is ten minutes and an exponential rest, whose mean differs from user to user: it makes the mean rate of
visits of the user of rank r proportional to 1 / r^exponent.
"""

import math
from collections.abc import Iterator

import numpy as np

SHORTEST_S, MINUTE_S, TEN_MINUTES_S = 1.0, 60.0, 600.0
WITHIN_A_MINUTE, WITHIN_TEN = 0.5, 0.75
"""Shares of the gaps that are shorter than a minute and than ten."""

HOTTEST_CYCLE_S = 1200.0
"""Mean time from one burst of the first user to the next; 863 s of it are the burst itself and the ten minutes."""


def visit_times(rng: np.random.Generator, rank: int, exponent: float, start_s: float) -> Iterator[float]:
    """Ascending seconds of the visits of the user of a rank (1 is the most frequent), without end; first `start_s`."""
    away_s = cycle_s(rank, exponent) - _mean_burst_s() - TEN_MINUTES_S
    time_s = start_s
    while True:
        yield time_s
        time_s += _gap_s(rng, away_s)


def cycle_s(rank: int, exponent: float) -> float:
    """Mean seconds from one burst of a user to the next. A burst has 4 visits on average."""
    return HOTTEST_CYCLE_S * math.pow(rank, exponent)


def _gap_s(rng: np.random.Generator, away_s: float) -> float:
    part = rng.random()
    if part < WITHIN_A_MINUTE:
        return _log_uniform(rng, SHORTEST_S, MINUTE_S)
    if part < WITHIN_TEN:
        return _log_uniform(rng, MINUTE_S, TEN_MINUTES_S)
    return TEN_MINUTES_S + float(rng.exponential(away_s))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _mean_burst_s() -> float:
    """Mean seconds from the first visit of a burst to its last: the short gaps before a long one."""
    in_minute = (MINUTE_S - SHORTEST_S) / math.log(MINUTE_S / SHORTEST_S)
    in_ten = (TEN_MINUTES_S - MINUTE_S) / math.log(TEN_MINUTES_S / MINUTE_S)
    sum_s = WITHIN_A_MINUTE * in_minute + (WITHIN_TEN - WITHIN_A_MINUTE) * in_ten
    return sum_s / (1 - WITHIN_TEN)
