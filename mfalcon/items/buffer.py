"""Memory for the rows of one version of an item table, with a model that reads them. Its other weights are those of the
model that is served.
"""

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mfalcon.backends.events import ServedEvents, serve_events
from mfalcon.backends.select import Served, ServedModel
from mfalcon.items.delta import Delta
from mfalcon.items.version import ItemVersion
from mfalcon.models.base import EventRanker, PrefixRanker, Ranker, TaskRanker
from mfalcon.models.embedding import ItemEmbedding
from mfalcon.models.items import UNKNOWN_ROW
from mfalcon.types import Ids

_OWN: Final = ("items", "heads")
"""Parts of a model that have something of every item."""
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A delta that was found good. rows: int64 [n], where its items are. stop: rows in use with it. before: the number
    of the delta before it.
    """

    delta: Delta
    rows: Ids
    stop: int
    before: int


class RowBuffer:
    """Rows that may be written as long as no version reads them. number: of the last delta in it."""

    def __init__(self, base: Served, capacity: int) -> None:
        """The checkpoint's own rows, and room for more: such a row is that of the unknown item."""
        self.number = 0
        self.capacity = capacity
        self.row_tags = np.zeros(capacity, dtype=np.int64)
        self._base = base.model
        model = _copied(base.model, capacity)
        self._items = model.items
        self._bias = bias_of(model)
        self.served = _serving(base, model)
        self._reader: weakref.ref[ItemVersion] | None = None

    @property
    def is_free(self) -> bool:
        """Whether nobody reads it."""
        return self._reader is None or self._reader() is None

    def lend(self, version: ItemVersion) -> None:
        """Write nothing until this version is garbage: nobody can forget to give it back."""
        self._reader = weakref.ref(version)

    def apply(self, patch: Patch) -> None:
        """Make the rows those of the next version. Only who has found it free may."""
        delta = patch.delta
        with torch.no_grad():
            if delta.replaces:
                self._reset()
            if len(patch.rows):
                self._write(patch)
        self.number = delta.number

    def copy_from(self, other: "RowBuffer", num_rows: int, changed: Ids | None = None) -> None:
        """Make the first rows those of another buffer, and all others the unknown item's. changed: the rows that differ
        there, where these are known.
        """
        with torch.no_grad():
            if changed is None:
                self._reset()
                changed = np.arange(1, num_rows)
            for part in np.split(changed, range(_ROWS_AT_ONCE, len(changed), _ROWS_AT_ONCE)):
                rows = torch.from_numpy(part).to(self._items.id.weight.device)
                _copy(self._items.id.weight, other._items.id.weight, rows)
                for name, buffer in _side_buffers(self._items).items():
                    _copy(buffer, other._items.get_buffer(name), rows)
                if self._bias is not None and other._bias is not None:
                    _copy(self._bias, other._bias, rows)
                self._items.settle_as(other._items, rows)
                self.row_tags[part] = other.row_tags[part]
        self.number = other.number

    def side(self, num_rows: int) -> Mapping[str, NDArray[np.int64] | NDArray[np.uint8]]:
        """Side features of all rows in use but the unknown item's, as in an `ItemTable`."""
        return side_of(self._items, torch.arange(1, num_rows))

    def _reset(self) -> None:
        """To the rows of a checkpoint."""
        base, size = self._base.items, self._base.config.num_items
        _fill(self._items.id.weight, base.id.weight, size)
        for name, buffer in _side_buffers(self._items).items():
            _fill(buffer, base.get_buffer(name), size)
        bias = bias_of(self._base)
        if self._bias is not None and bias is not None:
            _fill(self._bias, bias, size)
        self.row_tags[:] = 0
        self._settle(self.capacity)
        self._items.settle_as(base, slice(size))

    def _write(self, patch: Patch) -> None:
        delta, device = patch.delta, self._items.id.weight.device
        rows = torch.from_numpy(patch.rows).to(device)
        if delta.vector is not None:
            weight = self._items.id.weight
            weight.index_copy_(0, rows, torch.from_numpy(np.ascontiguousarray(delta.vector)).to(device, weight.dtype))
        if self._bias is not None and delta.bias is not None:
            self._bias[rows] = torch.from_numpy(np.ascontiguousarray(delta.bias)).to(device, self._bias.dtype)
        for name, column in delta.side.items():
            buffer = self._items.get_buffer(f"rows_{name}")
            buffer[rows] = _shares(column).to(device, buffer.dtype) if column.ndim == 2 else _codes(column).to(device)
        if delta.vector is None and not delta.side:
            return  # a bias is no part of a history; a new item without more is to it what an unknown one is
        for first in range(0, len(patch.rows), _ROWS_AT_ONCE):
            part = patch.rows[first : first + _ROWS_AT_ONCE]
            self._items.settle_again(rows[first : first + _ROWS_AT_ONCE])
            self.row_tags[part] = tags_of(self._items.vectors(part))

    def _settle(self, num_rows: int) -> None:
        for rows in torch.arange(num_rows, device=self._items.id.weight.device).split(_ROWS_AT_ONCE):
            self._items.settle_again(rows)


def bias_of(model: Ranker) -> Tensor | None:
    """What the heads add for each item, [num_rows, num_tasks]; None of a model without."""
    table = model.heads.item_bias if isinstance(model, TaskRanker) else None
    return None if table is None else table.weight


def tags_of(vectors: NDArray[np.float32]) -> Ids:
    """What rows are, for those who have encoded histories with them: vectors [n, dim] -> int64 [n], none of them 0. Two
    different vectors have the same one with a probability of 2**-64.
    """
    words = np.ascontiguousarray(vectors, dtype=np.float32)
    if words.shape[1] % 2:
        words = np.pad(words, ((0, 0), (0, 1)))
    places: NDArray[np.uint64] = np.arange(1, words.shape[1] // 2 + 1, dtype=np.uint64) * _GOLDEN
    mixed: NDArray[np.uint64] = words.view(np.uint64) + places
    for shift, factor in _MIXERS:  # SplitMix64 of each word by its place
        mixed = (mixed ^ (mixed >> shift)) * factor
    mixed ^= mixed >> np.uint64(31)
    tags: Ids = mixed.sum(axis=1, dtype=np.uint64).view(np.int64)
    tags[tags == 0] = 1
    return tags


_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIXERS: Final = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


def side_of(items: ItemEmbedding, rows: Tensor) -> Mapping[str, NDArray[np.int64] | NDArray[np.uint8]]:
    """Side features of rows int64 [n], as an `ItemTable` has them."""
    columns: dict[str, NDArray[np.int64] | NDArray[np.uint8]] = {}
    for name, buffer in _side_buffers(items).items():
        found = buffer[rows.to(buffer.device)]
        columns[name.removeprefix("rows_")] = (found if found.ndim == 1 else (found != 0).to(torch.uint8)).cpu().numpy()
    return columns


def _copied(model: Ranker, capacity: int) -> Ranker:
    """A model with room for so many rows, which shares all other weights with this one."""
    shared: dict[int, object] = {id(child): child for name, child in model.named_children() if name not in _OWN}
    shared[id(model.config)] = model.config
    if isinstance(model, TaskRanker):
        shared[id(model.heads.mlp)] = model.heads.mlp
    columns = [*model.items.parameters(), *model.items.buffers()]
    columns += [] if (bias := bias_of(model)) is None else [bias]
    shared |= {id(column): column for column in columns}  # those of rows are made anew below, without a copy of a copy
    with torch.no_grad():
        copied: Ranker = copy.deepcopy(model, shared)
        size, items = model.config.num_items, copied.items
        items.id = _embedding(items.id.weight, capacity, size)
        for name, buffer in _side_buffers(items).items():
            items.register_buffer(name, _grown(buffer, capacity, size), persistent=False)
        if isinstance(copied, TaskRanker) and (bias := bias_of(copied)) is not None:
            copied.heads.item_bias = _embedding(bias, capacity, size)
        items.settle()
        items.settle_as(model.items, slice(size))
    return copied


def _serving(base: Served, model: Ranker) -> Served:
    """The copy as it is served: what computes its layers, and their pages, are those of the model."""
    if isinstance(base, ServedModel):
        assert isinstance(model, PrefixRanker)
        return replace(base, model=model)
    assert isinstance(base, ServedEvents) and isinstance(model, EventRanker)
    return serve_events(model, base.name)


def _embedding(weight: Tensor, capacity: int, size: int) -> nn.Embedding:
    table: nn.Embedding = nn.Embedding.from_pretrained(_grown(weight, capacity, size), freeze=True)
    return table


def _grown(rows: Tensor, capacity: int, size: int) -> Tensor:
    grown = rows.new_empty((capacity, *rows.shape[1:]))
    _fill(grown, rows, size)
    return grown


def _fill(rows: Tensor, base: Tensor, size: int) -> None:
    """The first `size` rows of a checkpoint, and behind them the unknown item's."""
    rows[:size] = base[:size]
    rows[size:] = base[UNKNOWN_ROW]


def _copy(to: Tensor, of: Tensor, rows: Tensor) -> None:
    """Some rows; several times as fast as by an assignment."""
    to.index_copy_(0, rows, of.index_select(0, rows))


def _side_buffers(items: ItemEmbedding) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in items.named_buffers() if name.startswith("rows_")}


def _codes(column: NDArray[np.int64] | NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(column.astype(np.int64))


def _shares(column: NDArray[np.int64] | NDArray[np.uint8]) -> Tensor:
    """As `ItemEmbedding.load_items` makes them."""
    tags = torch.from_numpy(column.astype(np.float64))
    return (tags / tags.sum(1, keepdim=True).clamp(min=1)).float()
