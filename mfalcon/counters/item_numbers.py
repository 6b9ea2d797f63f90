"""Three whole numbers for each item id, in memory: a hash table of arrays, read for thousands of ids at once."""

import secrets

import numpy as np
from numpy.typing import NDArray

from mfalcon.types import Ids

_SMALLEST = 1 << 10
ITEM_BYTES = 33
"""Of a place of the table, which is at most half full, so that an item takes two to four of them."""


class ItemNumbers:
    """Linear probing by a multiplicative hash that is drawn anew for each table: nobody can choose ids that collide.

    max_items: others that come when so many are there are left out. expected: items to make room for at once.
    """

    def __init__(self, max_items: int, expected: int = 0) -> None:
        self.max_items = max_items
        self._factor = np.uint64(secrets.randbits(64) | 1)
        self._allocate(_size_for(expected))

    def __len__(self) -> int:
        return self._num

    @property
    def num_bytes(self) -> int:
        """Of the arrays."""
        return len(self._used) * ITEM_BYTES

    def read(self, ids: Ids) -> Ids:
        """Copies: int64 [n, 3], zeros for an item that is not there."""
        at = self._find(ids)
        out: Ids = self._numbers[at]
        out[at < 0] = 0
        return out

    def add(self, ids: Ids, numbers: Ids) -> NDArray[np.bool_]:
        """Add int64 [n, 3] to different ids [n]. Returns which were taken, bool [n]: those for which there is room."""
        at = self._place(ids)
        taken: NDArray[np.bool_] = at >= 0
        self._numbers[at[taken]] += numbers[taken]
        return taken

    def put(self, ids: Ids, numbers: Ids) -> None:
        """Set the numbers of different ids, as far as there is room."""
        at = self._place(ids)
        self._numbers[at[at >= 0]] = numbers[at >= 0]

    def content(self) -> tuple[Ids, Ids]:
        """Ids, ascending, and numbers of those that are not all zero."""
        chosen = np.flatnonzero(self._used & self._numbers.any(1))
        chosen = chosen[np.argsort(self._ids[chosen])]
        return self._ids[chosen], self._numbers[chosen]

    def _allocate(self, size: int) -> None:
        self._num, self._shift = 0, np.uint64(65 - size.bit_length())
        self._ids, self._used = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.bool_)
        self._numbers = np.zeros((size, 3), dtype=np.int64)

    def _home(self, ids: Ids) -> Ids:
        return ((ids.astype(np.uint64) * self._factor) >> self._shift).astype(np.int64)

    def _find(self, ids: Ids) -> Ids:
        """Places of ids, -1 where there is none."""
        out, at, left = np.full(len(ids), -1), self._home(ids), np.arange(len(ids))
        while len(left):
            here = at[left]
            is_used = self._used[here]
            is_found = is_used & (self._ids[here] == ids[left])
            out[left[is_found]] = here[is_found]
            left = left[is_used & ~is_found]
            at[left] = (at[left] + 1) & (len(self._used) - 1)
        return out

    def _place(self, ids: Ids) -> Ids:
        """Places of different ids, made where there are none; -1 where there is no room."""
        out = self._find(ids)
        new = np.flatnonzero(out < 0)
        if not len(new):
            return out
        if 2 * (self._num + len(new)) > len(self._used):
            self._grow(len(new))
            out = self._find(ids)
            new = np.flatnonzero(out < 0)
        new = new[: max(0, self.max_items - self._num)]
        self._num += len(new)
        at = self._home(ids)
        while len(new):
            here = at[new]
            free = np.flatnonzero(~self._used[here])
            _, first = np.unique(here[free], return_index=True)
            taken = free[first]
            self._used[here[taken]], self._ids[here[taken]] = True, ids[new[taken]]
            out[new[taken]] = here[taken]
            is_left = np.ones(len(new), dtype=np.bool_)
            is_left[taken] = False
            new = new[is_left]
            at[new] = (at[new] + 1) & (len(self._used) - 1)
        return out

    def _grow(self, num_new: int) -> None:
        """A larger table, without the items whose numbers are all zero again."""
        ids, numbers = self.content()
        self._allocate(_size_for(len(ids) + num_new))
        self.put(ids, numbers)


def _size_for(num_items: int) -> int:
    """Places of a table, a power of two."""
    return max(_SMALLEST, 1 << (2 * num_items).bit_length())
