"""`mfalcon train`: from events to a checkpoint."""

import shutil
from collections.abc import Mapping
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
from mfalcon.models.config import CountersConfig, EmbeddingKind, RankerConfig, Task
from mfalcon.models.registry import architectures
from mfalcon.train import splits
from mfalcon.train.counters import counters_config
from mfalcon.train.dataset import Dataset, counted_items
from mfalcon.train.recipes import TrainConfig, model_config, train_config
from mfalcon.train.run import PROGRESS
from mfalcon.train.sequences import Visibility
from mfalcon.train.settings import EmbeddingSettings, TrainFile, problem, read_train_file
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
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file: table training ("
            + ", ".join(TrainConfig.model_fields)
            + "), array of tables tasks ("
            + ", ".join(Task.model_fields)
            + ") in place of the data's own, table embedding ("
            + ", ".join(EmbeddingSettings.model_fields)
            + "), and table blend (task = weight; all binary "
            "tasks alike if not given). Flags win over the file.",
            rich_help_panel="Training",
        ),
    ] = None,
    dim: Annotated[
        int | None,
        typer.Option(
            help="Width of the model; a multiple of heads.", min=1, show_default="64; din 32", rich_help_panel="Model"
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(help="Number of layers.", min=1, show_default="2; din has none", rich_help_panel="Model"),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(help="Attention heads.", min=1, show_default="2; din has none", rich_help_panel="Model"),
    ] = None,
    max_history: Annotated[
        int | None,
        typer.Option(
            help="Most events that the model sees.", min=1, show_default="100; din 30", rich_help_panel="Model"
        ),
    ] = None,
    window_chunk: Annotated[
        int | None,
        typer.Option(help="Step of the window's start.", min=1, show_default="50; din 1", rich_help_panel="Model"),
    ] = None,
    dropout: Annotated[float, typer.Option(help="Dropout of layers and heads.", min=0, rich_help_panel="Model")] = 0.3,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the data.", min=1, show_default=f"{DEFAULTS.epochs}; din 3", rich_help_panel="Training"
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak rate.", show_default=str(DEFAULTS.learning_rate), rich_help_panel="Training"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of all chance.", min=0, show_default=str(DEFAULTS.seed), rich_help_panel="Training"),
    ] = None,
    split: Annotated[
        Split | None,
        typer.Option(help="A: by time; B: within users.", show_default=DEFAULTS.split, rich_help_panel="Training"),
    ] = None,
    visibility: Annotated[
        Visibility | None,
        typer.Option(
            help="Hide events of the target's own time, or go by order.",
            show_default=DEFAULTS.visibility,
            rich_help_panel="Training",
        ),
    ] = None,
    counters: Annotated[
        bool,
        typer.Option(
            help="Whether the model reads streaming counters of the user and the item too: docs/state.md.",
            rich_help_panel="Model",
        ),
    ] = False,
    embedding: Annotated[
        EmbeddingKind | None,
        typer.Option(
            help="Where the vectors of items are: each in a row of its own, or all hashed into one array: "
            "docs/tables.md.",
            show_default="table",
            rich_help_panel="Model",
        ),
    ] = None,
    memory_mb: Annotated[
        float | None,
        typer.Option(help="Of the array of robe-v0 and robe-mix.", show_default=False, rich_help_panel="Model"),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            help="Numbers of a vector that lie side by side there.", min=1, show_default="32", rich_help_panel="Model"
        ),
    ] = None,
    list_items: Annotated[
        bool | None,
        typer.Option(
            help="Whether the checkpoint names its items: titles, side features and counts. A table must.",
            show_default="list-items",
            rich_help_panel="Model",
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Torch threads; 0 for all cores.", min=0, rich_help_panel="Training")
    ] = 0,
) -> None:
    """Train a ranker and write a checkpoint. Ctrl-C keeps the last finished epoch: the same command resumes."""
    file = read_train_file(config) if config else TrainFile()
    flags = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "seed": seed,
        "split": split,
        "visibility": visibility,
    }
    training = _with_flags(train_config(model), file.training, flags)
    dataset = open_dataset(data, columns, items, item_columns, like_at_least, file.tasks, file.blend)
    _check_blend(config, dataset)
    vectors = {"kind": embedding, "memory_mb": memory_mb, "block": block, "list_items": list_items}
    given = {name: value for name, value in vectors.items() if value is not None}
    settings = file.embedding.model_copy(update=given)
    if not settings.list_items:
        if settings.kind == "table":
            raise ConfigError(
                "--no-list-items: a table has a row for each item of a list; --embedding robe-mix has not"
            )
        dataset = dataset.unlisted()
    try:
        ranker = model_config(
            dataset,
            model,
            dim=dim,
            num_layers=layers,
            num_heads=heads,
            max_history=max_history,
            window_chunk=window_chunk,
            dropout=dropout,
            counters=counters_of(dataset, training) if counters else None,
            embedding=settings.config(),
        )
    except ValidationError as error:
        raise ConfigError(
            "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        ) from error
    target = out or Path("checkpoints") / f"{dataset.name}-{model}"
    train_checkpoint(dataset, ranker_config=ranker, config=training, out=target, threads=threads)


def counters_of(dataset: Dataset, training: TrainConfig) -> CountersConfig:
    """The counters of a data set, standardised over the events that a training learns from. Raises ConfigError."""
    found = counters_config(
        dataset, splits.split(dataset, training.split) == splits.TRAIN, is_strict=training.visibility == "strict"
    )
    if found is None:
        raise ConfigError("--counters: the data set has no binary task, whose positive events are likes")
    return found


def _with_flags(usual: TrainConfig, file: TrainConfig, flags: Mapping[str, int | float | str | None]) -> TrainConfig:
    """An architecture's usual settings, with what the file says in place of its own, and then the flags."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return TrainConfig.model_validate(usual.model_dump() | file.model_dump(exclude_unset=True) | given)
    except ValidationError as error:
        raise ConfigError("--" + problem(error, TrainConfig).replace("_", "-", 1)) from error


def _check_blend(file: Path | None, dataset: Dataset) -> None:
    tasks = [task.name for task in dataset.tasks]
    unknown = sorted(set(dataset.blend) - set(tasks))
    if unknown:
        raise ConfigError(f"{file}: blend.{unknown[0]}: no such task; the tasks are {', '.join(tasks)}")


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
            model = fit(
                dataset,
                ranker_config,
                config,
                unfinished,
                report=lambda step: _show(bar, task, config, step),
                notify=lambda line: bar.console.print(line, soft_wrap=True),
            )
    except KeyboardInterrupt:
        kept = (unfinished / PROGRESS).is_file()
        _console.print(
            f"interrupted; the finished epochs are kept in {unfinished}: the same command goes on from there"
            if kept
            else "interrupted before the first epoch was finished; nothing is kept",
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    items = counted_items(dataset, splits.split(dataset, config.split) == splits.TRAIN)
    fingerprint = checkpoint.save(out, model, items)
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
        figures = f"validation {step.validation.figures}"
        bar.console.print(f"epoch {step.epoch + 1:>2}: {figures}{best}")
        if step.epoch + 1 < config.epochs and step.epoch + 1 - step.best_epoch > config.patience:
            bar.console.print(
                f"no better {step.judged_by} than epoch {step.best_epoch + 1}'s for {step.epoch - step.best_epoch} "
                f"epochs (patience {config.patience}): training ends, epoch {step.best_epoch + 1} is kept",
                soft_wrap=True,
            )
