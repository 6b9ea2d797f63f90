"""How much of a large piece of work fits into a slice of time."""

from bisect import bisect_right
from collections.abc import Callable


def fitting(seconds_of: Callable[[int], float], most: int, unit: int, seconds: float) -> int:
    """The largest multiple of `unit`, or all `most`, whose predicted time is at most `seconds`; 0 if none is.

    seconds_of: the predicted time of so many; it never falls.
    """
    if not most or seconds_of(most) <= seconds:
        return most
    return unit * bisect_right(range(unit, most, unit), seconds, key=seconds_of)
