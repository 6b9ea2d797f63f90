"""Baselines: against scikit-learn, and their published figures on ML-100K."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from mfalcon.train.baselines import item_mean, logistic_user_item
from mfalcon.train.dataset import Dataset
from mfalcon.train.metrics import auc, normalized_entropy
from mfalcon.train.splits import TEST, TRAIN, split
from mfalcon.train.synthetic import synthetic


def liked(dataset: Dataset) -> NDArray[np.float64]:
    return (dataset.events["value"] >= 4).astype(np.float64)


def item_rows(dataset: Dataset) -> NDArray[np.int64]:
    return dataset.items.rows(np.ascontiguousarray(dataset.events["item_id"]))


def test_item_mean_by_hand() -> None:
    item = np.array([1, 1, 2, 2, 3])
    label = np.array([1.0, 0.0, 1.0, 0.0, 0.0])
    fit = np.array([True, True, True, False, False])
    base = 2 / 3
    expected = [(1 + 2 * base) / 4, (1 + 2 * base) / 4, (1 + 2 * base) / 3, (1 + 2 * base) / 3, base]
    assert item_mean(item, label, fit, smoothing=2.0) == pytest.approx(expected)


@pytest.mark.parametrize("l2", [0.1, 3.0])
def test_logistic_is_scikit_learns(l2: float) -> None:
    dataset = synthetic(77, 63, 21, seed=5)
    item, label = item_rows(dataset), liked(dataset)
    fit = split(dataset, "A") == TRAIN
    features = np.hstack([np.eye(len(dataset.user_ids))[dataset.user], np.eye(dataset.items.num_rows)[item]])
    oracle = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10_000).fit(features[fit], label[fit])
    ours = logistic_user_item(dataset.user, item, label, fit, l2=l2)
    # both stop near the one minimum of a strictly convex loss, each by its own tolerance
    assert ours == pytest.approx(oracle.predict_proba(features)[:, 1], abs=1e-4)


def test_unseen_user_and_item_get_the_bias() -> None:
    user, item = np.array([0, 0, 1, 1, 2]), np.array([1, 2, 1, 2, 3])
    label = np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    fit = np.array([True, True, True, True, False])
    probability = logistic_user_item(user, item, label, fit)
    assert probability[4] == pytest.approx(0.5)
    assert probability[0] > 0.5 > probability[1]


def test_figures_on_ml100k(ml100k: Dataset) -> None:
    part = split(ml100k, "A")
    fit, test = part == TRAIN, part == TEST
    item, label = item_rows(ml100k), liked(ml100k)
    for probability, expected in (
        (item_mean(item, label, fit), (0.7055, 0.9020)),
        (logistic_user_item(ml100k.user, item, label, fit), (0.7142, 0.8942)),
    ):
        got = auc(label[test], probability[test]), normalized_entropy(label[test], probability[test])
        assert got == pytest.approx(expected, abs=1e-4)
