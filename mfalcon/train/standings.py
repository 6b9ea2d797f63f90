"""How a ranker stands beside the baselines: every task, slice by slice, with intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mfalcon.features.counters import LikeRule
from mfalcon.models.config import Task
from mfalcon.train.baselines import item_mean, logistic_user_item, popularity
from mfalcon.train.bootstrap import aucs, draws_of, interval, rmses
from mfalcon.train.counters import count_events, counters_config
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import MODEL
from mfalcon.train.sequences import Visibility, labels
from mfalcon.train.slices import Mask, slices

Reals = NDArray[np.float64]

POPULARITY, ITEM_MEAN, LOGISTIC, TREES = "popularity", "item mean", "logistic", "trees"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one scorer says of one task, [num_chosen]; of popularity it is a count and no chance."""

    task: str
    scorer: str
    values: Reals


@dataclass(frozen=True, slots=True)
class Standing:
    """One scorer on one task and slice. metric: AUC, the more the better, or RMSE, the less the better; low and high
    hold it with a chance of 95%. NaN where a slice has only one label.
    """

    task: str
    slice: str
    scorer: str
    num_rows: int
    mean_label: float
    metric: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Lead:
    """By how much the model is better than the best baseline of a task and slice; below 0: worse."""

    task: str
    slice: str
    over: str
    value: float
    low: float
    high: float


def predict_baselines(
    dataset: Dataset,
    chosen: Mask,
    fit: Mask,
    choose: Mask,
    *,
    trees: bool,
    max_trees: int = 300,
    notify: Callable[[str], None] = lambda _: None,
) -> list[Prediction]:
    """Of every task: the item's mean label, and of a binary one how often the item was acted on, a logistic regression
    on user and item, and boosted trees on counters (strict) and whatever else is known of an event.

    Fitted on the `fit` events; the number of trees by the `choose` events. Items that the model does not know are one
    item. All masks are bool [num_events].
    """
    item = dataset.items.rows(np.ascontiguousarray(dataset.events["item_id"]))
    out = []
    for task, truth in zip(dataset.tasks, labels(dataset, dataset.tasks).T, strict=True):
        label = truth.astype(np.float64)
        found = {ITEM_MEAN: item_mean(item, label, fit)}
        if task.kind == "binary":
            found[POPULARITY] = popularity(item, fit)
            found[LOGISTIC] = logistic_user_item(dataset.user, item, label, fit)
            both = all(len(np.unique(label[part])) == 2 for part in (fit, choose) if part.any())
            if trees and both and choose.any():
                notify(f"growing trees for {task.name}")
                found[TREES] = _trees(dataset, task, label, fit, choose, max_trees)
        out += [Prediction(task.name, scorer, values[chosen]) for scorer, values in found.items()]
    return out


def _trees(dataset: Dataset, task: Task, label: Reals, fit: Mask, choose: Mask, max_trees: int) -> Reals:
    from mfalcon.train.boosted_trees import boosted_trees, known_of  # noqa: PLC0415 (needs the extra `quality`)

    alone = replace(dataset, tasks=(task,), blend={task.name: 1.0})
    config = counters_config(alone, fit, is_strict=True)
    assert config is not None  # the task is binary
    counts = count_events(alone, LikeRule.of_task(task, dataset.actions), config, is_strict=True)
    features = np.concatenate([counts.numbers(config), known_of(dataset)], axis=1)
    return boosted_trees(features, label, fit, choose, max_trees=max_trees)


def standings(
    dataset: Dataset, chosen: Mask, fit: Mask, predictions: Sequence[Prediction], visibility: Visibility
) -> tuple[list[Standing], list[Lead]]:
    """Of every task and slice everybody's metric, and the model's lead. predictions: the model's and the baselines'."""
    users, draws = dataset.user[chosen], draws_of(dataset.user[chosen])
    assert len(users) == int(np.count_nonzero(chosen))
    truth = labels(dataset, dataset.tasks)[chosen].astype(np.float64)
    found, leads = list[Standing](), list[Lead]()
    for which, task in enumerate(dataset.tasks):
        judge, sign, metric = (aucs, 1.0, "AUC") if task.kind == "binary" else (rmses, -1.0, "RMSE")
        own = [prediction for prediction in predictions if prediction.task == task.name]
        for name, rows in slices(dataset, chosen, fit, visibility).items():
            label, drawn = truth[rows, which], draws[:, rows]
            of = {prediction.scorer: judge(label, prediction.values[rows], drawn) for prediction in own}
            for scorer, values in of.items():
                low, high = interval(values[1:])
                about = len(label), float(label.mean()), metric
                found.append(Standing(task.name, name, scorer, *about, float(values[0]), low, high))
            others = [scorer for scorer in of if scorer != MODEL and not math.isnan(of[scorer][0])]
            if MODEL in of and others:
                best = max(others, key=lambda scorer: sign * float(of[scorer][0]))
                ahead = sign * (of[MODEL] - of[best])
                leads.append(Lead(task.name, name, best, float(ahead[0]), *interval(ahead[1:])))
    return found, leads
