"""Calibration: two numbers per binary task, fitted on validation events and folded into the heads.

A ranker that is trained until it orders best is too sure of itself; a scale and a shift of the logit mend that without
moving one candidate past another (Platt 1999). Scores stay plain sigmoids: nothing is left to do when serving.
"""

import torch
from torch import Tensor
from torch.nn import functional

from mfalcon.models.base import Ranker

_MAX_ITERATIONS = 50


def platt(logits: Tensor, truth: Tensor) -> tuple[float, float]:
    """Scale and shift of logits [n] that minimise the log loss against labels [n]."""
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    logits, truth = logits.double(), truth.double()
    optimizer = torch.optim.LBFGS([weights], max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(weights[0] * logits + weights[1], truth)
        loss.backward()
        return loss

    optimizer.step(closure)
    scale, shift = weights.tolist()
    return scale, shift


def calibrate(model: Ranker, raw: Tensor, truth: Tensor) -> None:
    """Fit every binary task on raw outputs and labels [n, num_tasks], and fold the result into the model's heads.

    A task that validation cannot judge (one label only, or a scale that is not positive) is left as it is.
    """
    for index, task in enumerate(model.config.tasks):
        labels = truth[:, index]
        if task.kind != "binary" or bool((labels == labels[:1]).all()):
            continue
        scale, shift = platt(raw[:, index], labels)
        if scale > 0:
            model.rescale(index, scale, shift)
