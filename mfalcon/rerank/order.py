"""The top of an answer in another order: the best candidates by score are reranked, and all others follow by score."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from mfalcon.best_first import best_first
from mfalcon.rerank.greedy import Reals, dpp, mmr, msd
from mfalcon.rerank.likeness import SimilarTo
from mfalcon.rerank.tail import Counts, rarity
from mfalcon.types import NO_SCORE, Floats, Ids, Positions, Rerank

DEFAULT_DEPTH = 200

_PROBABILITY_FLOOR = 1e-7

Greedy = Callable[[Reals, SimilarTo, int, float], Ids]

METHODS: Mapping[str, Greedy] = MappingProxyType({"mmr": mmr, "dpp": dpp, "msd": msd})


def reranked(
    scores: Floats,
    probabilities: Floats | None,
    top_k: int,
    rerank: Rerank,
    among: Callable[[Positions], SimilarTo],
    counts: Counts | None = None,
) -> Positions:
    """Positions of `top_k` candidates, [min(top_k, num_candidates)]: those that a method picks of the best `depth` by
    score, and behind these the others by score. Candidates without a score are last, whatever the strength.

    scores: [num_candidates]. probabilities: those that order the candidates as the scores do, if these are any. among:
    how alike the candidates at positions are. counts: how often their items were acted on, for a tail weight.
    """
    depth = min(rerank.depth or DEFAULT_DEPTH, int(np.count_nonzero(scores != NO_SCORE)))
    order = best_first(scores, max(top_k, depth))
    if (rerank.strength == 0 and rerank.tail_weight == 0) or top_k == 0 or depth < 2:
        return order[:top_k]
    best = order[:depth]
    relevance = standardised(scores, probabilities)[best]
    if rerank.tail_weight:
        assert counts is not None
        relevance = relevance + rerank.tail_weight * relevance.std() * rarity(counts(best))
        by_worth = np.argsort(-relevance, kind="stable")
        best, relevance = best[by_worth], relevance[by_worth]
    if not rerank.strength:
        return np.concatenate([best[:top_k], order[depth:top_k]])
    picks = METHODS[rerank.method](relevance, among(best), min(top_k, depth), rerank.strength)
    return np.concatenate([best[picks], order[depth:top_k]])


def standardised(scores: Floats, probabilities: Floats | None = None) -> Reals:
    """Scores, by the logits of their probabilities if there are any, less their mean and over their deviation, so that
    a strength means the same for every model and user: [num_candidates]. Those without a score have no say.
    """
    numbers = scores.astype(np.float64)
    if probabilities is not None:
        p = np.clip(probabilities.astype(np.float64), _PROBABILITY_FLOOR, 1 - _PROBABILITY_FLOOR)
        numbers = np.log(p / (1 - p))
    known = numbers[scores != NO_SCORE]
    spread = known.std() if len(known) else 0.0
    return (numbers - known.mean()) / spread if spread > 0 else np.zeros(len(scores))
