"""Reading CSV, TSV and Parquet files column by column, with errors that name file, line (or row) and column.

Needs polars (the extra mfalcon[data]). Row 1 of Parquet is its first.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mfalcon.errors import DataError
from mfalcon.item_ids import CONTROL_CHARACTER, ITEM_ID_LIMIT, MAX_ITEM_ID_BYTES
from mfalcon.item_ids import item_ids as hashed_item_ids
from mfalcon.models.texts import Texts
from mfalcon.train.text_file import CSV, TSV, TextKind, check_header, fault_of, line_of, shown
from mfalcon.types import Ids

try:
    import polars as pl
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("reading your own tables needs polars: pip install 'mfalcon[data]'") from error


_PARQUET = (".parquet", ".pq")
_PARQUET_END = b"PAR1"
_MOST_NAMES = 30
"""Columns that a message lists."""


BATCH_ROWS = 1 << 19


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a file that are next to each other. path, first: the file, and where in it they begin, 0 being its first
    row: for messages.
    """

    path: Path
    first: int
    frame: pl.DataFrame


class Table:
    """A file of rows, or a folder of such files, that is read when it is asked for."""

    def __init__(self, path: Path, needed: Sequence[str], setting: str) -> None:
        """needed: columns that it must have. Raises DataError.

        Files: .csv, .tsv (where quotes are letters), either of them gzipped (.csv.gz), .parquet, or a folder of Parquet
        files, of which each has these columns. Every column of a CSV or TSV file is text.
        """
        self.path = path
        self._kind = text_kind(path)
        with self._reading():
            if self._kind is not None:
                check_header(path, self._kind)
                self._lazy = pl.scan_csv(
                    path, infer_schema=False, separator=self._kind.separator, quote_char=self._kind.quote
                )
            else:
                self._lazy = pl.scan_parquet(_parquet_files(path))
            self.schema = self._lazy.collect_schema()
            _check_columns(path, self.schema.names(), needed, setting)

    def collect(self, *expressions: pl.Expr) -> pl.DataFrame:
        """What these expressions are over all rows; all of it without any. Raises DataError, also if it has no rows."""
        with self._reading():
            found = (self._lazy.select(*expressions) if expressions else self._lazy).collect(engine="streaming")
        if len(found) == 0:
            raise DataError(f"{self.path}: has no rows")
        return found

    def batches(self, columns: Sequence[str]) -> Iterator[Rows]:
        """These columns of all rows in their order, some at a time; no more is held. Raises DataError."""
        first = 0
        with self._reading():
            frames = self._lazy.select(list(dict.fromkeys(columns))).collect_batches(
                chunk_size=BATCH_ROWS, engine="streaming"
            )
            for frame in frames:
                yield Rows(self.path, first, frame)
                first += len(frame)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raises DataError for what polars and the system raise."""
        path = self.path
        try:
            yield
        except pl.exceptions.NoDataError as error:
            raise DataError(f"{path}: is empty") from error
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{path}: cannot be read{_why(path, self._kind, error)}") from error
        except pl.exceptions.PanicException as error:  # no Exception: a damaged page of a file is enough
            raise DataError(f"{path}: cannot be read as parquet: it is damaged; write or copy it again") from error


def text_kind(path: Path) -> TextKind | None:
    """By its name: None of Parquet. Raises DataError."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix in _PARQUET or path.is_dir():
        return None
    if suffix == ".csv":
        return CSV
    if suffix in (".tsv", ".tab"):
        return TSV
    raise DataError(
        f"{path}: cannot tell what it is from its name; must end in .csv, .tsv (or these and .gz) or .parquet, or be a "
        "folder of Parquet files"
    )


def _parquet_files(path: Path) -> list[Path]:
    """The file, or those of a folder, in order of their names. Raises DataError for one that is torn, and OSError."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _PARQUET) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: has no Parquet files (.parquet)")
    for file in files:
        with file.open("rb") as opened:
            opened.seek(-min(len(_PARQUET_END), file.stat().st_size), os.SEEK_END)
            if opened.read() != _PARQUET_END:
                raise DataError(
                    f"{file}: cannot be read as parquet: it does not end as such a file does (PAR1), so it is cut off "
                    "or something else; write or copy it again"
                )
    return files


def _check_columns(path: Path, names: Sequence[str], needed: Sequence[str], setting: str) -> None:
    for column in needed:
        if column not in names:
            near = difflib.get_close_matches(column, names, 1)
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            raise DataError(
                f"{path}: has no column {column!r}, its columns are "
                f"{', '.join(name[:64] for name in names[:_MOST_NAMES])}{more}; {setting} says which is what"
                + (f" ({near[0]!r}, perhaps)" if near else "")
            )


def _why(path: Path, kind: TextKind | None, error: Exception) -> str:
    """What is wrong with a file, in one line and with its place if that is found."""
    if isinstance(error, OSError) and error.errno:
        return f": {error.strerror}"
    fault = fault_of(path, kind) if kind is not None else None
    first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f" as {'parquet' if kind is None else 'text'}: {fault or first_line[:200]}"


def refuse(rows: Rows, series: pl.Series, bad: pl.Series, limit: str) -> None:
    """Raise DataError for the first row where `bad` is true, if there is one; limit: what the cell must be."""
    if bad.any():
        row = int(bad.arg_true()[0])
        raise DataError(
            f"{rows.path}: {place(rows.path, rows.first + row)}, column {series.name!r}: got {shown(series[row])}, "
            f"must be {limit} ({int(bad.sum()):,} such rows of {len(series):,})"
        )


def place(path: Path, row: int) -> str:
    """Where a row is, 0 being the first of data: its line, or of Parquet its number from 1."""
    kind = text_kind(path)
    line = None if kind is None else line_of(path, kind, row)
    return f"row {row + 1}" if line is None else f"line {line}"


def text(rows: Rows, series: pl.Series, limit: str) -> pl.Series:
    """A column of text or integers as text, without empty cells."""
    if series.dtype.is_nested() or series.dtype.is_float() or series.dtype == pl.Binary:
        raise DataError(f"{rows.path}: column {series.name!r} is {series.dtype}, must be {limit}")
    cells = series.cast(pl.String)
    refuse(rows, series, (cells.is_null() | (cells == "")).fill_null(value=True), limit)
    return cells


def numbers(rows: Rows, series: pl.Series) -> pl.Series:
    """A column as Float64, null where a cell is not a finite number."""
    if not (series.dtype.is_numeric() or series.dtype in (pl.String, pl.Boolean)):
        raise DataError(f"{rows.path}: column {series.name!r} is {series.dtype}, must be numbers")
    cells = series.cast(pl.Float64, strict=False)
    return cells.set(~cells.is_finite().fill_null(value=True), None)


ItemIdKind = Literal["auto", "integer", "text"]


@dataclass(frozen=True, slots=True)
class ItemIds:
    """A column of item ids. ids: int64 [n]. texts: of each id its text, where ids are text; None where they are
    integers.
    """

    ids: Ids
    texts: Mapping[int, str] | None = None


def item_ids(rows: Rows, series: pl.Series, *, is_text: bool) -> ItemIds:
    """A column of item ids. Integers are kept as they are. Text is hashed to 64 bits (`mfalcon.item_ids`), and two
    texts of one number are refused. Integers of more than 64 bits and other numbers are refused.
    """
    if is_text:
        return _hashed(rows, series)
    if not (series.dtype.is_numeric() or series.dtype == pl.String):
        raise DataError(f"{rows.path}: column {series.name!r} is {series.dtype}, must be text or integers")
    ids = series.cast(pl.Int64, strict=False)
    bad = ids.is_null()
    if series.dtype.is_float():
        exact = (ids.cast(pl.Float64) == series) & (series.abs() <= 2**53)
        bad = ~exact.fill_null(value=False)
    refuse(rows, series, bad, "a 64-bit integer: requests name items by this id (item_ids=text takes any text)")
    return ItemIds(ids.to_numpy().copy())


def are_text(table: Table, column: str, kind: ItemIdKind) -> bool:
    """Whether a column of item ids is text. "auto": it is, unless each cell is a number as a program writes it ("7",
    not "007"). Whether all are integers is for `item_ids` to say.
    """
    if kind != "auto":
        return kind == "text"
    if table.schema[column] not in (pl.String, pl.Categorical, pl.Enum):
        return False
    cells = pl.col(column).cast(pl.String)
    is_no_number = cells.str.contains(r"^[+-]?0\d") | cells.cast(pl.Float64, strict=False).is_null()
    return bool(table.collect((is_no_number & (cells != "")).any()).item())


def texts_of(path: Path, item_id: Ids, *columns: ItemIds) -> Texts | None:
    """The text of every item that these columns name, None where all columns are integers. Raises DataError where two
    columns have two texts of one number.
    """
    if all(column.texts is None for column in columns):
        return None
    texts: dict[int, str] = {}
    for column in columns:
        own = column.texts if column.texts is not None else {item: str(item) for item in column.ids.tolist()}
        for item, name in own.items():
            if texts.setdefault(item, name) != name:
                raise DataError(f"{path}: items {texts[item]!r} and {name!r} have one hash; rename one of them")
    return Texts.of(texts[item] for item in item_id.tolist())


def _hashed(rows: Rows, series: pl.Series) -> ItemIds:
    limit = "an item id (text or integer)"
    cells = text(rows, series, limit)
    too_long = cells.str.len_bytes() > MAX_ITEM_ID_BYTES
    refuse(rows, series, too_long | cells.str.contains(CONTROL_CHARACTER), f"{limit}: {ITEM_ID_LIMIT}")
    texts = cells.unique().sort()
    ids = hashed_item_ids(texts)
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(same):
        one, other = (texts[int(order[same[0] + step])] for step in (0, 1))
        raise DataError(f"{rows.path}: column {series.name!r}: {one!r} and {other!r} have one hash; rename one of them")
    column = cells.replace_strict(texts, ids, return_dtype=pl.Int64).to_numpy().copy()
    return ItemIds(column, dict(zip(ids.tolist(), texts.to_list(), strict=True)))
