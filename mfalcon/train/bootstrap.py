"""How sure a metric is: the same over users drawn again, with those that a chance of 95% leaves.

Users are drawn, not events: events of one user are alike, and drawing them alone would promise too much. Everybody is
judged on the same draws, so a difference of two has an interval of its own.
"""

import numpy as np
from numpy.typing import NDArray

from mfalcon.types import Ids

Reals = NDArray[np.float64]

_MOST_DRAWS, _FEWEST_DRAWS = 200, 40
_WEIGHTS = 20_000_000
"""Draws times events: that many bytes, and some seconds."""


def draws_of(users: Ids, seed: int = 0) -> NDArray[np.uint8]:
    """How often each event counts in each draw, [num_draws + 1, num_events]; in the first each once. users: [n]."""
    _, user = np.unique(users, return_inverse=True)
    num_users, num_events = int(user.max()) + 1, len(user)
    num_draws = int(np.clip(_WEIGHTS // num_events, _FEWEST_DRAWS, _MOST_DRAWS))
    rng = np.random.default_rng(seed)
    weights = np.ones((num_draws + 1, num_events), dtype=np.uint8)
    for draw in range(1, num_draws + 1):
        count = np.bincount(rng.integers(0, num_users, num_users), minlength=num_users)
        weights[draw] = np.minimum(count, 255)[user]
    return weights


def aucs(label: Reals, score: Reals, draws: NDArray[np.uint8]) -> Reals:
    """The AUC of each draw, [num_draws], NaN where a class is absent. label, score: [n]."""
    order = np.argsort(score, kind="stable")
    label, ordered = label[order], score[order]
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    block = np.cumsum(is_first) - 1
    num_blocks = int(block[-1]) + 1
    out = np.full(len(draws), np.nan)
    for draw, weights in enumerate(draws):
        weight = weights[order].astype(np.float64)
        positive = np.bincount(block, weight * label, num_blocks)
        negative = np.bincount(block, weight * (1 - label), num_blocks)
        pairs = positive.sum() * negative.sum()
        if pairs:
            below = np.cumsum(negative) - negative
            out[draw] = float(positive @ (below + negative / 2)) / pairs
    return out


def rmses(label: Reals, predicted: Reals, draws: NDArray[np.uint8]) -> Reals:
    """The root of the mean squared error of each draw, [num_draws], NaN where nobody was drawn."""
    squares = (predicted - label) ** 2
    num = draws.sum(axis=1, dtype=np.float64)
    total = np.array([weights @ squares for weights in draws])
    out: Reals = np.sqrt(np.divide(total, num, out=np.full(len(num), np.nan), where=num > 0))
    return out


def interval(values: Reals) -> tuple[float, float]:
    """The middle 95% of what draws gave, NaN where there are none."""
    drawn = values[~np.isnan(values)]
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)
