"""The item table: raw item id -> row, title and side features. Row 0 is reserved for unknown items."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mfalcon.types import Ids

UNKNOWN_ROW = 0


@dataclass(frozen=True, slots=True)
class ItemTable:
    """Items in ascending order of their raw id; the item at index i has row i + 1.

    item_id: [num_items] int64, strictly ascending.
    titles: [num_items] str ("" where there is none).
    side: feature name -> int64 [num_items] (category: 0 = missing, else 1 + index in the vocabulary) or
        uint8 [num_items, len(vocabulary)] (tags).
    """

    item_id: Ids
    titles: tuple[str, ...]
    side: Mapping[str, NDArray[np.int64] | NDArray[np.uint8]]

    def __post_init__(self) -> None:
        num_items = len(self.item_id)
        if np.any(np.diff(self.item_id) <= 0):
            raise ValueError("item_id: must be strictly ascending")
        if len(self.titles) != num_items:
            raise ValueError(f"titles: got {len(self.titles)}, there are {num_items} items")
        for name, column in self.side.items():
            if len(column) != num_items:
                raise ValueError(f"side feature {name}: got {len(column)} rows, there are {num_items} items")

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table, the reserved row included."""
        return len(self.item_id) + 1

    def rows(self, item_ids: Ids) -> Ids:
        """[n] raw ids -> [n] rows; unknown ids get row 0."""
        if len(self.item_id) == 0:
            return np.zeros(len(item_ids), dtype=np.int64)
        index = np.minimum(np.searchsorted(self.item_id, item_ids), len(self.item_id) - 1)
        return np.where(self.item_id[index] == item_ids, index + 1, UNKNOWN_ROW)

    def title(self, item_id: int) -> str:
        """The item's title, "" where there is none or the item is unknown."""
        row = int(self.rows(np.array([item_id], dtype=np.int64))[0])
        return self.titles[row - 1] if row else ""
