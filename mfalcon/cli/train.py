"""`mfalcon train`: from events to a checkpoint."""

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from pydantic import ValidationError
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

from mfalcon.cli.datasets import (
    ColumnsOption,
    DataOption,
    ItemColumnsOption,
    ItemsOption,
    LikeOption,
    open_dataset,
)
from mfalcon.cores import owned_cores
from mfalcon.errors import ConfigError
from mfalcon.models import checkpoint
from mfalcon.models.config import RankerConfig
from mfalcon.models.registry import architectures
from mfalcon.train.dataset import Dataset
from mfalcon.train.recipes import TrainConfig, model_config
from mfalcon.train.sequences import Visibility
from mfalcon.train.splits import Split
from mfalcon.train.trainer import Progress as Step
from mfalcon.train.trainer import train as fit

DEFAULTS = TrainConfig()

_console = Console(highlight=False)


def train(
    out: Annotated[
        Path | None, typer.Option(help="Checkpoint directory; checkpoints/<data>-<model> if not given.")
    ] = None,
    model: Annotated[str, typer.Option(help=f"Architecture: {', '.join(architectures())}.")] = "dfgr",
    data: DataOption = "ml-100k",
    columns: ColumnsOption = "",
    items: ItemsOption = None,
    item_columns: ItemColumnsOption = "",
    like_at_least: LikeOption = None,
    dim: Annotated[int, typer.Option(help="Width of the model.", rich_help_panel="Model")] = 64,
    layers: Annotated[int, typer.Option(help="Number of layers.", rich_help_panel="Model")] = 2,
    heads: Annotated[int, typer.Option(help="Attention heads.", rich_help_panel="Model")] = 2,
    max_history: Annotated[int, typer.Option(help="Most events that the model sees.", rich_help_panel="Model")] = 200,
    window_chunk: Annotated[int, typer.Option(help="Step of the window's start.", rich_help_panel="Model")] = 100,
    epochs: Annotated[int, typer.Option(help="Passes over the data.", rich_help_panel="Training")] = DEFAULTS.epochs,
    learning_rate: Annotated[
        float, typer.Option(help="Peak rate.", rich_help_panel="Training")
    ] = DEFAULTS.learning_rate,
    seed: Annotated[int, typer.Option(help="Seed of everything random.", rich_help_panel="Training")] = 0,
    split: Annotated[Split, typer.Option(help="A: by time; B: within users.", rich_help_panel="Training")] = "A",
    visibility: Annotated[
        Visibility,
        typer.Option(help="Hide events of the target's own time, or go by order.", rich_help_panel="Training"),
    ] = DEFAULTS.visibility,
    threads: Annotated[int, typer.Option(help="Torch threads; 0 for all cores.", rich_help_panel="Training")] = 0,
) -> None:
    """Train a ranker and write a checkpoint. Ctrl-C keeps the last finished epoch: the same command resumes."""
    dataset = open_dataset(data, columns, items, item_columns, like_at_least)
    config = TrainConfig(epochs=epochs, learning_rate=learning_rate, seed=seed, split=split, visibility=visibility)
    shape = {
        "dim": dim,
        "num_layers": layers,
        "num_heads": heads,
        "max_history": max_history,
        "window_chunk": window_chunk,
    }
    try:
        ranker = model_config(dataset, model, **shape)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        ) from error
    target = out or Path("checkpoints") / f"{dataset.name}-{model}"
    train_checkpoint(dataset, ranker_config=ranker, config=config, out=target, threads=threads)


def train_checkpoint(
    dataset: Dataset, ranker_config: RankerConfig, config: TrainConfig, out: Path, threads: int = 0
) -> None:
    """Train with a progress bar and save; a run that was interrupted goes on where its last epoch ended."""
    checkpoint.check_replaceable(out)
    torch.set_num_threads(threads or owned_cores())
    unfinished = out.parent / f".{out.name}.progress"
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_console,
    )
    try:
        with bar:
            task = bar.add_task("training", total=None, figures="")
            model = fit(dataset, ranker_config, config, unfinished, lambda step: _show(bar, task, config, step))
    except KeyboardInterrupt:
        _console.print(
            f"interrupted; the finished epochs are kept in {unfinished}: the same command goes on from there"
        )
        raise typer.Exit(130) from None
    fingerprint = checkpoint.save(out, model, dataset.items)
    shutil.rmtree(unfinished, ignore_errors=True)
    _console.print(
        f"{out}: {ranker_config.name} {fingerprint[:12]}, {sum(p.numel() for p in model.parameters()):,} parameters"
    )


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
        figures = f"validation AUC {step.validation.auc:.4f}, NE {step.validation.ne:.4f}"
        bar.console.print(f"epoch {step.epoch + 1:>2}: {figures}{best}")
