"""The events of a file in the order of their times, read some rows at a time; memory, or --scratch, holds numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import field_validator

from mfalcon.errors import DataError
from mfalcon.models.config_kinds import Frozen
from mfalcon.train.dataset import Reading
from mfalcon.train.frames import ItemIdKind, Table
from mfalcon.train.scratch import empty
from mfalcon.train.table_columns import Actions, Items, Times, TimeUnit, Users, dense, parts, values
from mfalcon.train.table_items import config_name, names_of
from mfalcon.types import EVENT_DTYPE, Events, Floats, Ids

ONLY_ACTION = "event"
SORT_ROWS = 1 << 22
"""Events that are put in order at a time, more only where so many have one time."""


class ColumnMapping(Frozen):
    """Which columns of the event file are what.

    features: numbers of the item as it was shown (a price, a position); text reads as "a+b". split: what an event is
    for: train, validation, test or unused. item_ids: see `mfalcon.train.frames.are_text`. time_unit: "auto" reads date
    columns and ISO-8601 text as such (UTC where no zone is named), and tells s, ms and us apart by the size of the
    numbers.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    action: str | None = None
    value: str | None = None
    features: tuple[str, ...] = ()
    split: str | None = None
    time_unit: TimeUnit = "auto"
    item_ids: ItemIdKind = "auto"

    @field_validator("features", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return names_of(value)


@dataclass(frozen=True, slots=True)
class ReadEvents:
    """Events by time, then user, then item. user, parts, dense: of each event. texts: of the items, where ids are text.
    parts: None without a column of them. Else see `mfalcon.train.dataset.Dataset`.
    """

    user_ids: tuple[str, ...]
    user: Ids
    events: Events
    actions: tuple[str, ...]
    texts: Mapping[int, str] | None
    dense: Mapping[str, Floats]
    parts: NDArray[np.int8] | None
    reading: Reading


def read_events(path: Path, columns: ColumnMapping, scratch: Path | None) -> ReadEvents:
    """Raises DataError naming file, column and the first bad line (of Parquet the row, the first being 1).

    scratch: the folder of files that hold what is of each event, in place of memory.
    """
    wanted = (columns.user, columns.item, columns.time, columns.action, columns.value, columns.split, *columns.features)
    needed = [column for column in wanted if column]
    table = Table(path, needed, "--columns")
    num_events = int(table.collect(pl.len()).item())
    if num_events == 0:
        raise DataError(f"{path}: has no rows")
    named = _feature_names(path, columns)
    users, actions, items = Users(), Actions(), Items(table, columns.item, columns.item_ids)
    times = Times(table, columns.time, columns.time_unit)
    found = _Arrays.of(num_events, [*named.values()], columns.split is not None, scratch)
    filled = 0
    for rows in table.batches(needed):
        frame, end = rows.frame, filled + len(rows.frame)
        if end > num_events:
            break
        at, part = slice(filled, end), found.events[filled:end]
        found.user[at] = users.read(rows, frame[columns.user])
        part["item_id"] = items.read(rows, frame[columns.item])
        part["actions"] = actions.read(rows, frame[columns.action]) if columns.action else 0
        part["value"] = values(rows, frame[columns.value]) if columns.value else 0
        part["time_ms"] = times.read(rows, frame[columns.time])
        for column, name in named.items():
            found.dense[name][at] = dense(rows, frame[column])
        if found.parts is not None and columns.split:
            found.parts[at] = parts(rows, frame[columns.split])
        users.count_late(found.user[at], part["time_ms"])
        filled = end
    if filled != num_events:
        raise DataError(f"{path}: was changed while it was read; try again")
    for column, name in named.items():
        if np.isnan(found.dense[name]).all():
            raise DataError(f"{path}: column {column!r} is empty, must be numbers")
    user_ids, place = users.ordered()
    action_names, bits = actions.ordered() if columns.action else ((ONLY_ACTION,), np.ones(1, dtype=np.uint32))
    for start in range(0, num_events, SORT_ROWS):
        at = slice(start, start + SORT_ROWS)
        found.user[at] = place[found.user[at]]
        found.events["actions"][at] = bits[found.events["actions"][at]]
    by_time = found.in_order(scratch)
    reading = Reading(times.read_as, users.num_late, columns.value is not None)
    return ReadEvents(
        user_ids, by_time.user, by_time.events, action_names, items.texts, by_time.dense, by_time.parts, reading
    )


def _feature_names(path: Path, columns: ColumnMapping) -> dict[str, str]:
    """By the column, the name that the model has for it."""
    named: dict[str, str] = {}
    for column in columns.features:
        name = config_name(column)
        if name in named.values():
            raise DataError(f"{path}: column {column!r}: another feature is called {name!r} too")
        named[column] = name
    return named


@dataclass(frozen=True, slots=True)
class _Arrays:
    """What is of each event, [num_events]."""

    user: Ids
    events: Events
    dense: Mapping[str, Floats]
    parts: NDArray[np.int8] | None

    @classmethod
    def of(cls, num_events: int, dense: list[str], has_parts: bool, scratch: Path | None) -> "_Arrays":
        """Of no certain values."""
        return cls(
            empty(num_events, np.int64, scratch),
            empty(num_events, EVENT_DTYPE, scratch),
            {name: empty(num_events, np.float32, scratch) for name in dense},
            empty(num_events, np.int8, scratch) if has_parts else None,
        )

    def in_order(self, scratch: Path | None) -> "_Arrays":
        """By time, then user, then item; what agrees in these stays in its order."""
        num_events, times = len(self.events), self.events["time_ms"]
        out = _Arrays.of(num_events, [*self.dense], self.parts is not None, scratch)
        num_pieces = -(-num_events // SORT_ROWS)
        sample = np.sort(times[:: max(1, num_events // (1_000 * num_pieces))])
        edges = np.unique(sample[[len(sample) * piece // num_pieces for piece in range(1, num_pieces)]])
        first = 0
        for piece in range(len(edges) + 1):
            chosen = _between(times, edges[piece - 1] if piece else None, edges[piece] if piece < len(edges) else None)
            keys = self.events[chosen]
            order = chosen[np.lexsort((keys["item_id"], self.user[chosen], keys["time_ms"]))]
            at = slice(first, first + len(order))
            out.user[at], out.events[at] = self.user[order], self.events[order]
            for name, column in self.dense.items():
                out.dense[name][at] = column[order]
            if out.parts is not None and self.parts is not None:
                out.parts[at] = self.parts[order]
            first += len(order)
        return out


def _between(times: Ids, low: int | None, high: int | None) -> Ids:
    """Where times are at least `low` and below `high`, ascending."""
    found = []
    for start in range(0, len(times), SORT_ROWS):
        piece = times[start : start + SORT_ROWS]
        chosen = np.ones(len(piece), dtype=np.bool_)
        if low is not None:
            chosen &= piece >= low
        if high is not None:
            chosen &= piece < high
        found.append(np.flatnonzero(chosen) + start)
    return np.concatenate(found)
