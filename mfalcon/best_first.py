"""The order of scores."""

import numpy as np

from mfalcon.types import Positions, no_positions


def best_first(scores: np.ndarray, top_k: int) -> Positions:
    """Positions of the top_k highest scores, best first, ties by position."""
    if top_k == 0:
        return no_positions()
    if top_k >= len(scores):
        return np.argsort(-scores, kind="stable").astype(np.uint32)
    good = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])  # a few more where scores are equal
    return good[np.argsort(-scores[good], kind="stable")[:top_k]].astype(np.uint32)
