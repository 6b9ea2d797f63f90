"""One version of an item table: what requests that begin under it are answered by, to their end."""

from dataclasses import dataclass, field

import numpy as np

from mfalcon.backends.select import Served
from mfalcon.features.provider import FeatureProvider
from mfalcon.history.history import History
from mfalcon.kvcache.item_rows import NO_TAGS, packed
from mfalcon.models.items import KnownItems
from mfalcon.types import Ids

_MOST_REMEMBERED = 4_096


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ItemVersion:
    """number: of the last delta in it, 0 of the checkpoint's own rows. name: says which deltas are in it, "" for none.
    digest: the same as a hash.

    served: the model with these rows. items: which row an item has. provider: of the numbers behind the layers.
    row_tags: int64 [num_rows], what rows are (`kvcache/item_rows.py`); None where no state is asked what it was made
    of.
    """

    number: int
    name: str
    digest: bytes
    served: Served
    items: KnownItems
    provider: FeatureProvider
    row_tags: Ids | None = None
    _remembered: dict[tuple[bytes, int], bytes] = field(default_factory=dict)

    def tags(self, history: History, start: int) -> bytes:
        """Of the items of history[start:]. Any thread may ask; a request asks a few times for the same ones."""
        if self.row_tags is None or start >= len(history):
            return NO_TAGS
        place = history.version, start
        found = self._remembered.get(place)
        if found is None:
            ids = np.ascontiguousarray(history.since(start)["item_id"])
            found = packed(self.row_tags[self.items.rows(ids)])
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[place] = found
        return found
