"""The columns of a file of events, each as numbers, some rows at a time; with errors that name the first bad cell."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mfalcon.clock import is_plausible
from mfalcon.errors import DataError
from mfalcon.train.frames import ItemIdKind, Rows, Table, are_text, item_ids, numbers, refuse, text
from mfalcon.train.splits import TEST, TRAIN, UNUSED, VALIDATION
from mfalcon.types import MAX_TIME_MS, MAX_USER_ID_BYTES, Floats, Ids

MAX_ACTIONS = 32

TimeUnit = Literal["auto", "s", "ms", "us", "iso8601"]
AUTO_BELOW: Mapping[TimeUnit, float] = {"s": 1e11, "ms": 1e14, "us": 1e17}
"""Times below this are taken for seconds, and so on: each unit ends in the year 5138."""
FIRST_DATE, LAST_DATE = 19_000_101, 21_001_231
"""Numbers that are more likely YYYYMMDD than seconds of 1970."""
PARTS: Final[Mapping[str, int]] = {"train": TRAIN, "validation": VALIDATION, "test": TEST, "unused": UNUSED}
"""The values of a column that says what an event is for."""
_MAX_FLOAT32 = float(np.finfo(np.float32).max)


class _Codes(dict[str, int]):
    """Numbers of texts, from 0 on as they first come."""

    def of(self, cells: pl.Series) -> Ids:
        """[n] of each cell."""
        distinct = cells.unique()
        codes = [self.setdefault(name, len(self)) for name in distinct.to_list()]
        return cells.replace_strict(distinct, pl.Series(codes, dtype=pl.Int64), return_dtype=pl.Int64).to_numpy()

    def ranks(self, ordered: Sequence[str]) -> Ids:
        """[num_codes] the place of each code's text among the ordered ones."""
        ranks = np.empty(len(self), dtype=np.int64)
        ranks[[self[name] for name in ordered]] = np.arange(len(self))
        return ranks


class Users:
    """A column of user ids."""

    def __init__(self) -> None:
        self._codes = _Codes()
        self._newest = np.empty(0, dtype=np.int64)
        self.num_late = 0
        """Rows that stand behind a later event of their user."""

    def read(self, rows: Rows, series: pl.Series) -> Ids:
        """[n] a number of each user."""
        cells = text(rows, series, "a user id (text or integer)")
        refuse(rows, series, cells.str.len_bytes() > MAX_USER_ID_BYTES, f"at most {MAX_USER_ID_BYTES} bytes")
        return self._codes.of(cells)

    def count_late(self, user: Ids, times: Ids) -> None:
        """Of the rows that were read last."""
        more = np.zeros(len(self._codes) - len(self._newest), dtype=np.int64)
        self._newest = np.concatenate([self._newest, more])
        frame = pl.DataFrame({"user": user, "time": times, "before": self._newest[user]})
        newest = pl.max_horizontal("before", pl.col("time").cum_max().over("user"))
        self.num_late += int(frame.select((pl.col("time") < newest).sum()).item())
        np.maximum.at(self._newest, user, times)

    def ordered(self) -> tuple[tuple[str, ...], Ids]:
        """The ids in order (by number if all are plain integers), and the place of each number among them."""
        plain = all(re.fullmatch(r"0|-?[1-9][0-9]*", user_id, re.ASCII) for user_id in self._codes)
        ids = sorted(self._codes, key=int if plain else None)
        return tuple(ids), self._codes.ranks(ids)


class Actions:
    """A column of actions."""

    def __init__(self) -> None:
        self._codes = _Codes()

    def read(self, rows: Rows, series: pl.Series) -> Ids:
        """[n] a number of each action."""
        codes = self._codes.of(text(rows, series, "the name of an action"))
        if len(self._codes) > MAX_ACTIONS:
            raise DataError(
                f"{rows.path}: column {series.name!r} has {len(self._codes)} different actions "
                f"({', '.join(sorted(self._codes)[:4])}, ...), must have at most {MAX_ACTIONS}"
            )
        return codes

    def ordered(self) -> tuple[tuple[str, ...], NDArray[np.uint32]]:
        """The names in order, and the bit of each number."""
        names = sorted(self._codes)
        return tuple(names), np.left_shift(np.uint32(1), self._codes.ranks(names).astype(np.uint32))


class Items:
    """A column of item ids. texts: of each id its text, where ids are text; None where they are integers."""

    def __init__(self, table: Table, column: str, kind: ItemIdKind) -> None:
        """kind: see `are_text`."""
        self._is_text = are_text(table, column, kind)
        self.texts: dict[int, str] | None = {} if self._is_text else None

    def read(self, rows: Rows, series: pl.Series) -> Ids:
        """[n] ids."""
        read = item_ids(rows, series, is_text=self._is_text)
        if self.texts is not None and read.texts is not None:
            for item, name in read.texts.items():
                if (other := self.texts.setdefault(item, name)) != name:
                    raise DataError(
                        f"{rows.path}: column {series.name!r}: {other!r} and {name!r} have one hash; rename one of them"
                    )
        return read.ids


def values(rows: Rows, series: pl.Series) -> Floats:
    """[n] finite float32."""
    cells = numbers(rows, series)
    in_range = cells.abs() <= _MAX_FLOAT32
    refuse(rows, series, ~in_range.fill_null(value=False), "a finite number (fill such cells or leave the rows out)")
    return cells.to_numpy().astype(np.float32)


def dense(rows: Rows, series: pl.Series) -> Floats:
    """[n] float32, NaN where a cell is empty."""
    cells = numbers(rows, series)
    is_empty = series.is_null() | (series == "") if series.dtype == pl.String else series.is_null()
    refuse(rows, series, cells.is_null() & ~is_empty, "a finite number, or empty")
    refuse(rows, series, cells.abs() > _MAX_FLOAT32, "a finite 32-bit float, or empty")
    return cells.fill_null(float("nan")).to_numpy().astype(np.float32)


def parts(rows: Rows, series: pl.Series) -> NDArray[np.int8]:
    """[n] of `mfalcon.train.splits`."""
    cells = series.cast(pl.String).str.to_lowercase()
    refuse(rows, series, ~cells.is_in(list(PARTS)).fill_null(value=False), f"one of {', '.join(PARTS)}")
    return cells.replace_strict(list(PARTS), list(PARTS.values()), return_dtype=pl.Int8).to_numpy()


class Times:
    """A column of times. read_as: dates, ISO-8601 or a unit."""

    def __init__(self, table: Table, column: str, unit: TimeUnit) -> None:
        """Find out what it is. Raises DataError."""
        dtype = table.schema[column]
        self.read_as = "dates"
        self._limit = "a time from 1970 to 9999, at least 1 ms"
        if dtype in (pl.Datetime, pl.Date):
            return
        if dtype == pl.String and (unit == "iso8601" or (unit == "auto" and not _starts_with_number(table, column))):
            self.read_as = "ISO-8601"
            self._limit += ", in ISO-8601 such as 2026-11-22T19:05:00Z"
        elif unit == "iso8601":
            raise DataError(f"{table.path}: column {column!r} is {dtype}, must be ISO-8601 text as time_unit says")
        else:
            self.read_as = _unit(table, column) if unit == "auto" else unit
            self._per_ms = 1000 if self.read_as == "us" else 1
            self._limit += f", in {self.read_as}"

    def read(self, rows: Rows, series: pl.Series) -> Ids:
        """[n] milliseconds since 1970, cut down to the millisecond; at least 1, as the server takes them."""
        if self.read_as == "dates":
            time_ms = (series.cast(pl.Datetime("us")) if series.dtype == pl.Date else series).dt.epoch("ms")
        elif self.read_as == "ISO-8601":
            time_ms = pl.Series([_milliseconds(cell) for cell in series.to_list()], dtype=pl.Int64)
        else:
            cells = numbers(rows, series)
            refuse(rows, series, cells.is_null(), self._limit)
            ticks = (cells * 1000).round() if self.read_as == "s" else (cells / self._per_ms).floor()
            time_ms = ticks.cast(pl.Int64, strict=False)
        in_range = (time_ms >= 1) & (time_ms <= MAX_TIME_MS)
        refuse(rows, series, ~in_range.fill_null(value=False), self._limit)
        out = time_ms.to_numpy()
        rather = {"ms": "time_unit=s", "us": "time_unit=ms"}.get(self.read_as, "another unit")
        advice = f"a time of our days: read as {self.read_as} this is January 1970 ({rather}, perhaps)"
        refuse(rows, series, pl.Series(~is_plausible(out, 0)), advice)
        return out


def _starts_with_number(table: Table, column: str) -> bool:
    first = table.collect(pl.col(column).drop_nulls().first().cast(pl.Float64, strict=False)).item()
    return first is not None


def _milliseconds(cell: str | None) -> int | None:
    """An ISO-8601 time in milliseconds since 1970, UTC where no zone is named; None if it is not one."""
    try:
        moment = datetime.fromisoformat(cell or "")
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def _unit(table: Table, column: str) -> TimeUnit:
    """s, ms or us by the size of the numbers; refused where that does not tell."""
    if not (table.schema[column].is_numeric() or table.schema[column] == pl.String):
        raise DataError(f"{table.path}: column {column!r} is {table.schema[column]}, must be numbers")
    cells = pl.col(column).cast(pl.Float64, strict=False)
    finite = cells.filter(cells.is_finite())
    low, high = table.collect(finite.min().alias("low"), finite.max().alias("high")).row(0)
    if low is None:
        return "s"  # no cell is a number, which reading them says
    path, units = table.path, [next((u for u, below in AUTO_BELOW.items() if t < below), None) for t in (low, high)]
    if low >= FIRST_DATE and high <= LAST_DATE:
        raise DataError(
            f"{path}: column {column!r}: {low:.0f} to {high:.0f} look like dates; write YYYY-MM-DD or give time_unit"
        )
    if units[1] is None or units[0] != units[1]:
        raise DataError(f"{path}: column {column!r}: {low:.17g} to {high:.17g} do not tell their unit; give time_unit")
    return units[1]
