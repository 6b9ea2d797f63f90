"""What a model learns and is judged by: its tasks, or the next item under a condition."""

from dataclasses import replace
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mfalcon.models.base import MISSING, Ranker, Targets
from mfalcon.models.config import Task
from mfalcon.models.items import UNKNOWN_ROW
from mfalcon.train.calibrate import calibrate
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import Report, evaluate, raw_outputs
from mfalcon.train.interests import InterestReport
from mfalcon.train.recipes import TrainConfig
from mfalcon.train.sequences import Batch, Columns, outputs, whole, windows_of

Validation: TypeAlias = Report | InterestReport
Model_contra = TypeVar("Model_contra", bound=Ranker, contravariant=True)


class Objective(Protocol[Model_contra]):
    """judged_by: what the quality of a validation is called."""

    judged_by: str

    def loss(self, model: Model_contra, batch: Batch) -> Tensor:
        """Of a batch, with gradients."""
        ...

    def validate(self, model: Model_contra, is_target: NDArray[np.bool_]) -> Validation:
        """On chosen events, bool [num_events]."""
        ...

    def finish(self, model: Model_contra, is_target: NDArray[np.bool_]) -> None:
        """What is left to do with the weights of the best epoch, by chosen events."""
        ...


class TaskObjective:
    """Log loss and squared error of the tasks; judged by the AUC of the first binary one, and calibrated at the end."""

    judged_by = "AUC"

    def __init__(self, dataset: Dataset, columns: Columns, config: TrainConfig) -> None:
        self._dataset, self._columns, self._config = dataset, columns, config

    def loss(self, model: Ranker, batch: Batch) -> Tensor:
        """See `Objective`."""
        hidden = self._hide(batch, is_open=model.config.shared is not None)
        return task_losses(model, self._columns, whole(model, hidden))

    def validate(self, model: Ranker, is_target: NDArray[np.bool_]) -> Report:
        """See `Objective`."""
        report, _, _ = evaluate(model, self._dataset, is_target, self._config.visibility, self._columns)
        return report

    def finish(self, model: Ranker, is_target: NDArray[np.bool_]) -> None:
        """See `Objective`."""
        chosen = windows_of(model, self._dataset, is_target, self._config.visibility)
        index, raw = raw_outputs(model, self._columns, chosen)
        calibrate(model, raw, self._columns.labels[index])

    def _hide(self, batch: Batch, *, is_open: bool) -> Batch:
        """Hide some items, context codes and dense features, as if they were unknown and missing. is_open: to a model
        that knows every id, an unknown item is one of an id that it never meets again.
        """
        config, dense = self._config, batch.targets.dense
        if dense is not None:
            dense = dense.masked_fill(torch.rand((*dense.shape[:-1], 1)) < config.dense_dropout, 0.0)
        targets = Targets(
            _masked(batch.targets.rows, config.item_dropout, _unknown(batch.targets.rows, is_open=is_open)),
            _masked(batch.targets.context, config.context_dropout, torch.tensor(MISSING)),
            dense,
        )
        unknown = _unknown(batch.events.rows, is_open=is_open)
        events = replace(batch.events, rows=_masked(batch.events.rows, config.item_dropout, unknown))
        return replace(batch, events=events, targets=targets)


def task_losses(model: Ranker, columns: Columns, batch: Batch) -> Tensor:
    """The sum over tasks by their weights, with gradients."""
    raw = outputs(model, batch)[batch.target_valid]
    truth = columns.labels[batch.target_index[batch.target_valid]]
    tasks = enumerate(model.config.tasks)
    return torch.stack([task.loss_weight * _task_loss(task, raw[:, i], truth[:, i]) for i, task in tasks]).sum()


def _unknown(keys: Tensor, *, is_open: bool) -> Tensor:
    return torch.randint_like(keys, -(1 << 62), 1 << 62) if is_open else torch.full_like(keys, UNKNOWN_ROW)


def _masked(codes: Tensor, share: float, hidden: Tensor) -> Tensor:
    return torch.where(torch.rand(codes.shape) < share, hidden, codes)


def _task_loss(task: Task, raw: Tensor, truth: Tensor) -> Tensor:
    if task.kind == "binary":
        return functional.binary_cross_entropy_with_logits(raw, truth)
    return functional.mse_loss(raw, truth - task.center)
