"""Training: epochs over windows, weights averaged, the epoch that validation finds best kept; resumable.

Every epoch draws from a generator seeded by (seed, epoch), so a run that was interrupted and resumed ends with the
same weights as one that was not.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mfalcon.errors import DataError
from mfalcon.models.base import Ranker
from mfalcon.models.config import RankerConfig
from mfalcon.models.registry import build
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import binary_task
from mfalcon.train.objective import Objective, Validation
from mfalcon.train.objectives import objective_of
from mfalcon.train.recipes import TrainConfig
from mfalcon.train.run import Run
from mfalcon.train.sequences import Columns, Window, grouped, windows_of
from mfalcon.train.splits import TRAIN, VALIDATION, split, thinned

FEW_VALIDATION_EVENTS = 50
"""Below this an AUC is mostly chance: its standard error is above 0.08."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a progress bar shows: after a step (`validation` None) or after an epoch. judged_by: what the best epoch is
    chosen by.
    """

    epoch: int
    step: int
    steps_per_epoch: int
    loss: float
    targets_per_second: float
    validation: Validation | None
    best_epoch: int
    judged_by: str = "AUC"


def train(
    dataset: Dataset,
    model_config: RankerConfig,
    config: TrainConfig,
    progress_dir: Path,
    report: Callable[[Progress], None],
    notify: Callable[[str], None] = lambda _: None,
    learn: NDArray[np.bool_] | None = None,
) -> Ranker:
    """Train a model and return it with the weights of its best epoch.

    progress_dir: where the state after each epoch is kept; a run of the same data set, model and training config
    continues from it, and another is refused with a ConfigError.
    notify: is told in one line what a user should know: a run that goes on, too few events to judge by.
    learn: bool [num_events], which of the training events are learnt from; all of them if it is not given.
    """
    torch.manual_seed(config.seed)
    model = build(model_config)
    model.items.load_items(dataset.items)
    parts = split(dataset, config.split)
    if config.users_share is not None:
        parts = thinned(parts, dataset, config.users_share)
    chosen = parts == TRAIN if learn is None else (parts == TRAIN) & learn
    items = windows_of(model, dataset, chosen, config.visibility)
    columns = Columns(dataset, model_config, config.visibility)
    _check_trainable(columns, model_config, parts)
    num_validation = int(np.count_nonzero(parts == VALIDATION))
    if num_validation < FEW_VALIDATION_EVENTS:
        notify(f"warning: only {num_validation} validation events: the figures of validation mean little")
    objective = objective_of(model, dataset, columns, config, chosen)
    per_epoch = config.steps_per_epoch or -(-len(items) // config.batch_size)
    run = Run(model, config, config.epochs * per_epoch)
    identity = run_identity(dataset, model_config, config, learn)
    if done := run.resume(progress_dir, identity):
        notify(f"going on after epoch {done}")
    while run.epoch < config.epochs and run.epoch - run.best_epoch <= config.patience:
        _epoch(run, items, columns, objective, per_epoch, report)
        averaged = run.averaged
        validation = objective.validate(averaged, parts == VALIDATION)
        if validation.quality > run.best_quality:
            run.best_epoch, run.best_quality = run.epoch, validation.quality
            run.best = {name: tensor.clone() for name, tensor in averaged.state_dict().items()}
        run.epoch += 1
        run.save(progress_dir, identity)
        at = run.epoch - 1, per_epoch, per_epoch, math.nan, math.nan
        report(Progress(*at, validation, run.best_epoch, objective.judged_by))
    notify(_ending(run, objective.judged_by))
    model.load_state_dict(run.best)
    objective.finish(model, parts == VALIDATION)
    return model.eval()


def _ending(run: Run, judged_by: str) -> str:
    """Which epoch is kept, and why training ended."""
    patience = run.config.patience
    why = "all epochs are done" if run.epoch >= run.config.epochs else f"no better one in {patience} epochs (patience)"
    return f"kept: epoch {run.best_epoch + 1} of {run.epoch}, validation {judged_by} {run.best_quality:.4f}; {why}"


def run_identity(
    dataset: Dataset, model_config: RankerConfig, config: TrainConfig, learn: NDArray[np.bool_] | None = None
) -> str:
    """Names a run: one of the same data, model and training config has the same, a hex digest. What is None is not
    there, so that a field which comes later, and which a run has not, leaves its name as it was.
    """
    settings = [model_config.model_dump(exclude_none=True), config.model_dump(exclude_none=True)]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    side, context = dataset.items.side, dataset.user_context
    columns: list[NDArray[np.generic]] = [dataset.events, dataset.user, dataset.items.item_id]
    columns += [side[name] for name in sorted(side)] + [context[name] for name in sorted(context)]
    columns += [dataset.dense[name] for name in sorted(dataset.dense)]
    columns += [each for each in (learn, dataset.parts) if each is not None]
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


def _epoch(
    run: Run,
    items: Sequence[Window],
    columns: Columns,
    objective: Objective[Ranker],
    per_epoch: int,
    report: Callable[[Progress], None],
) -> None:
    seed = run.config.seed * 1_000_003 + run.epoch
    torch.manual_seed(seed)
    run.model.train()
    began, seen, total = time.perf_counter(), 0, 0.0
    for step, group in enumerate(islice(_passes(items, run.config.batch_size, seed), per_epoch)):
        batch = columns.batch(group)
        run.set_learning_rate(run.epoch * per_epoch + step)
        value = objective.loss(run.model, batch)
        run.optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.config.clip_norm)
        run.optimizer.step()
        run.average.update_parameters(run.model)
        seen += int(batch.target_valid.sum())
        total += value.item()
        rate = seen / (time.perf_counter() - began)
        report(Progress(run.epoch, step + 1, per_epoch, total / (step + 1), rate, None, run.best_epoch))


def _passes(items: Sequence[Window], batch_size: int, seed: int) -> Iterator[list[Window]]:
    """Batches of one pass over the windows after the other, each in an order of its own."""
    rng = np.random.default_rng(seed)
    while True:
        yield from grouped(items, batch_size, rng)
