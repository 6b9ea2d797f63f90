"""The items nearest to interests: one matrix product, exact, over as many items as that is quick for; FAISS beyond.

Belongs to one thread beside the device, on one core.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mfalcon.engine.nearest_faiss import FaissSearch, is_here
from mfalcon.errors import InvalidInput
from mfalcon.interests import Nearest
from mfalcon.models.items import ItemTable
from mfalcon.models.lum import LUM
from mfalcon.types import Floats, Ids

MOST_EXACT = 1_000_000
"""Items that are compared one by one: of width 64 that takes some 20 ms a condition on one core."""
_ROWS_AT_ONCE = 65_536
_SCORES_AT_ONCE = 1 << 24


class Search(Protocol):
    """Finds the best of all items of a category."""

    def best(self, queries: Tensor, categories: Sequence[int], num: int) -> list[tuple[Tensor, Tensor]]:
        """Of each query [n, dim]: rows [at most num] of items of its category and their logits, the largest first."""
        ...


class NearestItems:
    """Of one checkpoint: keys of all its items, in host memory."""

    def __init__(self, model: LUM, items: ItemTable) -> None:
        """On a thread that may ask the device of the model."""
        self._items, self.num_items = items, len(items.item_id)
        self._search: Search | None = None
        if self.num_items <= MOST_EXACT:
            self._search = ExactSearch(*keys_of(model), members_of(model))
        elif is_here():
            self._search = FaissSearch(*keys_of(model), members_of(model))

    def check(self) -> None:
        """Raise InvalidInput where items cannot be found here."""
        if self._search is None:
            limit = f"0: the model has {self.num_items} items, of which {MOST_EXACT} are compared without FAISS"
            raise InvalidInput("top_items", self.num_items, f"{limit} (pip install 'mfalcon[faiss]')")

    def nearest(self, vectors: Floats, categories: Sequence[int], num: int) -> tuple[Nearest, ...]:
        """Interests [n, dim] and the category of each -> so many items of each at most."""
        self.check()
        assert self._search is not None
        with torch.inference_mode():
            found = self._search.best(torch.from_numpy(vectors), categories, num)
        return tuple(self._told(rows, scores) for rows, scores in found)

    def _told(self, rows: Tensor, scores: Tensor) -> Nearest:
        item_ids: Ids = self._items.item_id[rows.numpy() - 1]
        return Nearest(item_ids, scores.numpy(), self._items.texts_of(item_ids))


class ExactSearch:
    """Every item is compared. Row 0, the unknown item, is never found."""

    def __init__(self, keys: Tensor, popularity: Tensor, members: Tensor) -> None:
        """keys: [num_items, dim], what a query is multiplied with. popularity: [num_items], what is added.
        members: bool [num_categories, num_items].
        """
        self._keys, self._popularity, self._is_not = keys.t().contiguous(), popularity, ~members
        self._is_not[:, 0] = True
        self._num_of = (~self._is_not).sum(-1).tolist()

    def best(self, queries: Tensor, categories: Sequence[int], num: int) -> list[tuple[Tensor, Tensor]]:
        """See `Search`."""
        at_once = max(1, _SCORES_AT_ONCE // len(self._popularity))
        out = []
        for first in range(0, len(queries), at_once):
            some = torch.tensor(categories[first : first + at_once])
            logits = queries[first : first + at_once] @ self._keys + self._popularity
            top = logits.masked_fill_(self._is_not[some], -torch.inf).topk(min(num, logits.shape[1]))
            for scores, rows, category in zip(top.values, top.indices, some.tolist(), strict=True):
                found = min(num, self._num_of[category])
                out.append((rows[:found], scores[:found]))
        return out


def keys_of(model: LUM) -> tuple[Tensor, Tensor]:
    """Of every row, in float32 in host memory: keys [num_items, dim], scaled as logits are, and popularity
    [num_items].
    """
    with torch.inference_mode():
        rows = torch.arange(model.config.num_items, device=model.device).split(_ROWS_AT_ONCE)
        keys = torch.cat([(model.interest.scale() * model.keys(part)).float().cpu() for part in rows])
        return keys, model.interest.popularity.float().cpu()


def members_of(model: LUM) -> Tensor:
    """bool [num_categories, num_items]: which items are of which category."""
    return model.members().t().contiguous().cpu()


def as_floats(columns: Floats) -> Floats:
    """Interests [dim, n] as an engine gives them -> [n, dim]."""
    return np.ascontiguousarray(columns.T, dtype=np.float32)
