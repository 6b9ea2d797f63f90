"""Rankers merged offline: what a merge scores on the events of a data set, and which weights and calibration are best.

Every member reads the events by its own item table and dense features, as it would be served.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mfalcon.errors import ConfigError
from mfalcon.merging.agreement import Contract, check_agreement
from mfalcon.merging.merge import SMALLEST_PROBABILITY, Calibration, Merge, logit
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.config import Task
from mfalcon.models.heads import task_infos
from mfalcon.train.calibrate import platt
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import RegressionReport, Report, evaluate_scores, score_events
from mfalcon.train.sequences import Visibility, labels
from mfalcon.train.vocabulary import fit_to
from mfalcon.types import ContextFeatureInfo, Floats, Ids, MergeMethod

_DIGITS = 4
"""Of a weight: more would be noise, and a weight that rounds to 0 is no member."""
_MAX_ITERATIONS = 200


@dataclass(frozen=True, slots=True)
class MemberScores:
    """What the members say of chosen events. index: [n] positions in the data set, ascending. scores: by name of the
    member, [num_tasks, n]. labels: [n, num_tasks].
    """

    index: Ids
    scores: Mapping[str, Floats]
    labels: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Correlation:
    """How alike two members' scores of a task are: Pearson's r, of logits where the task is binary."""

    task: str
    first: str
    second: str
    r: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """weights: by name of the member, 0 or more, 1 in all. calibration: of each task, for all members together."""

    weights: Mapping[str, float]
    calibration: tuple[Calibration, ...]


def check_members(members: Mapping[str, Checkpoint]) -> tuple[Task, ...]:
    """The tasks that all have. Raises ConfigError for one member, and for members that cannot be merged."""
    if len(members) < 2:
        raise ConfigError(f"--merge: got {len(members)} checkpoint, must be at least 2")
    for name, member in members.items():
        if not member.model.ranks_items:
            raise ConfigError(f"--merge: {name} cannot be merged: a model of architecture 'lum' ranks no items")
    check_agreement({name: _contract(member) for name, member in members.items()})
    tasks = next(iter(members.values())).model.config.tasks
    for name, member in members.items():
        for task, other in zip(tasks, member.model.config.tasks, strict=True):
            if _label(task) != _label(other):
                first = next(iter(members))
                raise ConfigError(f"{first} and {name} cannot be merged: task {task.name} learns another label in each")
    return tasks


def score_members(
    members: Mapping[str, Checkpoint], dataset: Dataset, is_target: NDArray[np.bool_], visibility: Visibility
) -> MemberScores:
    """Score the chosen events by each. dataset: as it was read; is_target: bool [num_events]."""
    scores, index = {}, np.empty(0, dtype=np.int64)
    for name, member in members.items():
        index, by_row = score_events(member.model, fit_to(dataset, member), is_target, visibility)
        scores[name] = np.ascontiguousarray(by_row.T)
    first = next(iter(members.values()))
    fitted = fit_to(dataset, first)
    return MemberScores(index, scores, labels(fitted, first.model.config.tasks)[index])


def merge_of(members: Mapping[str, Checkpoint], method: MergeMethod, fitted: Fitted | None = None) -> Merge:
    """What merges their scores, without a calibration unless one was fitted."""
    config = next(iter(members.values())).model.config
    return Merge(method, task_infos(config.tasks, config.blend), fitted.calibration if fitted else ())


def evaluate_merges(
    members: MemberScores,
    merges: Mapping[str, tuple[Merge, Sequence[float]]],
    dataset: Dataset,
    visibility: Visibility,
) -> list[Report | RegressionReport]:
    """Metrics of every task, of each member and then of each merge with its weights, by the name it is reported as."""
    scored, tasks = dict(members.scores), next(iter(merges.values()))[0].tasks
    for name, (merge, weights) in merges.items():
        scored[name] = merge(list(members.scores.values()), weights).task_scores
    users = dataset.user[members.index]
    return [
        report
        for scorer, scores in scored.items()
        for report in evaluate_scores(scorer, tasks, visibility, users, members.labels, scores.T)
    ]


def correlations(members: MemberScores, merge: Merge) -> list[Correlation]:
    """Of every two members: those that are alike have little to tell each other."""
    found = []
    for at, task in enumerate(merge.tasks):
        rows = {name: scores[at].astype(np.float64) for name, scores in members.scores.items()}
        if task.kind == "binary":
            rows = {name: logit(row) for name, row in rows.items()}
        for (first, one), (second, other) in combinations(rows.items(), 2):
            constant = one.std() == 0 or other.std() == 0
            found.append(Correlation(task.name, first, second, math.nan if constant else _pearson(one, other)))
    return found


def fit_merge(members: MemberScores, merge: Merge) -> Fitted:
    """The weights and the calibration that predict the labels of these events best: the sum over all tasks of the log
    loss over that of the base rate (binary), or of the squared error over the variance (regression). They are found
    together, from equal weights on; then the calibration once more behind the weights as they are written.

    Raises ConfigError where no task tells anything: all labels are the same.
    """
    truth = torch.from_numpy(members.labels).double()
    judged = [at for at in range(len(merge.tasks)) if bool((truth[:, at] != truth[0, at]).any())] if len(truth) else []
    if not judged:
        raise ConfigError("merge fit: no task has more than one label on the validation events")
    inputs = [_inputs(merge, at, members) for at in range(len(merge.tasks))]
    roots = torch.ones(len(members.scores), dtype=torch.float64, requires_grad=True)
    affine = torch.tensor([[1.0, 0.0]] * len(merge.tasks), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([roots, affine], max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        weights = roots.square() / roots.square().sum()
        losses = [
            _loss(merge, at, affine[at, 0] * _raw(merge, at, inputs[at], weights) + affine[at, 1], truth[:, at])
            for at in judged
        ]
        loss = torch.stack(losses).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = (roots.square() / roots.square().sum()).detach().numpy().round(_DIGITS)
    weights = torch.from_numpy(found / found.sum())
    calibration = [Calibration()] * len(merge.tasks)
    for at in judged:
        scale, shift = _calibrate(merge, at, _raw(merge, at, inputs[at], weights), truth[:, at])
        if scale > 0:  # else validation cannot judge it
            calibration[at] = Calibration(_written(scale), _written(shift))
    return Fitted(dict(zip(members.scores, weights.tolist(), strict=True)), tuple(calibration))


def _inputs(merge: Merge, at: int, members: MemberScores) -> Tensor:
    """What of a task is averaged, [num_members, n]."""
    scores = np.stack([scores[at] for scores in members.scores.values()]).astype(np.float64)
    is_raw = merge.tasks[at].kind == "binary" and merge.method == "logit"
    return torch.from_numpy(logit(scores) if is_raw else scores)


def _raw(merge: Merge, at: int, inputs: Tensor, weights: Tensor) -> Tensor:
    """What the calibration of a task is given, [n]: a logit (binary) or a value, as in `Merge`."""
    mean = weights @ inputs
    if merge.tasks[at].kind == "binary" and merge.method == "probability":
        return torch.logit(mean, eps=SMALLEST_PROBABILITY)
    return mean


def _loss(merge: Merge, at: int, predicted: Tensor, truth: Tensor) -> Tensor:
    if merge.tasks[at].kind == "regression":
        return functional.mse_loss(predicted, truth) / truth.var()
    rate = truth.mean()
    entropy = -(rate * rate.log() + (1 - rate) * (1 - rate).log())
    return functional.binary_cross_entropy_with_logits(predicted, truth) / entropy


def _calibrate(merge: Merge, at: int, raw: Tensor, truth: Tensor) -> tuple[float, float]:
    if merge.tasks[at].kind == "binary":
        return platt(raw.detach(), truth)
    centred = raw - raw.mean()
    variance = float(centred.square().mean())
    if variance == 0:
        return 1.0, 0.0
    scale = float((centred * (truth - truth.mean())).mean()) / variance
    return scale, float(truth.mean()) - scale * float(raw.mean())


def _written(number: float) -> float:
    return float(f"{number:.6g}")


def _contract(member: Checkpoint) -> Contract:
    config = member.model.config
    return Contract(
        task_infos(config.tasks, config.blend),
        config.actions,
        tuple(
            ContextFeatureInfo(f.name, f.num_values, f.values, f.derive is not None) for f in config.context_features
        ),
    )


def _label(task: Task) -> tuple[object, ...]:
    return task.name, task.kind, task.value_at_least, task.any_action


def _pearson(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.corrcoef(one, other)[0, 1])
