"""Which candidates may be in a top, where a request wants some of them never to be. Their scores stay."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mfalcon.best_first import best_first
from mfalcon.types import Events, Ids, RankRequest, RankResult

Eligible = NDArray[np.int64]
"""[num_eligible] positions of candidates, ascending."""


def eligible(request: RankRequest, result: RankResult, history: Events) -> Eligible:
    """Those of the scored candidates that may be in the top. history: what the user did; its items are seen, and so are
    those of the request's recent events.
    """
    may = np.ones(result.num_scored, dtype=np.bool_)
    if request.exclude_unknown:
        may[result.unknown] = False
    if request.exclude_seen:
        seen: Ids = np.concatenate([history["item_id"], request.recent_events["item_id"]])
        may &= ~np.isin(request.candidates[: result.num_scored], seen)
    return np.flatnonzero(may)


def among(positions: Eligible, request: RankRequest, result: RankResult) -> tuple[RankRequest, RankResult]:
    """A request for these candidates alone, and its answer: positions are among these. What it says of unknown
    candidates, of failed ones and of members is not.
    """
    scores = result.scores[positions]
    fewer = replace(
        result,
        scores=scores,
        task_scores=result.task_scores[:, positions],
        top=best_first(scores, request.top_k),
    )
    return replace(request, candidates=request.candidates[positions]), fewer


def with_top(result: RankResult, positions: Eligible, fewer: RankResult) -> RankResult:
    """The whole answer with the top of these candidates."""
    return replace(
        result,
        top=positions[fewer.top].astype(np.uint32),
        timings=fewer.timings,
        rerank_skipped=fewer.rerank_skipped,
    )
