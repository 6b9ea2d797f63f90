"""What a diverse top costs in NDCG@10, and what it brings: how unlike the first ten are, how many items are shown.

numpy only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mfalcon.rerank.likeness import Likeness, SimilarTo
from mfalcon.rerank.order import reranked
from mfalcon.rerank.tail import long_tail, num_events
from mfalcon.types import Floats, Ids, Positions, Rerank

PLACES = 10
_DISCOUNT = 1 / np.log2(np.arange(PLACES) + 2)

Reals = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pool:
    """What one user may be shown: item rows, scores and, if these rank, probabilities, and what the user liked later,
    each [num_candidates].
    """

    rows: Ids
    scores: Floats
    probabilities: Floats | None
    liked: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Shown:
    """The first ten of every user. ndcg, diversity: [num_users]. coverage: the share of all items in the pools that
    somebody is shown. tail: the share of the long tail in the lists; None where items are not counted.
    """

    ndcg: Reals
    diversity: Reals
    coverage: float
    tail: float | None = None


def unlikeness(likeness: Likeness, rows: Ids) -> float:
    """How unlike each other the items of a list are, on average of all pairs, 0 to 2; 0 of one item. rows: [n]."""
    like = likeness.among(rows)
    pairs = [1 - like(place)[place + 1 :] for place in range(len(rows))]
    return float(np.concatenate(pairs).mean()) if len(rows) > 1 else 0.0


def show(pools: Sequence[Pool], likeness: Likeness, wish: Rerank) -> Shown:
    """Rank every pool as a server would. A list is as diverse as its items are unlike each other, on average of all
    pairs, by what users see: their tags, or their categories. One item alone is not.
    """
    ndcg, diversity, shown = list[float](), list[float](), list[Ids]()
    items, likeness_of_method = likeness.items, likeness.by(wish.method)
    seen = Likeness(items) if items.side else likeness
    for pool in pools:
        rows = pool.rows

        def among(at: Positions, rows: Ids = rows) -> SimilarTo:
            return likeness_of_method.among(rows[at])

        def counts(at: Positions, rows: Ids = rows) -> Ids:
            return num_events(items, rows[at])

        top = reranked(pool.scores, pool.probabilities, PLACES, wish, among, counts)
        ideal = _DISCOUNT[: int(pool.liked.sum())].sum()
        ndcg.append(float(_DISCOUNT[: len(top)] @ pool.liked[top] / ideal))
        diversity.append(unlikeness(seen, rows[top]))
        shown.append(rows[top])
    everything = np.unique(np.concatenate([pool.rows for pool in pools]))
    all_shown = np.concatenate(shown)
    tail = None if items.num_events is None else float(long_tail(items)[all_shown].mean())
    return Shown(np.array(ndcg), np.array(diversity), len(np.unique(all_shown)) / len(everything), tail)


def strongest(least: float, sweep: Sequence[tuple[float, Shown]], worth: Callable[[Shown], float]) -> float:
    """The strength of the list of a sweep that is worth the most, of those with this NDCG at least; 0 if there
    are none.
    """
    fit = [(worth(shown), strength) for strength, shown in sweep if shown.ndcg.mean() >= least]
    return max(fit)[1] if fit else 0.0
