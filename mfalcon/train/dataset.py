"""A data set in mfalcon's words: events of many users, their items and their context features. numpy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mfalcon.errors import DataError
from mfalcon.models.config import Task
from mfalcon.models.config_features import ContextFeature, SideFeature
from mfalcon.models.items import ItemTable
from mfalcon.models.texts import Texts
from mfalcon.types import Events, Floats, Ids


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file of events was that its data set no longer tells.

    time_unit: what its times were read as. num_late: rows that stood behind a later event of their user. has_value:
    whether a column was named for values.
    """

    time_unit: str
    num_late: int
    has_value: bool


@dataclass(frozen=True, slots=True)
class Dataset:
    """Events of many users in global time order (ties: user, then item; stable).

    user_ids: raw user ids; `user` indexes them.
    user: [num_events] int64 index into `user_ids`.
    events: [num_events] of EVENT_DTYPE.
    actions: action vocabulary, bit i of an event's `actions`.
    side_features: what `items.side` holds.
    context_features: what `user_context` holds, and derived ones (which have no column there).
    user_context: feature name -> [num_users] int64 code, -1 where unknown.
    dense: feature name -> [num_events] float32 number that the event's item had when it was shown, NaN where unknown.
    tasks, blend: the default heads for this data.
    reading: of a file; None of what was made or came in another form.
    parts: [num_events] what each event is for (`mfalcon.train.splits`), where the file says it.
    scratch: a folder for further arrays with a value for every event; None for memory.
    """

    name: str
    user_ids: tuple[str, ...]
    user: Ids
    events: Events
    actions: tuple[str, ...]
    items: ItemTable
    side_features: tuple[SideFeature, ...]
    context_features: tuple[ContextFeature, ...]
    user_context: Mapping[str, Ids]
    tasks: tuple[Task, ...]
    blend: Mapping[str, float]
    dense: Mapping[str, Floats] = field(default_factory=dict)
    reading: Reading | None = None
    parts: NDArray[np.int8] | None = None
    scratch: Path | None = None

    def with_actions(self, actions: Sequence[str]) -> "Dataset":
        """The same events, whose bits are those of a model's actions. Raises DataError for one that the model lacks."""
        if unknown := sorted(set(self.actions) - set(actions)):
            raise DataError(
                f"{self.name}: actions {unknown} are not among the model's {list(actions)} (--columns action=... names "
                "the column that has them)"
            )
        events = self.events.copy()
        events["actions"] = 0
        for bit, action in enumerate(self.actions):
            given = self.events["actions"] >> np.uint32(bit) & 1
            events["actions"] |= given << np.uint32(actions.index(action))
        return replace(self, events=events, actions=tuple(actions))

    def unlisted(self) -> "Dataset":
        """The same events, of whose items nothing is known but their ids: no titles, no side features."""
        texts = None if self.items.texts is None else Texts.of(())
        return replace(self, items=ItemTable(np.empty(0, dtype=np.int64), (), {}, texts=texts), side_features=())

    def of_user(self, index: int) -> Ids:
        """Positions in `events` of one user's events, in order."""
        return np.flatnonzero(self.user == index)


def counted_items(dataset: Dataset, part: NDArray[np.bool_]) -> ItemTable:
    """The items, with how often each was acted on in a part of the events, bool [num_events]; without, if there are
    none.
    """
    if not len(dataset.items.item_id):
        return dataset.items
    rows = dataset.items.rows(np.ascontiguousarray(dataset.events["item_id"][part]))
    return replace(dataset.items, num_events=np.bincount(rows, minlength=dataset.items.num_rows)[1:])
