"""How alike items are: by their tags or categories, and by the vectors that a model has learned of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.types import Floats, Ids

SIDE_SHARE = 0.8
"""Of tags or categories, where an item has these and a learned vector."""

SEEN_ALONE = ("msd",)
"""Methods whose measure is a mean over pairs: in it the learned vectors are more noise than likeness (docs/LOG.md)."""

_ROWS_AT_ONCE = 65_536

SimilarTo = Callable[[int], Floats]
"""Position of a candidate -> how alike each candidate is to it, [num_candidates], 1 at most."""


Vectors = Callable[[Ids], Floats]
"""Item rows [n] -> what a model has learned of each, [n, dim]."""


class Centred:
    """Learned vectors by what sets each apart from the mean of all items, the unknown one aside. They are looked up
    when they are asked for: a table of them beside the model's own could be more memory than a server has left.
    """

    def __init__(self, vectors: Vectors, num_rows: int) -> None:
        """Reads all of them once, some at a time."""
        self._vectors = vectors
        self._mean: NDArray[np.float64] | float = 0.0
        for first in range(UNKNOWN_ROW + 1, num_rows, _ROWS_AT_ONCE):
            rows = np.arange(first, min(first + _ROWS_AT_ONCE, num_rows))
            self._mean = self._mean + vectors(rows).sum(axis=0, dtype=np.float64) / (num_rows - 1)

    def __call__(self, rows: Ids) -> Floats:
        """Item rows [n] -> [n, dim]."""
        return (self._vectors(rows) - self._mean).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Likeness:
    """What is known of every item of a model. An item of which nothing is known is like no other.

    items: their tags; where no item has any, their categories. To share a year, or what else may be a category, makes
    few items alike that do not share a tag. learned: their vectors; None for a likeness by tags or categories alone.
    """

    items: ItemTable
    learned: Vectors | None = None

    def by(self, method: str) -> "Likeness":
        """What a method compares by: all of this, or what users see of items alone, where they see anything."""
        return Likeness(self.items) if method in SEEN_ALONE and self.items.side else self

    def among(self, rows: Ids) -> SimilarTo:
        """How alike candidates are, [num_candidates] item rows: the cosine of a vector that holds, by their shares,
        their tags, or a place for every value of a category, and the learned vector.
        """
        columns = list(self.items.side.values())
        columns = [column for column in columns if column.ndim == 2] or columns
        known, share = rows != UNKNOWN_ROW, SIDE_SHARE / max(1, len(columns))
        if self.learned is None:
            share /= SIDE_SHARE
        parts, categories, squares = list[Floats](), list[Ids](), np.zeros(len(rows))
        for column in columns:
            of_rows = column[rows - 1] if len(column) else np.zeros((len(rows), *column.shape[1:]), column.dtype)
            if of_rows.ndim == 1:
                categories.append(np.where(known, of_rows, 0).astype(np.int64))
                squares += share * (categories[-1] > 0)
            else:
                parts.append(np.float32(np.sqrt(share)) * of_length_1(of_rows * known[:, None]))
                squares += share * parts[-1].any(1)
        if self.learned is not None:
            parts.append(np.float32(np.sqrt(1 - SIDE_SHARE)) * of_length_1(self.learned(rows) * known[:, None]))
            squares += (1 - SIDE_SHARE) * parts[-1].any(1)
        scale = np.divide(1, np.sqrt(squares), out=np.zeros(len(rows)), where=squares > 0).astype(np.float32)
        vectors = scale[:, None] * np.concatenate([np.zeros((len(rows), 0), np.float32), *parts], axis=1)

        def similar_to(position: int) -> Floats:
            # Not by BLAS: it would take every core for so little, and the device has work for them.
            like: Floats = np.einsum("ij,j->i", vectors, vectors[position])
            for codes in categories:
                if codes[position]:
                    like += (codes == codes[position]) * (np.float32(share) * scale[position]) * scale
            return like

        return similar_to


def of_length_1(vectors: NDArray[np.generic]) -> Floats:
    """Vectors of the same direction, [n, dim]; one of length 0 stays so."""
    numbers = vectors.astype(np.float32)
    lengths = np.linalg.norm(numbers, axis=1, keepdims=True)
    unit: Floats = np.divide(numbers, lengths, out=np.zeros_like(numbers), where=lengths > 0)
    return unit
