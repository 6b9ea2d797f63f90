"""Offline evaluation scores every target of a split once, as serving would."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mfalcon.errors import ConfigError
from mfalcon.models.base import Ranker
from mfalcon.models.registry import build
from mfalcon.train.evaluate import RegressionReport, evaluate, evaluate_tasks, report
from mfalcon.train.metrics import gauc, ndcg_at
from mfalcon.train.recipes import model_config
from mfalcon.train.sequences import Columns, Visibility, forward, windows
from mfalcon.train.splits import TEST, split
from mfalcon.train.synthetic import synthetic

DATASET = synthetic(40, 50, 25, seed=2)
IS_TEST = split(DATASET, "A") == TEST


@pytest.fixture
def model() -> Ranker:
    torch.manual_seed(0)
    model = build(model_config(DATASET, "dfgr", dim=8, max_history=20, window_chunk=5))
    model.items.load_items(DATASET.items)
    return model.requires_grad_(False)


@pytest.mark.parametrize("visibility", ["strict", "order"])
def test_every_target_once_in_order(model: Ranker, visibility: Visibility) -> None:
    model.train()  # as the trainer leaves it: dropout must not be felt
    found, positions, scores = evaluate(model, DATASET, IS_TEST, visibility)
    assert positions.tolist() == np.flatnonzero(IS_TEST).tolist()
    assert scores.shape == (len(positions), 2)
    again = evaluate(model, DATASET, IS_TEST, visibility)
    assert np.array_equal(again[2], scores)
    config, columns = model.config, Columns(DATASET, model.config, "strict")
    for window in windows(DATASET, IS_TEST, visibility, config.max_history, config.window_chunk):
        alone = model.scores(forward(model, columns.batch([window])))[0]
        rows = np.searchsorted(positions, window.targets)
        assert np.abs(alone.numpy() - scores[rows]).max() <= 1e-5  # float32, another padding
    truth = DATASET.events["value"][positions] >= 4
    assert found.num_rows == len(positions)
    assert (found.task, found.visibility) == ("like", visibility)
    assert math.isclose(found.auc, roc_auc_score(truth, scores[:, 0]))
    assert math.isclose(found.gauc, gauc(DATASET.user[positions], truth, scores[:, 0]))
    assert math.isclose(found.ndcg_at_10, ndcg_at(DATASET.user[positions], truth, scores[:, 0], 10))
    clipped = np.clip(scores[:, 0].astype(np.float64), 1e-7, 1 - 1e-7)
    rate = truth.mean()
    log_loss = -np.mean(np.where(truth, np.log(clipped), np.log1p(-clipped)))
    assert math.isclose(found.ne, log_loss / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def test_perfect_scores(model: Ranker) -> None:
    positions = np.flatnonzero(IS_TEST)
    truth = (DATASET.events["value"][positions] >= 4).astype(np.float32)
    found = report(model, DATASET, positions, np.stack([truth, truth], 1), "strict")
    assert found.auc == found.gauc == found.ndcg_at_10 == 1.0
    assert found.ne < 1e-5


def test_a_model_without_a_binary_task_is_refused(model: Ranker) -> None:
    model.config = model.config.model_copy(update={"tasks": model.config.tasks[1:]})
    with pytest.raises(ConfigError, match="no binary task"):
        report(model, DATASET, np.arange(3), np.zeros((3, 1), dtype=np.float32), "strict")


def test_every_task_is_reported(model: Ranker) -> None:
    like, rating = evaluate_tasks(model, DATASET, IS_TEST, "strict")
    first, positions, scores = evaluate(model, DATASET, IS_TEST, "strict")
    assert like == first
    assert isinstance(rating, RegressionReport)
    assert (rating.task, rating.scorer, rating.num_rows) == ("rating", "model", len(positions))
    error = scores[:, 1].astype(np.float64) - DATASET.events["value"][positions]
    assert math.isclose(rating.rmse, math.sqrt((error**2).mean()))
    assert math.isclose(rating.mae, np.abs(error).mean())
