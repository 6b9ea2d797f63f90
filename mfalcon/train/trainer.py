"""Training: epochs over windows, weights averaged, the best epoch by validation AUC kept and calibrated; resumable.

Every epoch draws from a generator seeded by (seed, epoch), so a run that was interrupted and resumed ends with the
same weights as one that was not.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mfalcon.models.base import MISSING, Ranker, Targets
from mfalcon.models.config import RankerConfig, Task
from mfalcon.models.items import UNKNOWN_ROW
from mfalcon.models.registry import build
from mfalcon.train.calibrate import calibrate
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import Report, evaluate, raw_outputs
from mfalcon.train.recipes import TrainConfig
from mfalcon.train.sequences import Batch, Columns, Window, forward, grouped, windows
from mfalcon.train.splits import TRAIN, VALIDATION, split


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


class _Run:
    """State of a training run that is saved after every epoch: weights, optimizer moments, best weights, counters."""

    def __init__(self, model: Ranker, config: TrainConfig, steps: int) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        average = get_ema_multi_avg_fn(config.average_decay)
        self.average = AveragedModel(model, multi_avg_fn=average)
        self.config = config
        self.steps = steps
        self.epoch = 0
        self.best_epoch, self.best_auc = -1, -math.inf
        self.best: dict[str, Tensor] = {}

    @property
    def averaged(self) -> Ranker:
        """The model with averaged weights."""
        module = self.average.module
        assert isinstance(module, Ranker)
        return module

    def learning_rate(self, step: int) -> float:
        """One cycle: cosine up over the first tenth, cosine down to (nearly) zero."""
        top, warm = self.config.learning_rate, 0.1 * self.steps
        if step < warm:
            return top * (1 - 0.96 * (1 + math.cos(math.pi * step / warm)) / 2)
        return top * (1 + math.cos(math.pi * (step - warm) / max(1.0, self.steps - warm))) / 2

    def save(self, directory: Path, identity: str) -> None:
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"average.{name}": t for name, t in self.average.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in self.best.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": t for name, t in moments.items()}
        directory.mkdir(parents=True, exist_ok=True)
        counters = {"identity": identity, "epoch": self.epoch, "best_epoch": self.best_epoch, "best_auc": self.best_auc}
        scratch = directory / "progress.partial"
        save_file({k: t.contiguous() for k, t in tensors.items()}, scratch, metadata={"progress": json.dumps(counters)})
        scratch.replace(directory / "progress.safetensors")

    def resume(self, directory: Path, identity: str) -> None:
        path = directory / "progress.safetensors"
        if not path.is_file():
            return
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        counters = json.loads(header["__metadata__"]["progress"])
        if counters["identity"] != identity:
            return
        tensors = load_file(path)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        self.best = part("best.")
        state = self.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in part("optimizer.").items():
            index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
        self.epoch, self.best_epoch = counters["epoch"], counters["best_epoch"]
        self.best_auc = counters["best_auc"]


def train(
    dataset: Dataset,
    model_config: RankerConfig,
    config: TrainConfig,
    progress_dir: Path,
    report: Callable[[Progress], None],
) -> Ranker:
    """Train a model and return it with the weights of its best epoch.

    progress_dir: where the state after each epoch is kept; a run of the same data set, model and training config
    continues from it.
    """
    torch.manual_seed(config.seed)
    model = build(model_config)
    model.items.load_items(dataset.items)
    parts = split(dataset, config.split)
    items = windows(dataset, parts == TRAIN, config.visibility, model_config.max_history, model_config.window_chunk)
    columns = Columns(dataset, model_config.tasks)
    per_epoch = -(-len(items) // config.batch_size)
    run = _Run(model, config, config.epochs * per_epoch)
    identity = json.dumps([len(dataset.events), model_config.model_dump(), config.model_dump()], sort_keys=True)
    run.resume(progress_dir, identity)
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
    chosen = windows(
        dataset, parts == VALIDATION, config.visibility, model_config.max_history, model_config.window_chunk
    )
    index, raw = raw_outputs(model, columns, chosen)
    calibrate(model, raw, columns.labels[index])
    return model.eval()


def _epoch(
    run: _Run, items: list[Window], columns: Columns, per_epoch: int, report: Callable[[Progress], None]
) -> None:
    seed = run.config.seed * 1_000_003 + run.epoch
    torch.manual_seed(seed)
    run.model.train()
    began, seen, total = time.perf_counter(), 0, 0.0
    for step, group in enumerate(grouped(items, run.config.batch_size, np.random.default_rng(seed))):
        batch = columns.batch(group)
        for parameters in run.optimizer.param_groups:
            parameters["lr"] = run.learning_rate(run.epoch * per_epoch + step)
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
    """Hide some items, context codes and whole events, as if they were unknown, missing and unseen."""
    targets = Targets(
        _masked(batch.targets.rows, config.item_dropout, UNKNOWN_ROW),
        _masked(batch.targets.context, config.context_dropout, MISSING),
    )
    events = replace(batch.events, rows=_masked(batch.events.rows, config.item_dropout, UNKNOWN_ROW))
    valid = batch.valid & (torch.rand(batch.valid.shape) >= config.event_dropout)
    return replace(batch, events=events, targets=targets, valid=valid)


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
