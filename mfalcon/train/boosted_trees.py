"""Gradient boosted trees on what is known of each event: the baseline of those who do not learn from sequences.

Needs scikit-learn (the extra `quality`). The settings have the best normalised entropy on the validation rows of
ML-100K, split A, of ten that were tried (docs/LOG.md).
"""

from itertools import islice

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from mfalcon.train.dataset import Dataset

Mask = NDArray[np.bool_]
Reals = NDArray[np.float64]

MAX_TREES = 300


def boosted_trees(features: Reals, label: Reals, fit: Mask, choose: Mask, *, max_trees: int = MAX_TREES) -> Reals:
    """[n] probability by the first trees, as many as have the least log loss on the `choose` rows; fitted on `fit`.

    features: [n, num_features], NaN where unknown; label: [n] 0 or 1, of which those of other rows are not read.
    """
    model = HistGradientBoostingClassifier(
        learning_rate=0.03,
        max_iter=max_trees,
        max_leaf_nodes=63,
        min_samples_leaf=20,
        l2_regularization=10.0,
        max_features=0.5,
        early_stopping=False,
        random_state=0,
    ).fit(features[fit], label[fit])
    truth = label[choose]
    losses = [_log_loss(truth, chances[:, 1]) for chances in model.staged_predict_proba(features[choose])]
    chances = next(islice(model.staged_predict_proba(features), int(np.argmin(losses)), None))
    out: Reals = chances[:, 1].astype(np.float64)
    return out


def known_of(dataset: Dataset) -> Reals:
    """What is known of every event beside the history, [num_events, num_features], NaN where unknown: the user's
    context, the item's categories, and the numbers that it was shown with.
    """
    row = dataset.items.rows(np.ascontiguousarray(dataset.events["item_id"]))
    columns = [column[dataset.user] for column in dataset.user_context.values()]
    for feature in dataset.side_features:
        if feature.kind == "category":
            codes = np.concatenate([[0], dataset.items.side[feature.name]])  # the reserved row has none
            columns.append(codes[row] - 1)
    known = [np.where(column < 0, np.nan, column) for column in columns]
    numbers = [*known, *dataset.dense.values()]
    if not numbers:
        return np.empty((len(row), 0))
    return np.stack(numbers, axis=1).astype(np.float64)


def _log_loss(truth: Reals, chance: Reals) -> float:
    return float(-np.mean(np.where(truth > 0, np.log(chance), np.log1p(-chance))))
