"""Graph vectors of a model's items, and the version of them that is served."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from mfalcon.errors import CheckpointError, InvalidInput
from mfalcon.features.graph import LARGEST_VECTOR
from mfalcon.types import Floats, Ids

LARGEST_NUMBER = 2**53
"""Of a refresh: JSON's readers lose count beyond."""
_LEAST_VERSION_CHARS = 12


@dataclass(frozen=True, slots=True, eq=False)
class GraphRefresh:
    """New vectors of all items of a checkpoint. number: grows from one to the next, gaps are no matter. checkpoint: the
    fingerprint of the checkpoint whose network made them, or at least its first 12 characters (the model's version).

    item_id: int64 [n], each once. vector: float32 [n, dim]. Items that it lacks have zeros from now on, as those
    without neighbours; ones that the checkpoint does not know are passed over.
    """

    number: int
    checkpoint: str
    item_id: Ids
    vector: Floats

    def check(self, dim: int, fingerprint: str) -> None:
        """Raise CheckpointError for vectors of another checkpoint, and InvalidInput for what are no vectors of one."""
        if len(self.checkpoint) < _LEAST_VERSION_CHARS or not fingerprint.startswith(self.checkpoint):
            raise CheckpointError(
                f"checkpoint: got vectors of {self.checkpoint[:80]!r}, must be of {fingerprint}, which is served, or "
                f"at least its first {_LEAST_VERSION_CHARS} characters"
            )
        if not 1 <= self.number <= LARGEST_NUMBER:
            raise InvalidInput("number", self.number, f"from 1 to {LARGEST_NUMBER}")
        ids, vector = self.item_id, self.vector
        if ids.dtype != np.int64 or ids.ndim != 1:
            raise InvalidInput("item_id", f"{ids.dtype} {ids.shape}", "int64 of one dimension")
        if not len(ids):
            raise InvalidInput("item_id", "no items", "one at least")
        ordered = np.sort(ids)
        if len(twice := np.flatnonzero(ordered[1:] == ordered[:-1])):
            raise InvalidInput("item_id", f"{ordered[twice[0]]} more than once", "each item once")
        if vector.dtype != np.float32 or vector.shape != (len(ids), dim):
            raise InvalidInput("vector", f"{vector.dtype} {vector.shape}", f"float32 {(len(ids), dim)}")
        low, high = float(vector.min()), float(vector.max())
        if not np.isfinite(low) or not np.isfinite(high):
            row = int(np.flatnonzero(~np.isfinite(vector).all(1))[0])
            raise InvalidInput("vector", f"no finite number in row {row}", "finite")
        if max(-low, high) > LARGEST_VECTOR:
            raise InvalidInput("vector", max(-low, high), f"at most {LARGEST_VECTOR:g} in magnitude")

    def digest(self) -> str:
        """A hash of what it says, 16 hexadecimal digits."""
        hasher = hashlib.blake2b(str(self.number).encode(), digest_size=8)
        for column in (self.item_id, self.vector):
            hasher.update(np.ascontiguousarray(column).view(np.uint8).data)
        return hasher.hexdigest()


def _none() -> Floats:
    return np.empty((0, 0), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class GraphVectors:
    """What a request reads to its end. number: of the refresh, 0 of the checkpoint's own. name: in its answer, "" of
    those. rows: float32 [num_rows, dim], by item row; zeros of the unknown item.
    """

    number: int = 0
    name: str = ""
    rows: Floats = field(default_factory=_none)

    def refreshed(self, refresh: GraphRefresh, rows: Ids) -> "GraphVectors":
        """With all vectors exchanged. rows: where the items of the refresh are, int64 [n], 0 of unknown ones. Raises
        CheckpointError for one that is not newer.
        """
        if refresh.number <= self.number:
            raise CheckpointError(f"number: got {refresh.number}, must be more than {self.number}, which is served")
        table = np.zeros_like(self.rows)
        table[rows] = refresh.vector
        table[0] = 0
        return GraphVectors(refresh.number, f"{refresh.number}-{refresh.digest()}", table)
