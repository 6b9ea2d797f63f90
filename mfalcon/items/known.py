"""Which row an item has, where items have come that the checkpoint does not know."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.types import Ids


def _none() -> Ids:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class GrownItems:
    """The checkpoint's items and those that came later; satisfies `mfalcon.models.items.KnownItems`.

    added: int64 [num_added], ascending; added_rows: [num_added], the rows that these have. side: of all rows but the
    unknown item's, as in an `ItemTable`.
    """

    base: ItemTable
    side: Mapping[str, NDArray[np.int64] | NDArray[np.uint8]]
    added: Ids = field(default_factory=_none)
    added_rows: Ids = field(default_factory=_none)

    @property
    def num_rows(self) -> int:
        """Rows in use, the reserved row included."""
        return self.base.num_rows + len(self.added)

    def rows(self, item_ids: Ids) -> Ids:
        """[n] raw ids -> [n] rows; unknown ids get row 0."""
        rows = self.base.rows(item_ids)
        if len(self.added):
            missing = np.flatnonzero(rows == UNKNOWN_ROW)
            ids = item_ids[missing]
            index = np.minimum(np.searchsorted(self.added, ids), len(self.added) - 1)
            rows[missing] = np.where(self.added[index] == ids, self.added_rows[index], UNKNOWN_ROW)
        return rows

    @property
    def is_open(self) -> bool:
        """Deltas are of models that have a row for each item."""
        return False

    def keys(self, item_ids: Ids) -> Ids:
        """See `ItemTable.keys`."""
        return self.rows(item_ids)

    def unknown(self, keys: Ids) -> NDArray[np.bool_]:
        """See `ItemTable.unknown`."""
        return self.base.unknown(keys)

    def with_ids(self, item_ids: Ids) -> "GrownItems":
        """With these as well, in the next rows; none of them is known yet."""
        rows = np.concatenate([self.added_rows, self.num_rows + np.arange(len(item_ids))])
        ids = np.concatenate([self.added, item_ids])
        order = np.argsort(ids, kind="stable")
        return GrownItems(self.base, self.side, ids[order], rows[order])

    @property
    def table(self) -> ItemTable:
        """All items, without side features. New ones have no title, and nobody has acted on them in training."""
        base = self.base
        item_id = np.sort(np.concatenate([base.item_id, self.added]))
        return titled(base, item_id, {})


def titled(base: ItemTable, item_id: Ids, side: Mapping[str, NDArray[np.int64] | NDArray[np.uint8]]) -> ItemTable:
    """A table of these items, ascending, with the titles and counts that a checkpoint has of them."""
    rows = base.rows(item_id)
    titles = tuple(base.titles[row - 1] if row else "" for row in rows.tolist())
    counts = None if base.num_events is None else np.append(base.num_events, 0)[rows - 1]  # row 0 finds the last one
    return ItemTable(item_id, titles, side, counts)
