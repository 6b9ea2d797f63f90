"""This machine's clock, and which numbers may be times in milliseconds since 1970."""

import time

import numpy as np
from numpy.typing import NDArray

from mfalcon.types import MAX_TIME_MS

_EARLIEST_MS = 631_152_000_000
"""The start of 1990: no log is older."""
_YEAR_MS = 366 * 86_400_000


def now_ms() -> int:
    """The time of this machine's clock."""
    return time.time_ns() // 1_000_000


def seconds_now() -> int:
    """The same in whole seconds since 1970."""
    return int(time.time())


def is_plausible(times: NDArray[np.int64], max_clock_skew_ms: int) -> NDArray[np.bool_]:
    """Which times are no numbers of seconds, and lie no further in the future than that if it is not 0."""
    now = now_ms()
    is_seconds = (times >= _EARLIEST_MS // 1_000) & (times <= (now + _YEAR_MS) // 1_000)
    return ~is_seconds & (times <= (now + max_clock_skew_ms if max_clock_skew_ms else MAX_TIME_MS))


def unit_of(value: int) -> str:
    """The unit, in words, in which a number that is no time of our days in milliseconds would be one; "" for none."""
    latest = now_ms() + _YEAR_MS
    for unit, num, per_ms in (("seconds", 1_000, 1), ("microseconds", 1, 1_000), ("nanoseconds", 1, 1_000_000)):
        if _EARLIEST_MS <= value * num // per_ms <= latest:
            return f"; this would be a time of our days in {unit}"
    return ""
