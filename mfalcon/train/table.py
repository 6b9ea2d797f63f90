"""A user's own events, from CSV, TSV or Parquet, as a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mfalcon.errors import DataError
from mfalcon.models.config import Task
from mfalcon.models.config_features import ContextFeature, SideFeature
from mfalcon.models.items import ItemTable
from mfalcon.train.dataset import Dataset
from mfalcon.train.frames import ItemIds, texts_of
from mfalcon.train.sequences import labels
from mfalcon.train.settings import equal_blend
from mfalcon.train.splits import TRAIN, VALIDATION
from mfalcon.train.table_events import SORT_ROWS, ColumnMapping, read_events
from mfalcon.train.table_items import ItemColumns, config_name, read_items
from mfalcon.types import Events, Ids


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
    scratch: Path | None = None,
) -> Dataset:
    """Events, one a row, and optionally items, one a row, as a data set.

    Item ids that are integers are kept as they are, and text is hashed; user ids are any text. Rows stay separate
    events even where user, item and time agree. Items without events are known to the model all the same. The request
    hour is a context feature if the hours of the events differ.

    Tasks, where none are given: of several actions, one for each but the most frequent, which is taken for the mere
    exposure (impression, view); else, with a value column, "like" (value at least `like_at_least`, else the median).
    With a value column also "value" (the value itself, weighted down by its variance). `like_at_least` asks for "like"
    whatever the actions are. Blend, where none is given: every binary task alike. Not `to_learn`: no tasks, and so
    nothing that these would need. scratch: a folder for what is of each event, in place of memory.

    Raises DataError naming file, column and the first bad line (of Parquet the row, the first being 1).
    """
    if like_at_least is not None and columns.value is None:
        raise DataError(f"{events}: like_at_least {like_at_least:g} needs a value column")
    read = read_events(events, columns, scratch)
    rows, actions = read.events, read.actions
    if not tasks and to_learn:
        by_action = like_at_least is None and (len(actions) > 1 or columns.value is None)
        tasks = _action_tasks(events, actions, rows) if by_action else [_like_task(rows["value"], like_at_least)]
        tasks += [_value_task(rows["value"])] if columns.value else []
    with_events = ItemIds(_distinct(rows["item_id"]), read.texts)
    titles = ("",) * len(with_events.ids)
    table = ItemTable(with_events.ids, titles, side={}, texts=texts_of(events, with_events.ids, with_events))
    side_features: tuple[SideFeature, ...] = ()
    if items is not None:
        table, side_features = read_items(items, item_columns or ItemColumns(), with_events, columns.item_ids)
    hour_differs = len(_distinct(rows["time_ms"], 3_600_000, 24)) > 1
    dataset = Dataset(
        name=name or events.name.split(".")[0],
        user_ids=read.user_ids,
        user=read.user,
        events=rows,
        actions=actions,
        items=table,
        side_features=side_features,
        context_features=(ContextFeature(name="hour", num_values=24, derive="hour_utc"),) if hour_differs else (),
        user_context={},
        tasks=tuple(tasks),
        blend=dict(blend) if blend else equal_blend(tasks),
        dense=read.dense,
        reading=read.reading,
        parts=read.parts,
        scratch=scratch,
    )
    if to_learn and read.parts is not None:
        _check_parts(events, columns.split, read.parts)
    if dataset.tasks:
        _check_tasks(events, dataset, has_value=columns.value is not None)
    return dataset


def _distinct(column: Ids, unit: int = 1, modulus: int = 2**63 - 1) -> Ids:
    """The different values of column // unit % modulus, ascending; of all of column without these."""
    found = np.empty(0, dtype=np.int64)
    for start in range(0, len(column), SORT_ROWS):
        piece = column[start : start + SORT_ROWS]
        found = np.union1d(found, piece if unit == 1 else piece // unit % modulus)
    return found


def _check_parts(path: Path, column: str | None, parts: NDArray[np.int8]) -> None:
    for name, part in (("train", TRAIN), ("validation", VALIDATION)):
        if not np.any(parts == part):
            raise DataError(
                f"{path}: column {column!r} has no {name!r}: the first learns, and by validation the best epoch is kept"
            )


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
