"""Least squares on relative error without negative coefficients: what parts of a request cost, from wholes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SWEEPS = 20_000
_LEAST_CHANGE = 1e-12


def fitted(
    features: Sequence[Sequence[float]], seconds: Sequence[float], known: Sequence[float] | None = None
) -> tuple[float, ...]:
    """Seconds a unit of each feature, such that known + features @ result is about `seconds`, which are above 0.

    known: what is explained already. The error counts relative to all of `seconds`: the little that is left of a large
    request, with all of its noise, says little. Coordinate descent on the normal equations.
    """
    whole = np.array(seconds, dtype=np.float64)
    rows = np.array(features, dtype=np.float64) / whole[:, None]
    target = 1 - (0.0 if known is None else np.array(known, dtype=np.float64)) / whole
    scale = np.linalg.norm(rows, axis=0)
    rows = rows / scale
    gram: NDArray[np.float64] = rows.T @ rows
    moment = rows.T @ target
    found = np.zeros(len(moment))
    for _ in range(_SWEEPS):
        before = found.copy()
        for at in range(len(found)):
            found[at] = max(0.0, found[at] + (moment[at] - gram[at] @ found) / gram[at, at])
        if np.abs(found - before).max() <= _LEAST_CHANGE * max(found.max(), 1e-300):
            break
    return tuple((found / scale).tolist())
