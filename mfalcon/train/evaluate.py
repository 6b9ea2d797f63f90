"""Offline evaluation: score every target event as serving would, then AUC, NE, GAUC and NDCG@10, or RMSE and MAE."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfalcon.errors import ConfigError
from mfalcon.models.base import Ranker
from mfalcon.models.config import RankerConfig, Task
from mfalcon.train.dataset import Dataset
from mfalcon.train.metrics import auc, gauc, ndcg_at, normalized_entropy
from mfalcon.train.sequences import Columns, Visibility, Window, forward, grouped, labels, windows_of
from mfalcon.types import Floats, Ids, TaskInfo

_BATCH, _BATCH_ALONE = 16, 512
"""Windows of many targets, and of one."""
Reals = NDArray[np.float32] | NDArray[np.float64]


MODEL = "model"
"""Who scored, where it is the ranker itself and no baseline."""


@dataclass(frozen=True, slots=True)
class Report:
    """Metrics of one binary task over the rows of a split. A baseline sees no history and has no visibility."""

    task: str
    visibility: Visibility | None
    num_rows: int
    auc: float
    ne: float
    gauc: float
    ndcg_at_10: float
    scorer: str = MODEL

    @property
    def quality(self) -> float:
        """What the best epoch is chosen by."""
        return self.auc

    @property
    def figures(self) -> str:
        """For a person."""
        return f"AUC {self.auc:.4f}, NE {self.ne:.4f}"


@dataclass(frozen=True, slots=True)
class RegressionReport:
    """Errors of one regression task over the rows of a split, in the unit of its label."""

    task: str
    visibility: Visibility | None
    num_rows: int
    rmse: float
    mae: float
    scorer: str = MODEL


def raw_outputs(model: Ranker, columns: Columns, items: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """Raw task outputs of every target: positions in the data set int64 [n] and outputs [n, num_tasks]."""
    model.eval()
    index, outputs = [], []
    with torch.inference_mode():
        for group in grouped(items, _BATCH if model.encodes_prefix else _BATCH_ALONE, None):
            batch = columns.batch(group)
            index.append(batch.target_index[batch.target_valid])
            outputs.append(forward(model, batch)[batch.target_valid])
    return torch.cat(index), torch.cat(outputs)


def score_events(
    model: Ranker,
    dataset: Dataset,
    is_target: NDArray[np.bool_],
    visibility: Visibility,
    columns: Columns | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Positions (ascending, [n]) of the chosen events and their scores [n, num_tasks]. columns: of all of these, where
    they were made before.
    """
    items = windows_of(model, dataset, is_target, visibility)
    index, raw = raw_outputs(model, columns or Columns(dataset, model.config, visibility), items)
    order = index.argsort()
    return index[order].numpy(), model.scores(raw[order]).numpy()


def evaluate(
    model: Ranker,
    dataset: Dataset,
    is_target: NDArray[np.bool_],
    visibility: Visibility,
    columns: Columns | None = None,
) -> tuple[Report, NDArray[np.int64], NDArray[np.float32]]:
    """Metrics of the first binary task over chosen events, with the positions (ascending) and scores behind them.
    columns: as of `score_events`.
    """
    positions, scores = score_events(model, dataset, is_target, visibility, columns)
    return report(model, dataset, positions, scores, visibility), positions, scores


def evaluate_tasks(
    model: Ranker, dataset: Dataset, is_target: NDArray[np.bool_], visibility: Visibility
) -> list[Report | RegressionReport]:
    """Metrics of every task over chosen events, in the order of the model's tasks."""
    index, scores = score_events(model, dataset, is_target, visibility)
    tasks = model.config.tasks
    return evaluate_scores(MODEL, tasks, visibility, dataset.user[index], labels(dataset, tasks)[index], scores)


def evaluate_scores(
    scorer: str,
    tasks: Sequence[Task | TaskInfo],
    visibility: Visibility,
    users: Ids,
    truth: Floats,
    scores: Floats,
) -> list[Report | RegressionReport]:
    """Metrics of every task, whoever scored. users: [n]; truth, scores: [n, num_tasks]."""
    return [
        report_of(scorer, task, visibility, users, truth[:, which], scores[:, which])
        for which, task in enumerate(tasks)
    ]


def binary_task(config: RankerConfig) -> int:
    """Index of the first binary task, which quality is judged by. Raises ConfigError if there is none."""
    for index, task in enumerate(config.tasks):
        if task.kind == "binary":
            return index
    raise ConfigError(f"tasks: {[task.name for task in config.tasks]} has no binary task, which AUC and NE need")


def report(
    model: Ranker, dataset: Dataset, index: NDArray[np.int64], scores: NDArray[np.float32], visibility: Visibility
) -> Report:
    """Metrics of scores [n, num_tasks] for events at positions [n]."""
    tasks, which = model.config.tasks, binary_task(model.config)
    truth = labels(dataset, tasks)[index, which]
    return _binary_report(MODEL, tasks[which], visibility, dataset.user[index], truth, scores[:, which])


def report_of(
    scorer: str, task: Task | TaskInfo, visibility: Visibility | None, users: Ids, truth: Reals, predicted: Reals
) -> Report | RegressionReport:
    """Metrics of one task, whoever predicted. users, truth, predicted: [n]."""
    if task.kind == "binary":
        return _binary_report(scorer, task, visibility, users, truth, predicted)
    error = predicted.astype(np.float64) - truth
    return RegressionReport(
        task=task.name,
        visibility=visibility,
        num_rows=len(truth),
        rmse=float(np.sqrt(np.mean(error**2))),
        mae=float(np.mean(np.abs(error))),
        scorer=scorer,
    )


def _binary_report(
    scorer: str, task: Task | TaskInfo, visibility: Visibility | None, users: Ids, truth: Reals, predicted: Reals
) -> Report:
    return Report(
        task=task.name,
        visibility=visibility,
        num_rows=len(truth),
        auc=auc(truth, predicted),
        ne=normalized_entropy(truth, predicted),
        gauc=gauc(users, truth, predicted),
        ndcg_at_10=ndcg_at(users, truth, predicted, 10),
        scorer=scorer,
    )
