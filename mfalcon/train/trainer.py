"""Training: epochs over windows, weights averaged, the best epoch by validation AUC kept and calibrated; resumable.

Every epoch draws from a generator seeded by (seed, epoch), so a run that was interrupted and resumed ends with the
same weights as one that was not.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mfalcon.errors import DataError
from mfalcon.models.base import MISSING, Ranker, Targets
from mfalcon.models.config import RankerConfig, Task
from mfalcon.models.items import UNKNOWN_ROW
from mfalcon.models.registry import build
from mfalcon.train.calibrate import calibrate
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import Report, binary_task, evaluate, raw_outputs
from mfalcon.train.recipes import TrainConfig
from mfalcon.train.run import Run
from mfalcon.train.sequences import Batch, Columns, Window, forward, grouped, windows_of
from mfalcon.train.splits import TRAIN, VALIDATION, split

FEW_VALIDATION_EVENTS = 50
"""Below this an AUC is mostly chance: its standard error is above 0.08."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a progress bar shows: after a step (`validation` None) or after an epoch."""

    epoch: int
    step: int
    steps_per_epoch: int
    loss: float
    targets_per_second: float
    validation: Report | None
    best_epoch: int


def train(
    dataset: Dataset,
    model_config: RankerConfig,
    config: TrainConfig,
    progress_dir: Path,
    report: Callable[[Progress], None],
    notify: Callable[[str], None] = lambda _: None,
) -> Ranker:
    """Train a model and return it with the weights of its best epoch.

    progress_dir: where the state after each epoch is kept; a run of the same data set, model and training config
    continues from it, and another is refused with a ConfigError.
    notify: is told in one line what a user should know: a run that goes on, too few events to judge by.
    """
    torch.manual_seed(config.seed)
    model = build(model_config)
    model.items.load_items(dataset.items)
    parts = split(dataset, config.split)
    items = windows_of(model, dataset, parts == TRAIN, config.visibility)
    columns = Columns(dataset, model_config, config.visibility)
    _check_trainable(columns, model_config, parts)
    num_validation = int(np.count_nonzero(parts == VALIDATION))
    if num_validation < FEW_VALIDATION_EVENTS:
        notify(f"warning: only {num_validation} validation events: the figures of validation mean little")
    per_epoch = -(-len(items) // config.batch_size)
    run = Run(model, config, config.epochs * per_epoch)
    identity = run_identity(dataset, model_config, config)
    if done := run.resume(progress_dir, identity):
        notify(f"going on after epoch {done}")
    while run.epoch < config.epochs and run.epoch - run.best_epoch <= config.patience:
        _epoch(run, items, columns, per_epoch, report)
        averaged = run.averaged
        validation, _, _ = evaluate(averaged, dataset, parts == VALIDATION, config.visibility)
        if validation.auc > run.best_auc:
            run.best_epoch, run.best_auc = run.epoch, validation.auc
            run.best = {name: tensor.clone() for name, tensor in averaged.state_dict().items()}
        run.epoch += 1
        run.save(progress_dir, identity)
        report(Progress(run.epoch - 1, per_epoch, per_epoch, math.nan, math.nan, validation, run.best_epoch))
    model.load_state_dict(run.best)
    chosen = windows_of(model, dataset, parts == VALIDATION, config.visibility)
    index, raw = raw_outputs(model, columns, chosen)
    calibrate(model, raw, columns.labels[index])
    return model.eval()


def run_identity(dataset: Dataset, model_config: RankerConfig, config: TrainConfig) -> str:
    """Names a run: one of the same data, model and training config has the same, a hex digest. What is None is not
    there, so that a field which comes later, and which a run has not, leaves its name as it was.
    """
    settings = [model_config.model_dump(exclude_none=True), config.model_dump(exclude_none=True)]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    side, context = dataset.items.side, dataset.user_context
    columns: list[NDArray[np.generic]] = [dataset.events, dataset.user, dataset.items.item_id]
    columns += [side[name] for name in sorted(side)] + [context[name] for name in sorted(context)]
    columns += [dataset.dense[name] for name in sorted(dataset.dense)]
    for column in columns:
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _check_trainable(columns: Columns, config: RankerConfig, parts: NDArray[np.int8]) -> None:
    """Raise DataError unless there is something to learn from and something to judge by."""
    which = binary_task(config)
    for name, part in (("training", TRAIN), ("validation", VALIDATION)):
        truth = columns.labels[torch.from_numpy(parts == part), which]
        if len(truth.unique()) < 2:
            raise DataError(
                f"task {config.tasks[which].name}: all {len(truth)} {name} events have the same label; "
                "a ranker needs both (more data, or another threshold)"
            )


def _epoch(run: Run, items: list[Window], columns: Columns, per_epoch: int, report: Callable[[Progress], None]) -> None:
    seed = run.config.seed * 1_000_003 + run.epoch
    torch.manual_seed(seed)
    run.model.train()
    began, seen, total = time.perf_counter(), 0, 0.0
    for step, group in enumerate(grouped(items, run.config.batch_size, np.random.default_rng(seed))):
        batch = columns.batch(group)
        run.set_learning_rate(run.epoch * per_epoch + step)
        value = _loss(run.model, _hide(batch, run.config), columns.labels)
        run.optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.config.clip_norm)
        run.optimizer.step()
        run.average.update_parameters(run.model)
        seen += int(batch.target_valid.sum())
        total += value.item()
        rate = seen / (time.perf_counter() - began)
        report(Progress(run.epoch, step + 1, per_epoch, total / (step + 1), rate, None, run.best_epoch))


def _hide(batch: Batch, config: TrainConfig) -> Batch:
    """Hide some items, context codes and dense features, as if they were unknown and missing."""
    dense = batch.targets.dense
    if dense is not None:
        dense = dense.masked_fill(torch.rand((*dense.shape[:-1], 1)) < config.dense_dropout, 0.0)
    targets = Targets(
        _masked(batch.targets.rows, config.item_dropout, UNKNOWN_ROW),
        _masked(batch.targets.context, config.context_dropout, MISSING),
        dense,
    )
    events = replace(batch.events, rows=_masked(batch.events.rows, config.item_dropout, UNKNOWN_ROW))
    return replace(batch, events=events, targets=targets)


def _masked(codes: Tensor, share: float, hidden: int) -> Tensor:
    return codes.masked_fill(torch.rand(codes.shape) < share, hidden)


def _loss(model: Ranker, batch: Batch, labels: Tensor) -> Tensor:
    raw = forward(model, batch)[batch.target_valid]
    truth = labels[batch.target_index[batch.target_valid]]
    tasks = enumerate(model.config.tasks)
    return torch.stack([task.loss_weight * _task_loss(task, raw[:, i], truth[:, i]) for i, task in tasks]).sum()


def _task_loss(task: Task, raw: Tensor, truth: Tensor) -> Tensor:
    if task.kind == "binary":
        return functional.binary_cross_entropy_with_logits(raw, truth)
    return functional.mse_loss(raw, truth - task.center)
