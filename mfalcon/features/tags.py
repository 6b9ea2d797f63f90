"""The tags of items, as far as a history and a candidate may share them."""

from collections.abc import Sequence

import numpy as np

from mfalcon.models.items import KnownItems
from mfalcon.types import Ids


class ItemTags:
    """Tags of every item row, row by row; the reserved row has none. A category of an item is a tag too."""

    def __init__(self, items: KnownItems, names: Sequence[str]) -> None:
        """names: of side features, all of whose values are different tags."""
        owners, tags, first = list[Ids](), list[Ids](), 0
        for name in names:
            column = items.side[name]
            if column.ndim == 2:
                owner, tag = np.nonzero(column)
                size = column.shape[1]
            else:
                owner = np.flatnonzero(column)
                tag, size = column[owner].astype(np.int64) - 1, int(column.max(initial=0))
            owners.append(owner)
            tags.append(tag + first)
            first += size
        owner = np.concatenate([*owners, np.empty(0, dtype=np.int64)])
        tag = np.concatenate([*tags, np.empty(0, dtype=np.int64)])
        self.num_tags = first
        self._tags = tag[np.argsort(owner, kind="stable")]
        num = np.bincount(owner + 1, minlength=items.num_rows)
        self._num = num
        self._first = np.cumsum(num) - num

    def of(self, rows: Ids) -> tuple[Ids, Ids]:
        """The tags of item rows [n], one row after the other, and how many each has: int64 [sum], [n]."""
        num = self._num[rows]
        before = np.cumsum(num) - num
        return self._tags[np.repeat(self._first[rows] - before, num) + np.arange(num.sum())], num

    def shared(self, rows: Ids, values: Ids, candidates: Ids) -> tuple[Ids, Ids]:
        """Of events on item rows [num_events] with whole values: for each candidate [n] how many share a tag of it, and
        the sum of their values. An event counts once for each tag.
        """
        tags, num = self.of(rows)
        events = np.bincount(tags, minlength=self.num_tags)
        value = np.bincount(tags, np.repeat(values, num), minlength=self.num_tags).astype(np.int64)  # exact below 2**53
        tags, num = self.of(candidates)
        return sum_runs(events[tags], num), sum_runs(value[tags], num)


def sum_runs(values: Ids, lengths: Ids) -> Ids:
    """Sums of the runs of these lengths [n] that follow each other in values [sum of lengths]: int64 [n]."""
    total = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(values)])
    ends = np.cumsum(lengths)
    out: Ids = total[ends] - total[ends - lengths]
    return out
