"""The item table: raw item id -> row, title and side features. Row 0 is reserved for unknown items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mfalcon.models.config_features import SideFeature
from mfalcon.models.texts import Texts
from mfalcon.types import Ids

UNKNOWN_ROW = 0


class KnownItems(Protocol):
    """What of an item table is asked for while a model serves."""

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table, the reserved row included."""
        ...

    @property
    def side(self) -> Mapping[str, NDArray[np.int64] | NDArray[np.uint8]]:
        """See `ItemTable`."""
        ...

    @property
    def is_open(self) -> bool:
        """See `ItemTable`."""
        ...

    def rows(self, item_ids: Ids) -> Ids:
        """[n] raw ids -> [n] rows; unknown ids get row 0."""
        ...

    def keys(self, item_ids: Ids) -> Ids:
        """See `ItemTable.keys`."""
        ...

    def unknown(self, keys: Ids) -> NDArray[np.bool_]:
        """See `ItemTable.unknown`."""
        ...


@dataclass(frozen=True, slots=True)
class ItemTable:
    """Items in ascending order of their raw id; the item at index i has row i + 1.

    item_id: [num_items] int64, strictly ascending.
    titles: [num_items] str ("" where there is none).
    side: feature name -> int64 [num_items] (category: 0 = missing, else 1 + index in the vocabulary) or
        uint8 [num_items, len(vocabulary)] (tags).
    is_open: whether the model knows every item by its id alone. The table may then lack items, or have none.
    num_events: [num_items] int64, how often each was acted on in what the model was trained on; None where that was not
        counted, as in checkpoints of before there was this column.
    texts: of each item, the text that `mfalcon.item_ids.item_id` makes its raw id of; None where ids are integers.
    """

    item_id: Ids
    titles: tuple[str, ...]
    side: Mapping[str, NDArray[np.int64] | NDArray[np.uint8]]
    num_events: Ids | None = None
    is_open: bool = False
    texts: Texts | None = None

    def __post_init__(self) -> None:
        num_items = len(self.item_id)
        if self.item_id.dtype != np.int64 or self.item_id.ndim != 1:
            raise ValueError(
                f"item_id: got {self.item_id.dtype} of {self.item_id.ndim} dimensions, must be int64 of one"
            )
        if np.any(self.item_id[1:] <= self.item_id[:-1]):
            raise ValueError("item_id: must be strictly ascending")
        if len(self.titles) != num_items:
            raise ValueError(f"titles: got {len(self.titles)}, there are {num_items} items")
        for name, column in self.side.items():
            if len(column) != num_items:
                raise ValueError(f"side feature {name}: got {len(column)} rows, there are {num_items} items")
        if (counts := self.num_events) is not None:
            if counts.dtype != np.int64 or counts.shape != (num_items,):
                raise ValueError(f"num_events: got {counts.dtype} {counts.shape}, must be int64 ({num_items},)")
            if num_items and counts.min() < 0:
                raise ValueError(f"num_events: got {counts.min()}, must be at least 0")
        if self.texts is not None and len(self.texts) != num_items:
            raise ValueError(f"texts: got {len(self.texts)}, there are {num_items} items")

    def check(self, features: Sequence[SideFeature]) -> None:
        """Raise ValueError unless the side columns are just what these features call for."""
        if self.side.keys() != {feature.name for feature in features}:
            raise ValueError(f"side features: got {sorted(self.side)}, must be {sorted(f.name for f in features)}")
        for feature in features:
            column, size = self.side[feature.name], len(feature.vocabulary)
            shape = (len(self.item_id),) if feature.kind == "category" else (len(self.item_id), size)
            top = size if feature.kind == "category" else 1
            if column.shape != shape or column.dtype.kind not in "iu":
                raise ValueError(
                    f"side feature {feature.name}: got {column.dtype} {column.shape}, must be integers {shape}"
                )
            if column.size and (column.min() < 0 or column.max() > top):
                raise ValueError(f"side feature {feature.name}: values must be from 0 to {top}")

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

    def keys(self, item_ids: Ids) -> Ids:
        """[n] raw ids -> [n] what the model reads of each item: its row, or in an open vocabulary its id."""
        return item_ids if self.is_open else self.rows(item_ids)

    def unknown(self, keys: Ids) -> NDArray[np.bool_]:
        """Which keys are those of items that the model does not know: bool [n]."""
        return np.zeros(len(keys), dtype=np.bool_) if self.is_open else keys == UNKNOWN_ROW

    def title(self, item_id: int) -> str:
        """The item's title, "" where there is none or the item is unknown."""
        row = int(self.rows(np.array([item_id], dtype=np.int64))[0])
        return self.titles[row - 1] if row else ""

    def texts_of(self, item_ids: Ids) -> tuple[str, ...]:
        """[n] raw ids -> the texts that they stand for, "" of those that the table does not know; none at all where
        ids are integers.
        """
        texts = self.texts
        if texts is None:
            return ()
        return tuple(texts.at(row - 1) if row else "" for row in self.rows(item_ids).tolist())
