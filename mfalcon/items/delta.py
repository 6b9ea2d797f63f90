"""A delta: some rows of a model's item table, as they shall be from now on. All of it is applied, or nothing."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mfalcon.errors import CheckpointError, InvalidInput
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_features import SideFeature
from mfalcon.types import Floats, Ids

MOST_ROWS = 4_000_000
"""Of one delta: at 64 numbers each that is a gigabyte."""
LARGEST_NUMBER = 2**53
"""Of a delta: JSON's readers lose count beyond."""
_LARGEST_VALUE = 1e15
_LARGEST_IN_FLOAT16 = 2.0**13
_LEAST_VERSION_CHARS = 12

Side = Mapping[str, NDArray[np.int64] | NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """number: deltas of a checkpoint follow each other by it, from 1 on; 0 for the next one. checkpoint: the
    fingerprint of the checkpoint that the rows belong to, or at least its first 12 characters (the model's version).
    replaces: all other rows become those of the checkpoint again, and items that it does not know are no more known.

    item_id: int64 [n], each once. vector: float32 [n, dim], of the id alone, before side features are added. bias:
    float32 [n, num_tasks], what the heads add. side: as in an `ItemTable`. What is None, or absent, stays as it is; of
    an item that is new it is that of the unknown item, and no side feature.
    """

    number: int
    checkpoint: str
    item_id: Ids
    vector: Floats | None = None
    bias: Floats | None = None
    side: Side = field(default_factory=dict)
    replaces: bool = False

    @property
    def num_rows(self) -> int:
        """Rows that it names."""
        return len(self.item_id)

    def fitted(self, config: RankerConfig) -> "Delta":
        """The same with its categories as [n], also where they came as [n, 1]."""
        categories = {feature.name for feature in config.side_features if feature.kind == "category"}
        side = {
            name: column[:, 0] if name in categories and column.ndim == 2 and column.shape[1] == 1 else column
            for name, column in self.side.items()
        }
        return replace(self, side=side)

    def check(self, config: RankerConfig, fingerprint: str, *, is_float16: bool = False, has_bias: bool = True) -> None:
        """Raise CheckpointError for rows of another checkpoint, and InvalidInput for what no row of this one can be.
        has_bias: whether its heads add one for each item.
        """
        if len(self.checkpoint) < _LEAST_VERSION_CHARS or not fingerprint.startswith(self.checkpoint):
            raise CheckpointError(
                f"checkpoint: got rows of {self.checkpoint[:80]!r}, must be of {fingerprint}, which is served, or at "
                f"least its first {_LEAST_VERSION_CHARS} characters"
            )
        if not 0 <= self.number <= LARGEST_NUMBER:
            raise InvalidInput("number", self.number, f"from 0 to {LARGEST_NUMBER}")
        self._check_ids()
        num, num_tasks = self.num_rows, len(config.tasks)
        if self.vector is None and self.bias is None and not self.side and not (self.replaces and not num):
            raise InvalidInput("delta", "rows without columns", "vectors, biases or side features, one at least")
        largest = _LARGEST_IN_FLOAT16 if is_float16 else _LARGEST_VALUE
        _check_numbers("vector", self.vector, (num, config.dim), largest)
        if self.bias is not None and not has_bias:
            raise InvalidInput("bias", self.bias.shape, "absent: this model has no bias of items")
        _check_numbers("bias", self.bias, (num, num_tasks), float(np.finfo(np.float32).max))
        self._check_side(config.side_features)

    def _check_ids(self) -> None:
        ids = self.item_id
        if ids.dtype != np.int64 or ids.ndim != 1:
            raise InvalidInput("item_id", f"{ids.dtype} {ids.shape}", "int64 of one dimension")
        if len(ids) > MOST_ROWS:
            raise InvalidInput("item_id", f"{len(ids)} items", f"at most {MOST_ROWS} in one delta")
        if not len(ids) and not self.replaces:
            raise InvalidInput("item_id", "no items", "one at least")
        ordered = np.sort(ids)
        twice = np.flatnonzero(ordered[1:] == ordered[:-1])
        if len(twice):
            raise InvalidInput("item_id", f"{ordered[twice[0]]} more than once", "each item once")

    def _check_side(self, features: tuple[SideFeature, ...]) -> None:
        known = {feature.name: feature for feature in features}
        for name, column in self.side.items():
            if name not in known:
                raise InvalidInput("side", name, f"one of {sorted(known)}")
            size, is_category = len(known[name].vocabulary), known[name].kind == "category"
            shape = (self.num_rows,) if is_category else (self.num_rows, size)
            if column.shape != shape or column.dtype.kind not in "iu":
                raise InvalidInput(f"side.{name}", f"{column.dtype} {column.shape}", f"integers {shape}")
            top = size if is_category else 1
            if column.size and (column.min() < 0 or column.max() > top):
                raise InvalidInput(f"side.{name}", int(column.max()), f"from 0 to {top}")

    def digest(self, before: bytes) -> bytes:
        """A hash of this delta and of all before it, 8 bytes."""
        hasher = hashlib.blake2b(before + f"{self.number} {self.replaces}".encode(), digest_size=8)
        columns = {"item_id": self.item_id, "vector": self.vector, "bias": self.bias}
        for name, column in (*columns.items(), *sorted((f"side.{name}", one) for name, one in self.side.items())):
            if column is not None:
                hasher.update(f"{name} {column.dtype} {column.shape}".encode())
                hasher.update(np.ascontiguousarray(column).view(np.uint8).data)
        return hasher.digest()


def _check_numbers(name: str, column: Floats | None, shape: tuple[int, int], largest: float) -> None:
    if column is None:
        return
    if column.dtype != np.float32 or column.shape != shape:
        raise InvalidInput(name, f"{column.dtype} {column.shape}", f"float32 {shape}")
    if not column.size:
        return
    low, high = float(column.min()), float(column.max())
    if not np.isfinite(low) or not np.isfinite(high):
        row = int(np.flatnonzero(~np.isfinite(column).all(1))[0])
        raise InvalidInput(name, f"no finite number in row {row}", "finite")
    if max(-low, high) > largest:
        raise InvalidInput(name, max(-low, high), f"at most {largest:g} in magnitude")
