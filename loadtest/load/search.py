"""The highest rate that a server bears, by bisection: rates in between are measured until the bracket is narrow."""

from collections.abc import Awaitable, Callable

NARROW = 1.05
"""Where the rate that fails is at most so many times the rate that holds, the search ends."""
MAX_RUNS = 12
_STEP = 2.0


async def search(
    start: float, holds: Callable[[float], Awaitable[bool]], *, lowest: float, highest: float, max_runs: int = MAX_RUNS
) -> tuple[float | None, float | None]:
    """The highest rate that held and the lowest above it that failed; None where every rate tried was of one kind.

    lowest, highest: no rate beyond is tried.

    Taken for granted: what holds at a rate holds at every lower one. A run that was unlucky makes the answer too low.
    """
    low: float | None = None
    high: float | None = None
    rate = start
    for _ in range(max_runs):
        if await holds(rate):
            low = rate
        else:
            high = rate
        if low is None:
            rate /= _STEP
        elif high is None:
            rate *= _STEP
        else:
            rate = (low * high) ** 0.5
        if not lowest <= rate <= highest or (low is not None and high is not None and high / low <= NARROW):
            break
    return low, high
