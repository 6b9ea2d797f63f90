"""Options that say which data set to use, shared by every command that reads one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError

from mfalcon.errors import ConfigError
from mfalcon.models.config import Task
from mfalcon.models.config_kinds import Frozen
from mfalcon.train import movielens
from mfalcon.train.dataset import Dataset
from mfalcon.train.settings import equal_blend, problem
from mfalcon.train.splits import Split
from mfalcon.train.synthetic import synthetic

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="ml-100k, synthetic, or a file of your own events: CSV, TSV or Parquet, one event a row.",
        rich_help_panel="Data",
    ),
]
NamedDataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="ml-100k, synthetic, or a file of your own events: CSV, TSV or Parquet, one event a row.",
        show_default="ml-100k or synthetic, if the checkpoint's name begins so",
        rich_help_panel="Data",
    ),
]
ColumnsOption = Annotated[
    str,
    typer.Option(
        "--columns",
        help="Your columns: user=…,item=…,time=…; optionally, after further commas, action=…, value=…, features=a+b, "
        "split=… (train, validation, test or unused), "
        "time_unit=auto|s|ms|us|iso8601, item_ids=auto|integer|text.",
        rich_help_panel="Data",
    ),
]
ItemsOption = Annotated[
    Path | None,
    typer.Option("--items", help="A file of your items: id, title, and side features.", rich_help_panel="Data"),
]
ItemColumnsOption = Annotated[
    str,
    typer.Option(
        "--item-columns",
        help="Its columns: item=…,title=…, and after a comma side=a+b, tag_separator=….",
        rich_help_panel="Data",
    ),
]
LikeOption = Annotated[
    float | None,
    typer.Option("--like-at-least", help="An event of at least this value is a like.", rich_help_panel="Data"),
]
ScratchOption = Annotated[
    Path | None,
    typer.Option(
        "--scratch",
        metavar="DIR",
        help="Where to keep what is of each event, for data larger than memory; nothing stays there.",
        rich_help_panel="Data",
    ),
]

ML_100K = Path("data/ml-100k")

M = TypeVar("M", bound=Frozen)


def open_dataset(
    data: str,
    columns: str,
    items: Path | None,
    item_columns: str,
    like_at_least: float | None,
    tasks: Sequence[Task] = (),
    blend: Mapping[str, float] | None = None,
    *,
    to_learn: bool = True,
    scratch: Path | None = None,
) -> Dataset:
    """The data set that the options name; MovieLens-100K is fetched if it is not there.

    tasks, blend: in place of the data set's own. Tasks without a blend: every binary task alike. to_learn: False where
    its tasks are not looked at, so a file of your own needs none. scratch: see `read_table`.

    Raises ConfigError for an option that would have no effect.
    """
    given = {
        "--columns": bool(columns),
        "--items": items is not None,
        "--item-columns": bool(item_columns),
        "--like-at-least": like_at_least is not None,
        "--scratch": scratch is not None,
    }
    if data in ("ml-100k", "synthetic"):
        if any(given.values()):
            names = ", ".join(name for name, is_given in given.items() if is_given)
            raise ConfigError(f"{names}: only for a file of your own events, not for --data {data}")
        return _with_tasks(_built_in(data), tasks, blend)
    if item_columns and items is None:
        raise ConfigError("--item-columns: needs --items")
    if like_at_least is not None and tasks:
        raise ConfigError("--like-at-least: has no effect where tasks are given")
    if scratch is not None and not scratch.is_dir():
        raise ConfigError(f"--scratch: {scratch} is no folder that is there")
    if like_at_least is not None and not math.isfinite(like_at_least):
        raise ConfigError(f"--like-at-least: got {like_at_least}, must be a finite number")
    from mfalcon.train.table import read_table  # noqa: PLC0415 (needs the extra `data`)
    from mfalcon.train.table_events import ColumnMapping  # noqa: PLC0415
    from mfalcon.train.table_items import ItemColumns  # noqa: PLC0415

    return read_table(
        Path(data),
        columns=_mapping(ColumnMapping, columns, "--columns"),
        items=items,
        item_columns=_mapping(ItemColumns, item_columns, "--item-columns"),
        like_at_least=like_at_least,
        tasks=tasks,
        blend=blend,
        to_learn=to_learn,
        scratch=scratch,
    )


def check_split(dataset: Dataset, given: Split | None, option: str = "--split") -> Split:
    """Which split it is, A if nothing says it. Raises ConfigError where a column says it too."""
    if given is not None and dataset.parts is not None:
        raise ConfigError(f"{option}: got {given}, must not be given where --columns names a column of it (split=...)")
    return given or "A"


def data_of(data: str | None, checkpoint_name: str) -> str:
    """What --data names, or what the checkpoint was trained on, if its name begins with that of a data set which is
    here. Raises ConfigError: nothing is fetched that nobody named.
    """
    if data is not None:
        return data
    if checkpoint_name.startswith("synthetic-"):
        return "synthetic"
    if checkpoint_name.startswith("ml-100k-"):
        if all((ML_100K / name).is_file() for name in movielens.SHA256):
            return "ml-100k"
        raise ConfigError(
            f"--data: {checkpoint_name} was trained on MovieLens-100K, which is not in {ML_100K}: --data ml-100k "
            "fetches it there"
        )
    raise ConfigError(f"--data: name the events, with --columns as {checkpoint_name} was trained")


def _built_in(data: str) -> Dataset:
    if data == "ml-100k":
        return movielens.read(movielens.fetch(ML_100K, notify=typer.echo))
    return synthetic(num_users=300, num_items=500, events_per_user=60, seed=0)


def _with_tasks(dataset: Dataset, tasks: Sequence[Task], blend: Mapping[str, float] | None) -> Dataset:
    if tasks:
        dataset = replace(dataset, tasks=tuple(tasks), blend=equal_blend(tasks))
    return replace(dataset, blend=dict(blend)) if blend else dataset


def _mapping(kind: type[M], text: str, option: str) -> M:
    """`a=x,b=y` as a pydantic object. Raises ConfigError naming the option."""
    named: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, _, column = (piece.strip() for piece in part.partition("="))
        if not name or not column:
            raise ConfigError(f"{option}: got {part!r}, must be name=column, comma-separated")
        if name in named:
            raise ConfigError(f"{option}: {name} is given twice")
        named[name] = column
    try:
        return kind.model_validate(named)
    except ValidationError as error:
        raise ConfigError(f"{option}: {problem(error, kind)}") from error
