"""Many short texts in two arrays: ids of ten million items take their bytes and eight more each, not a str each."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mfalcon.types import Ids


@dataclass(frozen=True, slots=True)
class Texts:
    """utf8: [num_bytes] uint8, all texts one behind the other. end: [num_texts] int64, where each ends.

    Raises ValueError for arrays that are not that.
    """

    utf8: NDArray[np.uint8]
    end: Ids

    def __post_init__(self) -> None:
        if self.utf8.dtype != np.uint8 or self.utf8.ndim != 1 or self.end.dtype != np.int64 or self.end.ndim != 1:
            raise ValueError("texts: must be uint8 and int64 of one dimension")
        bounds = np.concatenate([[0], self.end])
        if np.any(bounds[1:] < bounds[:-1]) or bounds[-1] != len(self.utf8):
            raise ValueError(f"texts: their ends must ascend, up to all {len(self.utf8)} bytes")
        self.utf8.tobytes().decode()
        inner = bounds[bounds < len(self.utf8)]
        if np.any(self.utf8[inner] & 0xC0 == 0x80):
            raise ValueError("texts: one ends within a character")

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """These, in their order."""
        parts = [text.encode() for text in texts]
        lengths = np.array([len(part) for part in parts], dtype=np.int64)
        return cls(np.frombuffer(b"".join(parts), dtype=np.uint8), np.cumsum(lengths))

    def __len__(self) -> int:
        """How many there are."""
        return len(self.end)

    def at(self, index: int) -> str:
        """One of them."""
        start = int(self.end[index - 1]) if index else 0
        return self.utf8[start : int(self.end[index])].tobytes().decode()
