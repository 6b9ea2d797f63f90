"""Ways to pick candidates one by one, each by its relevance and by how unlike those before it it is.

All weigh by a strength from 0, relevance alone, to 1, diversity alone. Of equal candidates the first is picked.
"""

import numpy as np
from numpy.typing import NDArray

from mfalcon.rerank.likeness import SimilarTo
from mfalcon.types import Ids

Reals = NDArray[np.float64]

_EXPLAINED = 1e-5
"""An item of which no more is left than this is, within rounding, a mixture of those picked before it."""


def mmr(relevance: Reals, similar_to: SimilarTo, num_picks: int, strength: float) -> Ids:
    """Positions of maximal marginal relevance (Carbonell and Goldstein, 1998), [num_picks]: each time the greatest
    (1 - strength) * relevance - strength * likeness to the most alike of those picked.

    relevance: [num_candidates], best first. O(num_picks * num_candidates * dim).
    """
    picks = np.empty(num_picks, dtype=np.int64)
    gain, most_alike = (1 - strength) * relevance, np.zeros(len(relevance))
    for place in range(num_picks):
        best = picks[place] = int(np.argmax(gain - strength * most_alike))
        gain[best] = -np.inf
        np.maximum(most_alike, similar_to(best), out=most_alike)
    return picks


def dpp(relevance: Reals, similar_to: SimilarTo, num_picks: int, strength: float) -> Ids:
    """Positions of a determinantal point process of q_i S_ij q_j, log q = (1 - strength) / strength * relevance, by its
    greedy mode (Chen et al., 2018, algorithm 1), [num_picks]. Each pick is the greatest (1 - strength) * relevance +
    strength * log sqrt(left), where `left` is what of an item those before it do not explain: q leaves the Cholesky
    factor alone, so that nothing overflows however large it is. When nothing is left of any, the rest follows by
    relevance.

    relevance: [num_candidates], best first. O(num_picks * num_candidates * (num_picks + dim)).
    """
    picks, picked = np.empty(num_picks, dtype=np.int64), np.zeros(len(relevance), dtype=np.bool_)
    gain, left = (1 - strength) * relevance, np.ones(len(relevance))
    factor = np.empty((num_picks, len(relevance)))
    for place in range(num_picks):
        value = gain + strength / 2 * np.log(np.maximum(left, _EXPLAINED))
        value[left == 0] = -np.inf  # at any strength, were that so small that half of it is 0
        best = int(np.argmax(value))
        if value[best] == -np.inf:
            rest = np.flatnonzero(~picked)
            picks[place:] = rest[np.argsort(-relevance[rest], kind="stable")[: num_picks - place]]
            break
        picks[place], picked[best] = best, True
        explained = np.einsum("i,ij->j", factor[:place, best], factor[:place])
        factor[place] = (similar_to(best) - explained) / np.sqrt(left[best])
        left -= factor[place] ** 2
        left[left < _EXPLAINED] = 0
        left[best] = 0
    return picks


def msd(relevance: Reals, similar_to: SimilarTo, num_picks: int, strength: float) -> Ids:
    """Positions by max-sum diversification (Gollapudi and Sharma, 2009; greedy as in Borodin et al., 2012),
    [num_picks]: a list of the greatest (1 - strength) * its mean relevance + strength * its mean unlikeness of two,
    1 - likeness. That is a property of the set: it is made greedily, and then shown best first.

    relevance: [num_candidates], best first. O(num_picks * num_candidates * dim).
    """
    picks = np.empty(num_picks, dtype=np.int64)
    worth, of_pairs = (1 - strength) * relevance, 2 * strength / max(1, num_picks - 1)
    for place in range(num_picks):
        best = picks[place] = int(np.argmax(worth))
        worth -= of_pairs * similar_to(best)
        worth[best] = -np.inf
    return np.sort(picks)
