"""What any ranker must beat: popularity, the item's mean label, a logistic regression on user + item. numpy only.

The default `smoothing` and `l2` have the best normalised entropy on the validation rows of ML-100K, split A, fitted on
its training rows alone.
"""

import numpy as np
from numpy.typing import NDArray

from mfalcon.types import Ids

Mask = NDArray[np.bool_]
Reals = NDArray[np.float64]

MAX_NEWTON_STEPS = 50
GRADIENT_TOLERANCE = 1e-6


def item_mean(item: Ids, label: Reals, fit: Mask, *, smoothing: float = 5.0) -> Reals:
    """[n] mean label of the row's item over the `fit` rows, drawn to the base rate as by `smoothing` rows of it.

    item: [n] rows of the item table; label: [n] 0 or 1; fit: [n] rows to learn from.
    """
    num_items = int(item.max()) + 1
    base_rate = label[fit].mean()
    total = np.bincount(item[fit], weights=label[fit], minlength=num_items)
    count = np.bincount(item[fit], minlength=num_items)
    mean: Reals = (total + smoothing * base_rate) / (count + smoothing)
    return mean[item]


def popularity(item: Ids, fit: Mask) -> Reals:
    """[n] how many of the `fit` rows have the row's item: a rank, no chance. item: [n] rows of the item table."""
    count: Reals = np.bincount(item[fit], minlength=int(item.max()) + 1).astype(np.float64)
    return count[item]


def logistic_user_item(user: Ids, item: Ids, label: Reals, fit: Mask, *, l2: float = 3.0) -> Reals:
    """[n] probability by sigmoid(bias + user weight + item weight), fitted on the `fit` rows.

    user, item: [n] indices; label: [n] 0 or 1. Minimises the summed log loss + l2/2 * |weights|^2 (the bias is free),
    so a user or item without `fit` rows has weight 0. Newton's method, each step solved by conjugate gradients.
    """
    num_users, num_items = int(user.max()) + 1, int(item.max()) + 1
    fit_user, fit_item, fit_label = user[fit], item[fit], label[fit]
    penalty = np.full(1 + num_users + num_items, l2)
    penalty[0] = 0.0

    def logits(weight: Reals, users: Ids, items: Ids) -> Reals:
        result: Reals = weight[0] + weight[1 + users] + weight[1 + num_users + items]
        return result

    def sum_over_rows(row: Reals) -> Reals:
        of_user = np.bincount(fit_user, weights=row, minlength=num_users)
        of_item = np.bincount(fit_item, weights=row, minlength=num_items)
        return np.concatenate(([row.sum()], of_user, of_item))

    def objective(weight: Reals) -> float:
        z = logits(weight, fit_user, fit_item)
        return float(np.sum(np.logaddexp(0, z) - fit_label * z) + 0.5 * penalty @ weight**2)

    weight = np.zeros(1 + num_users + num_items)
    for _ in range(MAX_NEWTON_STEPS):
        probability = _sigmoid(logits(weight, fit_user, fit_item))
        gradient = sum_over_rows(probability - fit_label) + penalty * weight
        if np.abs(gradient).max() < GRADIENT_TOLERANCE * len(fit_label):
            break
        curvature = probability * (1 - probability)
        diagonal = sum_over_rows(curvature) + penalty + 1e-12
        step = np.zeros_like(weight)
        residual = -gradient
        direction = residual / diagonal
        residual_norm = residual @ direction
        stop = 1e-12 * residual_norm
        while residual_norm > stop:
            along = sum_over_rows(curvature * logits(direction, fit_user, fit_item)) + penalty * direction
            length = residual_norm / (direction @ along)
            step += length * direction
            residual = residual - length * along
            scaled = residual / diagonal
            next_norm = residual @ scaled
            direction = scaled + (next_norm / residual_norm) * direction
            residual_norm = next_norm
        here, rate = objective(weight), 1.0
        while objective(weight + rate * step) > here and rate > 1e-6:
            rate /= 2
        weight = weight + rate * step
    return _sigmoid(logits(weight, user, item))


def _sigmoid(z: Reals) -> Reals:
    result: Reals = 0.5 * (1 + np.tanh(0.5 * z))
    return result
