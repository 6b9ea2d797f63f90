"""Prediction merging: the task scores of several rankers become one, and the blend ranks those.

The members of an ensemble err in different places, so a mean of what they say is better than each of them. It is taken
of raw task outputs, before the blend: of logits (the product of experts, renormalised) or of probabilities (a mixture)
for binary tasks, of values for regression tasks. Evaluation and serving call this one function.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mfalcon.best_first import best_first
from mfalcon.types import NO_SCORE, Floats, MergeMethod, Positions, TaskInfo

Reals = NDArray[np.float64]

SMALLEST_PROBABILITY = 2.0**-24
"""The step of a float32 below 1: an answer carries no probability that is closer to 1 than this, so that no logit is
taken of more than 16.6 nor of less than -16.6.
"""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a merged task becomes: scale * output + shift, of the logit for a binary task, of the value otherwise."""

    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Merge:
    """How the members of an ensemble are merged.

    tasks: of every member, with their kinds and their weights in the blend. calibration: one for each task, or none.
    """

    method: MergeMethod
    tasks: tuple[TaskInfo, ...]
    calibration: tuple[Calibration, ...] = ()

    def __call__(self, members: Sequence[Floats], weights: Sequence[float]) -> "Merged":
        """Merge what has arrived. members: [num_tasks, num_candidates] task scores of each, `NO_SCORE` where it has
        none. weights: of each, above 0; of every candidate they are renormalised over the members that score it.
        """
        scores = np.stack([np.asarray(member, dtype=np.float64) for member in members])  # [num_members, num_tasks, n]
        has_score = (scores != NO_SCORE).all(axis=1)
        shares = np.asarray(weights, dtype=np.float64)[:, None] * has_score
        total = shares.sum(axis=0)
        shares = np.divide(shares, total, out=np.zeros_like(shares), where=total > 0)
        calibration = self.calibration or (Calibration(),) * len(self.tasks)
        by_task = np.stack(
            [self._task(task, scores[:, at], shares, calibration[at]) for at, task in enumerate(self.tasks)]
        )
        with np.errstate(over="ignore"):
            blended = np.array([task.weight for task in self.tasks]) @ by_task
            narrow, blend = by_task.astype(np.float32, order="C"), blended.astype(np.float32)
        is_scored = (total > 0) & np.isfinite(blend) & np.isfinite(narrow).all(axis=0)
        blend[~is_scored] = narrow[:, ~is_scored] = NO_SCORE
        return Merged(blend, narrow, np.flatnonzero(~is_scored).astype(np.uint32))

    def _task(self, task: TaskInfo, scores: Reals, shares: Reals, calibration: Calibration) -> Reals:
        """[num_candidates] of one task, of [num_members, num_candidates]."""
        inputs = logit(scores) if task.kind == "binary" and self.method == "logit" else scores
        mean: Reals = (shares * inputs).sum(axis=0)
        if task.kind == "regression":
            return mean * calibration.scale + calibration.shift
        raw = mean if self.method == "logit" else logit(mean)
        return sigmoid(raw * calibration.scale + calibration.shift)


@dataclass(frozen=True, slots=True)
class Merged:
    """scores: [num_candidates], the blend. task_scores: [num_tasks, num_candidates]. failed: positions of candidates
    that no member has a score for; their scores are `NO_SCORE`.
    """

    scores: Floats
    task_scores: Floats
    failed: Positions = field(default_factory=lambda: np.empty(0, dtype=np.uint32))

    def top(self, top_k: int) -> Positions:
        """Positions of the best, best first, ties by position."""
        return best_first(self.scores, top_k)


def logit(probabilities: Reals) -> Reals:
    """Of probabilities that are clipped to `SMALLEST_PROBABILITY`."""
    clipped = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    out: Reals = np.log(clipped) - np.log1p(-clipped)
    return out


def sigmoid(logits: Reals) -> Reals:
    """Of any logits, without overflow."""
    small = np.exp(-np.abs(logits))
    out: Reals = np.where(logits >= 0, 1.0, small) / (1 + small)
    return out
