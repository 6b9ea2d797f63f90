"""Che's approximation: the hit rate of a least recently used cache, without a simulation (Che, Tung, Wang, 2002).

A state is there if its user came within the time T in which as many different users come as the cache has room for.
"""

import numpy as np
from numpy.typing import NDArray

Shares = NDArray[np.float64]
_STEPS = 200


def lru_hit_rate(shares: Shares, kept: float, counts: Shares | None = None) -> float:
    """shares: of the visits of each user, [num]; where each stands for `counts` users, of every one of them.

    kept: users for whom the cache has room.
    """
    many = np.ones_like(shares) if counts is None else counts
    if kept >= many.sum():
        return 1.0
    # The time in which `kept` different users come, in visits; their number rises with it, so by bisection.
    low, high = 0.0, float(kept)
    while _different(shares, many, high) < kept:
        high *= 2
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _different(shares, many, middle) < kept else (low, middle)
    return float((many * shares * -np.expm1(-shares * high)).sum())


def _different(shares: Shares, counts: Shares, visits: float) -> float:
    return float((counts * -np.expm1(-shares * visits)).sum())
