"""Offline evaluation: score every target event as serving would, then AUC, NE, GAUC and NDCG@10."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mfalcon.models.base import Ranker
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


def score_windows(
    model: Ranker, columns: Columns, items: Sequence[Window]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Scores of every target: positions in the data set [n] and scores [n, num_tasks]."""
    model.eval()
    index, scores = [], []
    with torch.inference_mode():
        for group in grouped(items, _BATCH, None):
            batch = columns.batch(group)
            out = model.heads.scores(forward(model, batch))
            index.append(batch.target_index[batch.target_valid].numpy())
            scores.append(out[batch.target_valid].float().numpy())
    return np.concatenate(index), np.concatenate(scores)


def evaluate(
    model: Ranker, dataset: Dataset, is_target: NDArray[np.bool_], visibility: Visibility
) -> tuple[Report, NDArray[np.int64], NDArray[np.float32]]:
    """Metrics of the first binary task over chosen events, and what they came from: positions and scores, sorted by position."""
    config = model.config
    items = windows(dataset, is_target, visibility, config.max_history, config.window_chunk)
    index, scores = score_windows(model, Columns(dataset, config.tasks), items)
    order = np.argsort(index)
    index, scores = index[order], scores[order]
    return report(model, dataset, index, scores, visibility), index, scores


def report(
    model: Ranker, dataset: Dataset, index: NDArray[np.int64], scores: NDArray[np.float32], visibility: Visibility
) -> Report:
    """Metrics of scores [n, num_tasks] for events at positions [n]."""
    tasks = model.config.tasks
    which = next(i for i, task in enumerate(tasks) if task.kind == "binary")
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
