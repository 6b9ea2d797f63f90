"""From ids to vectors: items with their side features, actions, and request context."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mfalcon.models.config_features import ContextFeature, EmbeddingConfig, SideFeature
from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.models.shared_embedding import Lookup, SharedEmbedding
from mfalcon.types import Floats, Ids

_INIT_STD = 0.05
_ROWS_AT_ONCE = 65_536
_MOST_SETTLED_BYTES = 64 << 20
_LARGEST_VALUE = {torch.float16: 2.0**12}
_LARGEST_VALUE_ELSE = 2.0**30
"""Largest magnitude of a scaled value in a compute dtype. Times a weight, squared and added up over a vector by a norm,
it is still finite. The scale is the standard deviation of the training data: no value of fewer than 2**24 events is so
far off, so that none of those changes.
"""


class ItemEmbedding(nn.Module):
    """Key of an item -> vector: its id plus its side features. A key is a row of the item table, of which row 0, the
    unknown item, has no side features; in an open vocabulary it is the id, and items beyond the table have none.
    """

    def __init__(
        self, num_rows: int, dim: int, side_features: Sequence[SideFeature], shared: EmbeddingConfig | None = None
    ) -> None:
        super().__init__()
        self._features = tuple(side_features)
        self.id: nn.Embedding | SharedEmbedding
        if shared is None:
            self.id = nn.Embedding(num_rows, dim)
            nn.init.normal_(self.id.weight, std=_INIT_STD)
        else:
            self.id = SharedEmbedding(shared, dim, _INIT_STD)
            self.register_buffer("item_id", torch.zeros(num_rows - 1, dtype=torch.int64), persistent=False)
        self._offsets = {name: offset_of(name) for name in (shared.features if shared is not None else ())}
        self.side = nn.ModuleDict()
        for feature in self._features:
            size = len(feature.vocabulary)
            if feature.kind == "category":
                if feature.name not in self._offsets:
                    table = nn.Embedding(size + 1, dim)
                    nn.init.normal_(table.weight, std=_INIT_STD)
                    self.side[_key(feature)] = table
                self.register_buffer(f"rows_{feature.name}", torch.zeros(num_rows, dtype=torch.int64), persistent=False)
            else:
                self.side[_key(feature)] = nn.Linear(size, dim, bias=False)
                self.register_buffer(f"rows_{feature.name}", torch.zeros(num_rows, size), persistent=False)
        self._settled: Tensor | None = None

    def settle(self, lookup: Lookup | None = None) -> None:
        """Add up every row once, for weights that no longer change: a vector is one lookup from now on. Not where all
        take more than 64 MiB, nor in an open vocabulary, whose vectors `lookup` finds if it is given.
        """
        weight = self.id.weight
        self._settled = None
        if isinstance(self.id, SharedEmbedding):
            if lookup is not None:
                self.id.served_by(lookup)
            return
        if self._features and weight.numel() * weight.itemsize <= _MOST_SETTLED_BYTES:
            with torch.no_grad():
                parts = torch.arange(len(weight), device=weight.device).split(_ROWS_AT_ONCE)
                self._settled = torch.cat([self(rows) for rows in parts])

    def settle_again(self, rows: Tensor) -> None:
        """Add up some rows [n] once more, which have changed. Nobody may look anything up meanwhile."""
        settled, self._settled = self._settled, None
        if settled is not None:
            with torch.no_grad():
                settled[rows] = self(rows)
            self._settled = settled

    def settle_as(self, other: "ItemEmbedding", rows: Tensor | slice) -> None:
        """Have some rows settled as they are there, to the bit: a sum made anew, of other rows beside it, may be
        rounded otherwise.
        """
        if self._settled is not None and other._settled is not None:
            self._settled[rows] = other._settled[rows]

    def vectors(self, rows: Ids) -> Floats:
        """Rows of the item table [n] -> [n, dim] in host memory; zeros of the unknown item of an open vocabulary, which
        has no id.
        """
        with torch.no_grad():
            keys = torch.from_numpy(rows).to(self.id.weight.device)
            if isinstance(self.id, SharedEmbedding):
                ids = functional.pad(self.get_buffer("item_id"), (1, 0))
                vectors = self(ids[keys]) * (keys != UNKNOWN_ROW).unsqueeze(-1)
            else:
                vectors = self(keys)
            found: Floats = vectors.float().cpu().numpy()
        return found

    def train(self, mode: bool = True) -> "ItemEmbedding":
        """See `nn.Module.train`; weights change again."""
        self._settled = None
        return super().train(mode)

    def load_items(self, items: ItemTable) -> None:
        """Fill in the side features of every row from the checkpoint's item table."""
        if isinstance(self.id, SharedEmbedding):
            self.get_buffer("item_id").copy_(torch.from_numpy(items.item_id))
        for feature in self._features:
            column = np.asarray(items.side[feature.name])
            rows = self.get_buffer(f"rows_{feature.name}")
            if feature.kind == "category":
                rows[1:] = torch.from_numpy(column.astype(np.int64))
            else:
                for first in range(0, len(column), _ROWS_AT_ONCE):  # in float64 a whole table is 8 times as large
                    tags = torch.from_numpy(column[first : first + _ROWS_AT_ONCE].astype(np.float64))
                    shares = tags / tags.sum(1, keepdim=True).clamp(min=1)
                    rows[1 + first : 1 + first + len(tags)] = shares.to(rows.dtype)

    def forward(self, keys: Tensor) -> Tensor:
        """int64 [...] -> [..., dim]."""
        if self._settled is not None:
            return functional.embedding(keys, self._settled)
        x: Tensor = self.id(keys)
        for vector in self.side_vectors(keys):
            x = x + vector
        return x

    def side_vectors(self, keys: Tensor) -> list[Tensor]:
        """Of each side feature: int64 [...] -> [..., dim]."""
        if not self._features:
            return []
        rows = self._rows(keys)
        return [self._side_vector(f, self.get_buffer(f"rows_{f.name}")[rows]) for f in self._features]

    def _side_vector(self, feature: SideFeature, values: Tensor) -> Tensor:
        offset = self._offsets.get(feature.name)
        vector: Tensor = self.side[_key(feature)](values) if offset is None else self.id(values, offset)
        return vector

    def _rows(self, keys: Tensor) -> Tensor:
        """Where items stand in the item table, 0 for those that it lacks."""
        if not isinstance(self.id, SharedEmbedding):
            return keys
        ids = self.get_buffer("item_id")
        if not len(ids):
            return torch.zeros_like(keys)
        index = torch.searchsorted(ids, keys.contiguous()).clamp(max=len(ids) - 1)
        return torch.where(ids[index] == keys, index + 1, UNKNOWN_ROW)


def offset_of(name: str) -> int:
    """Where the values of a side feature begin among the 64-bit keys of the array that they share with the items."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


def _key(feature: SideFeature) -> str:
    """Name of a feature's module: a bare one could be that of a method."""
    return f"side_{feature.name}"


class ActionEmbedding(nn.Module):
    """Bitmask over the action vocabulary, and optionally the event's value -> vector."""

    def __init__(self, num_actions: int, dim: int, value_center: float, value_scale: float | None) -> None:
        super().__init__()
        self._num_actions = num_actions
        self._value_center, self._value_scale = value_center, value_scale
        self.weight = nn.Parameter(torch.empty(num_actions, dim).normal_(std=_INIT_STD))
        if value_scale is not None:
            self.value_weight = nn.Parameter(torch.empty(dim).normal_(std=_INIT_STD))

    def forward(self, actions: Tensor, values: Tensor) -> Tensor:
        """int64 bitmasks [...] and float values [...] -> [..., dim]."""
        bits = torch.arange(self._num_actions, device=actions.device)
        x = functional.linear((actions.unsqueeze(-1) >> bits & 1).to(self.weight.dtype), self.weight.t())
        if self._value_scale is not None:
            largest = _LARGEST_VALUE.get(x.dtype, _LARGEST_VALUE_ELSE)
            scaled = ((values - self._value_center) / self._value_scale).clamp(-largest, largest)
            x = x + scaled.to(x.dtype).unsqueeze(-1) * self.value_weight
        return x


class ContextEmbedding(nn.Module):
    """Request-context codes -> one vector, added to the hidden targets. A missing feature has a learned vector too.

    Starts at zero and joins after the layers: as part of the target token it identified users and cost 0.01 test AUC
    (docs/LOG.md).
    """

    def __init__(self, features: Sequence[ContextFeature], dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(feature.num_values + 1, dim) for feature in features)
        self._dim = dim
        for table in self.embeddings:
            nn.init.zeros_(table.weight)

    @property
    def embeddings(self) -> list[nn.Embedding]:
        """A table for each feature; its first row is that of a missing one."""
        return [table for table in self.tables if isinstance(table, nn.Embedding)]

    def forward(self, codes: Tensor) -> Tensor:
        """int64 [..., num_features], -1 for missing -> [..., dim]; zero where the model reads no context."""
        x = torch.zeros((*codes.shape[:-1], self._dim), dtype=self._dtype(), device=codes.device)
        for index, table in enumerate(self.tables):
            x = x + table(codes[..., index] + 1)
        return x

    def _dtype(self) -> torch.dtype:
        return next((parameter.dtype for parameter in self.parameters()), torch.get_default_dtype())
