"""A user's own events, from CSV, TSV or Parquet, as a data set."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import field_validator

from mfalcon.clock import is_plausible
from mfalcon.errors import DataError
from mfalcon.models.config import ContextFeature, Frozen, SideFeature, Task
from mfalcon.models.items import ItemTable
from mfalcon.train.dataset import Dataset, Reading
from mfalcon.train.frames import ItemIdKind, ItemIds, item_ids, numbers, read_frame, refuse, text, texts_of
from mfalcon.train.sequences import labels
from mfalcon.train.settings import equal_blend
from mfalcon.train.table_items import ItemColumns, config_name, names_of, read_items
from mfalcon.types import EVENT_DTYPE, MAX_TIME_MS, MAX_USER_ID_BYTES, Events, Floats, Ids

MAX_ACTIONS = 32
ONLY_ACTION = "event"

TimeUnit = Literal["auto", "s", "ms", "us", "iso8601"]
AUTO_BELOW: Mapping[TimeUnit, float] = {"s": 1e11, "ms": 1e14, "us": 1e17}
"""Times below this are taken for seconds, and so on: each unit ends in the year 5138."""
FIRST_DATE, LAST_DATE = 19_000_101, 21_001_231
"""Numbers that are more likely YYYYMMDD than seconds of 1970."""


class ColumnMapping(Frozen):
    """Which columns of the event file are what.

    features: numbers of the item as it was shown (a price, a position); text reads as "a+b". item_ids: see
    `mfalcon.train.frames.item_ids`. time_unit: "auto" reads date columns and ISO-8601 text as such (UTC where no zone
    is named), and tells s, ms and us apart by the size of the numbers.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    action: str | None = None
    value: str | None = None
    features: tuple[str, ...] = ()
    time_unit: TimeUnit = "auto"
    item_ids: ItemIdKind = "auto"

    @field_validator("features", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return names_of(value)


def read_table(
    events: Path,
    *,
    columns: ColumnMapping,
    items: Path | None = None,
    item_columns: ItemColumns | None = None,
    tasks: Sequence[Task] = (),
    blend: Mapping[str, float] | None = None,
    like_at_least: float | None = None,
    name: str | None = None,
    to_learn: bool = True,
) -> Dataset:
    """Events, one a row, and optionally items, one a row, as a data set.

    Item ids that are integers are kept as they are, and text is hashed; user ids are any text. Rows stay separate
    events even where user, item and time agree. Items without events are known to the model all the same. The request
    hour is a context feature if the hours of the events differ.

    Tasks, where none are given: of several actions, one for each but the most frequent, which is taken for the mere
    exposure (impression, view); else, with a value column, "like" (value at least `like_at_least`, else the median).
    With a value column also "value" (the value itself, weighted down by its variance). `like_at_least` asks for "like"
    whatever the actions are. Blend, where none is given: every binary task alike. Not `to_learn`: no tasks, and so
    nothing that these would need.

    Raises DataError naming file, column and the first bad line (of Parquet the row, the first being 1).
    """
    if like_at_least is not None and columns.value is None:
        raise DataError(f"{events}: like_at_least {like_at_least:g} needs a value column")
    wanted = (columns.user, columns.item, columns.time, columns.action, columns.value, *columns.features)
    frame = read_frame(events, [column for column in wanted if column], "--columns", only=True)
    user_ids, user = _users(events, frame[columns.user])
    actions, bits = _actions(events, frame[columns.action] if columns.action else None, len(frame))
    rows = np.empty(len(frame), dtype=EVENT_DTYPE)
    named = item_ids(events, frame[columns.item], columns.item_ids)
    rows["item_id"] = named.ids
    rows["actions"] = bits
    rows["value"] = _values(events, frame[columns.value]) if columns.value else 0
    rows["time_ms"], time_unit = _times(events, frame[columns.time], columns.time_unit)
    reading = Reading(time_unit, _num_late(user, rows["time_ms"]), columns.value is not None)
    order = np.lexsort((rows["item_id"], user, rows["time_ms"]))
    rows, user = rows[order], user[order]
    dense = _dense(events, frame.select(columns.features))
    if not tasks and to_learn:
        by_action = like_at_least is None and (len(actions) > 1 or columns.value is None)
        tasks = _action_tasks(events, actions, rows) if by_action else [_like_task(rows["value"], like_at_least)]
        tasks += [_value_task(rows["value"])] if columns.value else []
    with_events = ItemIds(np.unique(rows["item_id"]), named.texts)
    titles = ("",) * len(with_events.ids)
    table = ItemTable(with_events.ids, titles, side={}, texts=texts_of(events, with_events.ids, with_events))
    side_features: tuple[SideFeature, ...] = ()
    if items is not None:
        table, side_features = read_items(items, item_columns or ItemColumns(), with_events, columns.item_ids)
    hour_differs = len(np.unique(rows["time_ms"] // 3_600_000 % 24)) > 1
    dataset = Dataset(
        name=name or events.name.split(".")[0],
        user_ids=user_ids,
        user=user,
        events=rows,
        actions=actions,
        items=table,
        side_features=side_features,
        context_features=(ContextFeature(name="hour", num_values=24, derive="hour_utc"),) if hour_differs else (),
        user_context={},
        tasks=tuple(tasks),
        blend=dict(blend) if blend else equal_blend(tasks),
        dense={name: column[order] for name, column in dense.items()},
        reading=reading,
    )
    if dataset.tasks:
        _check_tasks(events, dataset, has_value=columns.value is not None)
    return dataset


def _users(path: Path, series: pl.Series) -> tuple[tuple[str, ...], Ids]:
    """User ids in order (by number if all are plain integers) and [num_events] index into them."""
    cells = text(path, series, "a user id (text or integer)")
    refuse(path, series, cells.str.len_bytes() > MAX_USER_ID_BYTES, f"at most {MAX_USER_ID_BYTES} bytes")
    ids = cells.unique().to_list()
    plain = all(re.fullmatch(r"0|-?[1-9][0-9]*", user_id, re.ASCII) for user_id in ids)
    ids.sort(key=int if plain else None)
    index = cells.replace_strict(ids, list(range(len(ids))), return_dtype=pl.Int64)
    return tuple(ids), index.to_numpy().copy()


def _actions(path: Path, series: pl.Series | None, num_events: int) -> tuple[tuple[str, ...], NDArray[np.uint32]]:
    """Action vocabulary, sorted, and [num_events] one bit of it each."""
    if series is None:
        return (ONLY_ACTION,), np.ones(num_events, dtype=np.uint32)
    cells = text(path, series, "the name of an action")
    names = sorted(cells.unique().to_list())
    if len(names) > MAX_ACTIONS:
        raise DataError(
            f"{path}: column {series.name!r} has {len(names)} different actions ({', '.join(names[:4])}, ...), "
            f"must have at most {MAX_ACTIONS}"
        )
    code = cells.replace_strict(names, list(range(len(names))), return_dtype=pl.UInt32).to_numpy()
    return tuple(names), np.left_shift(np.uint32(1), code)


def _values(path: Path, series: pl.Series) -> NDArray[np.float32]:
    """[n] finite float32."""
    cells = numbers(path, series)
    in_range = cells.abs() <= float(np.finfo(np.float32).max)
    refuse(path, series, ~in_range.fill_null(value=False), "a finite number (fill such cells or leave the rows out)")
    return cells.to_numpy().astype(np.float32)


def _dense(path: Path, frame: pl.DataFrame) -> dict[str, Floats]:
    """Each column [num_events] by the name that the model has for it, NaN where a cell is empty."""
    dense: dict[str, Floats] = {}
    for series in frame:
        name, cells = config_name(series.name), numbers(path, series)
        refuse(path, series, cells.is_null() & ~_is_empty(series), "a finite number, or empty")
        refuse(path, series, cells.abs() > float(np.finfo(np.float32).max), "a finite 32-bit float, or empty")
        if cells.is_null().all():
            raise DataError(f"{path}: column {series.name!r} is empty, must be numbers")
        if name in dense:
            raise DataError(f"{path}: column {series.name!r}: another feature is called {name!r} too")
        dense[name] = cells.fill_null(float("nan")).to_numpy().astype(np.float32)
    return dense


def _is_empty(series: pl.Series) -> pl.Series:
    return series.is_null() | (series == "") if series.dtype == pl.String else series.is_null()


def _num_late(user: Ids, times: Ids) -> int:
    """Rows that stand behind a later event of their user."""
    frame = pl.DataFrame({"user": user, "time": times})
    return int(frame.select((pl.col("time") < pl.col("time").cum_max().over("user")).sum()).item())


def _times(path: Path, series: pl.Series, unit: TimeUnit) -> tuple[Ids, str]:
    """[n] milliseconds since 1970, cut down to the millisecond; at least 1, as the server takes them. And what the
    column was read as.
    """
    read_as = "dates"
    limit = "a time from 1970 to 9999, at least 1 ms"
    if series.dtype in (pl.Datetime, pl.Date):
        moments = series.cast(pl.Datetime("us")) if series.dtype == pl.Date else series
        time_ms = moments.dt.epoch("ms")
    elif series.dtype == pl.String and (unit == "iso8601" or (unit == "auto" and not _starts_with_number(series))):
        limit += ", in ISO-8601 such as 2026-11-22T19:05:00Z"
        read_as = "ISO-8601"
        time_ms = pl.Series([_milliseconds(cell) for cell in series.to_list()], dtype=pl.Int64)
    elif unit == "iso8601":
        raise DataError(f"{path}: column {series.name!r} is {series.dtype}, must be ISO-8601 text as time_unit says")
    else:
        cells = numbers(path, series)
        refuse(path, series, cells.is_null(), limit)
        unit = _unit(path, series.name, cells.to_numpy()) if unit == "auto" else unit
        limit += f", in {unit}"
        read_as = unit
        ticks = {"s": (cells * 1000).round(), "ms": cells.floor(), "us": (cells / 1000).floor()}[unit]
        time_ms = ticks.cast(pl.Int64, strict=False)
    in_range = (time_ms >= 1) & (time_ms <= MAX_TIME_MS)
    refuse(path, series, ~in_range.fill_null(value=False), limit)
    out = time_ms.to_numpy().copy()
    rather = {"ms": "time_unit=s", "us": "time_unit=ms"}.get(read_as, "another unit")
    advice = f"a time of our days: read as {read_as} this is January 1970 ({rather}, perhaps)"
    refuse(path, series, pl.Series(~is_plausible(out, 0)), advice)
    return out, read_as


def _starts_with_number(series: pl.Series) -> bool:
    first = series.drop_nulls().head(1).cast(pl.Float64, strict=False)
    return len(first) > 0 and first[0] is not None


def _milliseconds(cell: str | None) -> int | None:
    """An ISO-8601 time in milliseconds since 1970, UTC where no zone is named; None if it is not one."""
    try:
        moment = datetime.fromisoformat(cell or "")
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def _unit(path: Path, column: str, times: NDArray[np.float64]) -> TimeUnit:
    """s, ms or us by the size of the numbers; refused where that does not tell."""
    low, high = float(times.min()), float(times.max())
    units = [next((unit for unit, below in AUTO_BELOW.items() if time < below), None) for time in (low, high)]
    if low >= FIRST_DATE and high <= LAST_DATE:
        raise DataError(
            f"{path}: column {column!r}: {low:.0f} to {high:.0f} look like dates; write YYYY-MM-DD or give time_unit"
        )
    if units[1] is None or units[0] != units[1]:
        raise DataError(f"{path}: column {column!r}: {low:.17g} to {high:.17g} do not tell their unit; give time_unit")
    return units[1]


def _like_task(values: NDArray[np.float32], like_at_least: float | None) -> Task:
    """The least value is never the threshold, even where it is the median: all would be 1."""
    distinct = np.unique(values)
    threshold = float(np.median(values))
    if threshold <= distinct[0] and len(distinct) > 1:
        threshold = float(distinct[1])
    return Task(name="like", kind="binary", value_at_least=threshold if like_at_least is None else like_at_least)


def _value_task(values: NDArray[np.float32]) -> Task:
    weight = 0.1 / max(float(np.var(values, dtype=np.float64)), 1e-6)
    center = round(float(np.mean(values, dtype=np.float64)), 3)
    return Task(name="value", kind="regression", loss_weight=weight, center=center)


def _action_tasks(path: Path, actions: Sequence[str], rows: Events) -> list[Task]:
    """One binary task for each action but the most frequent, the next most frequent first."""
    if len(actions) == 1:
        raise DataError(
            f"{path}: every event is {actions[0]!r}, so there is nothing to tell apart; name a value column (a rating, "
            "seconds watched), or an action column with at least two actions (impression and click, say)"
        )
    num_events = [int(np.count_nonzero(rows["actions"] == 1 << bit)) for bit in range(len(actions))]
    by_number = sorted(range(len(actions)), key=lambda bit: -num_events[bit])
    return [Task(name=config_name(actions[bit]), kind="binary", any_action=(actions[bit],)) for bit in by_number[1:]]


def _check_tasks(path: Path, dataset: Dataset, *, has_value: bool) -> None:
    """Raise DataError for a task that the columns cannot label, or whose label never changes."""
    names = [task.name for task in dataset.tasks]
    if len(set(names)) != len(names):
        raise DataError(f"{path}: several tasks have the same name: {', '.join(names)}")
    for task in dataset.tasks:
        unknown = sorted(set(task.any_action) - set(dataset.actions))
        if unknown:
            raise DataError(
                f"{path}: task {task.name}: no event has action {unknown}, the actions are {dataset.actions}"
            )
        if not task.any_action and not has_value:
            raise DataError(f"{path}: task {task.name} learns from the value, but no value column is named")
    for task, label in zip(dataset.tasks, labels(dataset, dataset.tasks).T, strict=True):
        if np.all(label == label[0]):
            advice = (
                "choose another threshold or action, or add the other kind of event (impressions without a click, say)"
            )
            raise DataError(
                f"{path}: task {task.name}: every event has label {label[0]:g}, so nothing can be learned; {advice}"
            )
