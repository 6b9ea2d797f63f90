"""A user's own items, from CSV, TSV or Parquet, as an item table with titles and side features."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, field_validator

from mfalcon.errors import DataError
from mfalcon.models.config_features import SideFeature
from mfalcon.models.config_kinds import Frozen
from mfalcon.models.items import ItemTable
from mfalcon.train.frames import ItemIdKind, ItemIds, Rows, Table, are_text, item_ids, place, texts_of

MAX_CATEGORIES = 10_000
MAX_TAGS = 1_000
MAX_PLAIN_NUMBERS = 32
"""A numeric column with at most so many different values is a category of its values, otherwise of its deciles."""
NUM_QUANTILES = 10

Column = NDArray[np.int64] | NDArray[np.uint8]


class ItemColumns(Frozen):
    """Which columns of the item file are what.

    title: None takes the column "title" if there is one. side: None takes every other column; text reads as "a+b".
    """

    item: str = "item_id"
    title: str | None = None
    side: tuple[str, ...] | None = None
    tag_separator: str = Field(default="|", min_length=1)

    @field_validator("side", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return names_of(value)


def names_of(value: object) -> object:
    """The columns that "a+b" names."""
    return tuple(name.strip() for name in value.split("+")) if isinstance(value, str) else value


def read_items(
    path: Path, columns: ItemColumns, also: ItemIds, kind: ItemIdKind = "auto"
) -> tuple[ItemTable, tuple[SideFeature, ...]]:
    """The items of the file and those of `also`, which have no title and no side features if not in the file.

    Text is a category, or tags where the separator occurs in any row; numbers are a category of their values if these
    are few, else of their deciles. An empty cell is missing; a column of nothing else is left out.
    """
    needed = [columns.item, *([columns.title] if columns.title else []), *(columns.side or ())]
    table = Table(path, needed, "--item-columns")
    frame = table.collect()
    column = item_ids(Rows(path, 0, frame), frame[columns.item], is_text=are_text(table, columns.item, kind))
    row_item = column.ids
    unique, count = np.unique(row_item, return_counts=True)
    if len(unique) != len(row_item):
        twice = unique[count > 1]
        first, other = (place(path, int(row)) for row in np.flatnonzero(row_item == twice[0])[:2])
        raise DataError(
            f"{path}: {other}, column {columns.item!r}: item {twice[0]} is in {first} already, must have one row "
            f"({len(twice):,} such items)"
        )
    item_id = np.union1d(row_item, also.ids)
    at = np.searchsorted(item_id, row_item)
    title = columns.title or ("title" if "title" in frame.columns else None)
    titles = [""] * len(item_id)
    if title:
        for index, cell in zip(at, frame[title].cast(pl.String).fill_null("").to_list(), strict=True):
            titles[index] = cell
    rest = [name for name in frame.columns if name not in (columns.item, title)]
    side: dict[str, Column] = {}
    features = []
    for header in rest if columns.side is None else columns.side:
        name = config_name(header)
        if name in side:
            raise DataError(
                f"{path}: two columns would both be side feature {name!r}; rename one or choose with `side`"
            )
        read = _side(path, frame[header], name, columns.tag_separator)
        if read is not None:
            feature, value = read
            side[name] = np.zeros((len(item_id), *value.shape[1:]), dtype=value.dtype)
            side[name][at] = value
            features.append(feature)
    texts = texts_of(path, item_id, also, column)
    return ItemTable(item_id=item_id, titles=tuple(titles), side=side, texts=texts), tuple(features)


def config_name(text: str) -> str:
    """A column or action as a name of the config: "Film Genre" -> film_genre, "2024" -> f_2024."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return (name if re.match(r"[a-z]", name) else f"f_{name}")[:64]


def _side(path: Path, series: pl.Series, name: str, separator: str) -> tuple[SideFeature, Column] | None:
    """One column as a side feature with [num_rows] codes or [num_rows, num_tags] flags; None if it is all empty."""
    if series.dtype.is_float():
        series = series.fill_nan(None)
    if series.dtype == pl.String:
        series = series.set((series == "").fill_null(value=False), None)
    if series.null_count() == len(series):
        return None
    if series.dtype == pl.List(pl.String):
        return _tags(path, series.name, name, series.to_list())
    if series.dtype.is_nested() or series.dtype == pl.Binary:
        raise DataError(f"{path}: column {series.name!r} is {series.dtype}, must be text, numbers or lists of text")
    if series.dtype.is_numeric() or series.dtype == pl.String:
        numbers = series.cast(pl.Float64, strict=False)
        if numbers.null_count() == series.null_count() and numbers.drop_nulls().is_finite().all():
            return _numeric(name, numbers)
    text = series.cast(pl.String)
    if text.str.contains(separator, literal=True).any():
        return _tags(path, series.name, name, [cell and cell.split(separator) for cell in text.to_list()])
    vocabulary = sorted(text.drop_nulls().unique().to_list())
    _check_size(path, series.name, len(vocabulary), MAX_CATEGORIES)
    code = {value: index for index, value in enumerate(vocabulary, start=1)}
    feature = SideFeature(name=name, kind="category", vocabulary=tuple(vocabulary))
    return feature, np.array([0 if cell is None else code[cell] for cell in text.to_list()], dtype=np.int64)


def _numeric(name: str, numbers: pl.Series) -> tuple[SideFeature, NDArray[np.int64]]:
    """Codes of the values themselves if they are few, else of their deciles."""
    present = numbers.drop_nulls().to_numpy()
    known = numbers.is_not_null().to_numpy()
    distinct = np.unique(present)
    code = np.zeros(len(numbers), dtype=np.int64)
    if len(distinct) <= MAX_PLAIN_NUMBERS:
        code[known] = 1 + np.searchsorted(distinct, present)
        names = tuple(np.format_float_positional(value, trim="-") for value in distinct)
    else:
        edges = np.unique(np.quantile(present, np.linspace(0, 1, NUM_QUANTILES + 1)))
        code[known] = 1 + np.minimum(np.searchsorted(edges, present, side="right") - 1, len(edges) - 2)
        spans = enumerate(itertools.pairwise(edges), start=1)
        names = tuple(f"q{number}: {low:.6g} to {high:.6g}" for number, (low, high) in spans)
    return SideFeature(name=name, kind="category", vocabulary=names), code


def _tags(
    path: Path, column: str, name: str, cells: Sequence[Sequence[str] | None]
) -> tuple[SideFeature, NDArray[np.uint8]]:
    """[num_rows, num_tags] flags; blanks around a tag do not count."""
    sets = [{tag.strip() for tag in cell or () if tag and tag.strip()} for cell in cells]
    vocabulary = sorted(set[str]().union(*sets))
    _check_size(path, column, len(vocabulary), MAX_TAGS)
    index = {tag: position for position, tag in enumerate(vocabulary)}
    flags = np.zeros((len(cells), len(vocabulary)), dtype=np.uint8)
    for row, tags in enumerate(sets):
        flags[row, [index[tag] for tag in tags]] = 1
    return SideFeature(name=name, kind="tags", vocabulary=tuple(vocabulary)), flags


def _check_size(path: Path, column: str, size: int, limit: int) -> None:
    if size > limit:
        raise DataError(
            f"{path}: column {column!r} has {size} different values, must have at most {limit} as a side feature; "
            "leave it out by naming the columns to use in `side`"
        )
