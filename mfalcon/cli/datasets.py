"""Options that say which data set to use, shared by every command that reads one."""

from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError

from mfalcon.errors import ConfigError
from mfalcon.models.config import Frozen
from mfalcon.train import movielens
from mfalcon.train.dataset import Dataset
from mfalcon.train.synthetic import synthetic

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="ml-100k, synthetic, or a file of your own events: CSV, TSV or Parquet, one event a row.",
        rich_help_panel="Data",
    ),
]
ColumnsOption = Annotated[
    str,
    typer.Option(
        "--columns",
        help="Your columns: user=…,item=…,time=… and optionally action=…,value=…,time_unit=auto|s|ms|us|iso8601.",
        rich_help_panel="Data",
    ),
]
ItemsOption = Annotated[
    Path | None,
    typer.Option("--items", help="A file of your items: id, title, and side features.", rich_help_panel="Data"),
]
ItemColumnsOption = Annotated[
    str,
    typer.Option("--item-columns", help="Its columns: item=…,title=…,tag_separator=….", rich_help_panel="Data"),
]
LikeOption = Annotated[
    float | None,
    typer.Option("--like-at-least", help="An event of at least this value is a like.", rich_help_panel="Data"),
]

ML_100K = Path("data/ml-100k")

M = TypeVar("M", bound=Frozen)


def open_dataset(
    data: str, columns: str, items: Path | None, item_columns: str, like_at_least: float | None
) -> Dataset:
    """The data set that the options name; MovieLens-100K is fetched if it is not there."""
    if data == "ml-100k":
        return movielens.read(movielens.fetch(ML_100K, notify=typer.echo))
    if data == "synthetic":
        return synthetic(num_users=300, num_items=500, events_per_user=60, seed=0)
    from mfalcon.train.table import ColumnMapping, read_table  # noqa: PLC0415 (needs the extra `data`)
    from mfalcon.train.table_items import ItemColumns  # noqa: PLC0415

    return read_table(
        Path(data),
        columns=_mapping(ColumnMapping, columns, "--columns"),
        items=items,
        item_columns=_mapping(ItemColumns, item_columns, "--item-columns"),
        like_at_least=like_at_least,
    )


def _mapping(kind: type[M], text: str, option: str) -> M:
    """`a=x,b=y` as a pydantic object. Raises ConfigError naming the option."""
    parts = [part.partition("=") for part in text.split(",") if part]
    try:
        return kind.model_validate({name.strip(): value.strip() for name, _, value in parts})
    except ValidationError as error:
        first = error.errors()[0]
        names = ", ".join(kind.model_fields)
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{option}: {where}: {first['msg']}; known names are {names}") from error
