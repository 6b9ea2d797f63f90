"""Offline evaluation: score every target event as serving would, then AUC, NE, GAUC and NDCG@10."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfalcon.errors import ConfigError
from mfalcon.models.base import Ranker
from mfalcon.models.config import RankerConfig
from mfalcon.train.dataset import Dataset
from mfalcon.train.metrics import auc, gauc, ndcg_at, normalized_entropy
from mfalcon.train.sequences import Columns, Visibility, Window, forward, grouped, labels, windows

_BATCH = 16


@dataclass(frozen=True, slots=True)
class Report:
    """Metrics of one binary task over the rows of a split."""

    task: str
    visibility: Visibility
    num_rows: int
    auc: float
    ne: float
    gauc: float
    ndcg_at_10: float


def raw_outputs(model: Ranker, columns: Columns, items: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """Raw task outputs of every target: positions in the data set int64 [n] and outputs [n, num_tasks]."""
    model.eval()
    index, outputs = [], []
    with torch.inference_mode():
        for group in grouped(items, _BATCH, None):
            batch = columns.batch(group)
            index.append(batch.target_index[batch.target_valid])
            outputs.append(forward(model, batch)[batch.target_valid])
    return torch.cat(index), torch.cat(outputs)


def evaluate(
    model: Ranker, dataset: Dataset, is_target: NDArray[np.bool_], visibility: Visibility
) -> tuple[Report, NDArray[np.int64], NDArray[np.float32]]:
    """Metrics of the first binary task over chosen events, with the positions (ascending) and scores behind them."""
    config = model.config
    items = windows(dataset, is_target, visibility, config.max_history, config.window_chunk)
    index, raw = raw_outputs(model, Columns(dataset, config.tasks), items)
    order = index.argsort()
    positions, scores = index[order].numpy(), model.heads.scores(raw[order]).numpy()
    return report(model, dataset, positions, scores, visibility), positions, scores


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
    predicted, users = scores[:, which], dataset.user[index]
    return Report(
        task=tasks[which].name,
        visibility=visibility,
        num_rows=len(index),
        auc=auc(truth, predicted),
        ne=normalized_entropy(truth, predicted),
        gauc=gauc(users, truth, predicted),
        ndcg_at_10=ndcg_at(users, truth, predicted, 10),
    )
