"""A training with a progress bar, from a data set to a checkpoint."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mfalcon.cores import owned_cores
from mfalcon.models import checkpoint
from mfalcon.models.config import RankerConfig
from mfalcon.train import splits
from mfalcon.train.dataset import Dataset, counted_items
from mfalcon.train.place import check_place, count_parameters, progress_of
from mfalcon.train.recipes import TrainConfig
from mfalcon.train.run import PROGRESS
from mfalcon.train.trainer import Progress as Step
from mfalcon.train.trainer import train as fit

_console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training left. epochs, kept_epoch: how many were done, and the one whose weights these are, from 1; None
    where all of them had been done before.
    """

    checkpoint: str
    fingerprint: str
    num_parameters: int
    epochs: int | None
    kept_epoch: int | None


def train_checkpoint(
    dataset: Dataset,
    ranker_config: RankerConfig,
    config: TrainConfig,
    out: Path,
    threads: int = 0,
    *,
    overwrite: bool = False,
    console: Console = _console,
) -> Trained:
    """Train with a progress bar and save; a run that was interrupted goes on where its last epoch ended."""
    last: Step | None = None

    def report(step: Step) -> None:
        nonlocal last
        last = step
        _show(bar, task, config, step)

    check_place(out, count_parameters(ranker_config), overwrite=overwrite)
    torch.set_num_threads(threads or owned_cores())
    unfinished = progress_of(out)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    try:
        with bar:
            task = bar.add_task("training", total=None, figures="")
            model = fit(
                dataset,
                ranker_config,
                config,
                unfinished,
                report=report,
                notify=lambda line: bar.console.print(line, soft_wrap=True),
            )
    except KeyboardInterrupt:
        kept = (unfinished / PROGRESS).is_file()
        console.print(
            f"interrupted; the finished epochs are kept in {unfinished}: the same command goes on from there"
            if kept
            else "interrupted before the first epoch was finished; nothing is kept",
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    items = counted_items(dataset, splits.split(dataset, config.split) == splits.TRAIN)
    fingerprint = checkpoint.save(out, model, items)
    shutil.rmtree(unfinished, ignore_errors=True)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"{out}: {ranker_config.name} {fingerprint[:12]}, {num_parameters:,} parameters")
    epochs = None if last is None else (last.epoch + 1, last.best_epoch + 1)
    return Trained(str(out), fingerprint, num_parameters, *(epochs or (None, None)))


def _show(bar: Progress, task: TaskID, config: TrainConfig, step: Step) -> None:
    done = step.epoch * step.steps_per_epoch + step.step
    total = config.epochs * step.steps_per_epoch
    if step.validation is None:
        figures = f"loss {step.loss:.3f}  {step.targets_per_second:,.0f} targets/s"
        bar.update(
            task, description=f"epoch {step.epoch + 1}/{config.epochs}", completed=done, total=total, figures=figures
        )
    else:
        best = " (best)" if step.best_epoch == step.epoch else ""
        bar.console.print(f"epoch {step.epoch + 1:>2}: validation {step.validation.figures}{best}")
