"""`mfalcon train`: from events to a checkpoint."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import ValidationError
from rich.console import Console

from mfalcon.cli.datasets import (
    ColumnsOption,
    DataOption,
    ItemColumnsOption,
    ItemsOption,
    LikeOption,
    ScratchOption,
    check_split,
    open_dataset,
)
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cli.training import train_checkpoint
from mfalcon.errors import ConfigError
from mfalcon.models.config import Task
from mfalcon.models.config_features import CountersConfig, EmbeddingKind
from mfalcon.models.config_layers import AttentionKind
from mfalcon.models.registry import trained_here
from mfalcon.train import splits
from mfalcon.train.counters import counters_config
from mfalcon.train.dataset import Dataset
from mfalcon.train.description import learn_lines, read_lines
from mfalcon.train.place import check_place, count_parameters
from mfalcon.train.proposal import proposal
from mfalcon.train.recipes import GraphTraining, Position, TrainConfig, model_config, train_config
from mfalcon.train.sequences import Visibility
from mfalcon.train.settings import EmbeddingSettings, ReachSettings, TrainFile, problem, read_train_file
from mfalcon.train.splits import Split

DEFAULTS = TrainConfig()

Tasks = Literal["auto", "propose"]


def train(
    out: Annotated[
        Path | None, typer.Option(help="Checkpoint directory; checkpoints/<data>-<model> if not given.")
    ] = None,
    model: Annotated[str, typer.Option(help=f"Architecture: {', '.join(trained_here())}.")] = "dfgr",
    data: DataOption = "ml-100k",
    columns: ColumnsOption = "",
    items: ItemsOption = None,
    item_columns: ItemColumnsOption = "",
    like_at_least: LikeOption = None,
    scratch: ScratchOption = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file: table training ("
            + ", ".join(TrainConfig.model_fields)
            + "), array of tables tasks ("
            + ", ".join(Task.model_fields)
            + ") in place of the data's own, table embedding ("
            + ", ".join(EmbeddingSettings.model_fields)
            + "), array of tables reach ("
            + ", ".join(ReachSettings.model_fields)
            + "), and table blend (task = weight; all binary "
            "tasks alike if not given). Flags win over the file.",
            rich_help_panel="Training",
        ),
    ] = None,
    tasks: Annotated[
        Tasks | None,
        typer.Option(
            help="Where --config names no tasks: learn those that the data suggest (auto), or print them as such a "
            "file and end (propose). Of events with several actions one of the two must be said.",
            show_default=False,
            rich_help_panel="Training",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint that --out is.")] = False,
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
    attention: Annotated[
        AttentionKind | None,
        typer.Option(
            help="Weights of the events that a token sees: SiLU of each, or a softmax over them: docs/models.md.",
            show_default="pointwise; din has none",
            rich_help_panel="Model",
        ),
    ] = None,
    position: Annotated[
        Position | None,
        typer.Option(
            help="How layers know where an event is: learned weights of distance and time (rab), rotary positions, or "
            "ALiBi: docs/models.md.",
            show_default="rab; din has none",
            rich_help_panel="Model",
        ),
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
    graph: Annotated[
        bool,
        typer.Option(
            "--graph",
            help="Whether the model reads vectors of a graph of the items too, which is learnt with it: docs/graph.md.",
            rich_help_panel="Model",
        ),
    ] = False,
    threads: Annotated[
        int, typer.Option(help="Torch threads; 0 for all cores.", min=0, rich_help_panel="Training")
    ] = 0,
    json_output: JsonOption = False,
) -> None:
    """Train a ranker and write a checkpoint. Ctrl-C keeps the last finished epoch: the same command resumes.

    It first says what it read, what it will learn and how it ranks by that, then shows the time left. Nothing is
    written but --out, and beside it the state of the run until it ends.
    """
    file = read_train_file(config) if config else TrainFile()
    if tasks is not None and file.tasks:
        raise ConfigError(
            f"--tasks: has no effect, {config} names the tasks: leave it out, or take [[tasks]] and [blend] out of the "
            "file"
        )
    flags = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "seed": seed,
        "split": split,
        "visibility": visibility,
    }
    training = _with_flags(train_config(model), file.training, flags)
    dataset = open_dataset(data, columns, items, item_columns, like_at_least, file.tasks, file.blend, scratch=scratch)
    check_split(dataset, split or (file.training.split if "split" in file.training.model_fields_set else None))
    _check_blend(config, dataset)
    if tasks == "propose" or (tasks is None and not file.tasks and _must_choose(dataset, like_at_least)):
        _say(read_lines(dataset), Console(stderr=True, highlight=False))
        typer.echo(proposal(dataset))
        if tasks == "propose":
            return
        where = f"{config}" if config else "a file that you give with --config (> FILE writes it)"
        raise ConfigError(
            f"{data}: has several actions, and nothing says what to learn of them: put what is proposed above into "
            f"{where}, and change what is wrong, or take it as it is with --tasks auto"
        )
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
            attention=attention,
            position=position,
            dropout=dropout,
            counters=counters_of(dataset, training) if counters else None,
            embedding=settings.config(),
            graph=training.graph or GraphTraining() if graph else None,
        )
        ranker = file.with_reach(ranker)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        ) from error
    target = out or Path("checkpoints") / f"{dataset.name}-{model}"
    num_parameters = count_parameters(ranker)
    check_place(target, num_parameters, overwrite=overwrite)
    parts = splits.split(dataset, training.split)
    console = Console(stderr=json_output, highlight=False)
    _say(read_lines(dataset), console)
    _say(learn_lines(dataset, ranker, training, parts, num_parameters), console)
    trained = train_checkpoint(dataset, ranker, training, target, threads=threads, overwrite=overwrite, console=console)
    if json_output:
        learned = [task.name for task in dataset.tasks]
        print_json(dataclasses.asdict(trained) | {"tasks": learned, "blend": dict(ranker.blend)})


def _must_choose(dataset: Dataset, like_at_least: float | None) -> bool:
    """Whether it is a user's file of several actions, of which nobody said what to learn."""
    return dataset.reading is not None and len(dataset.actions) > 1 and like_at_least is None


def _say(lines: Iterable[str], console: Console) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


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
