"""Some items as one version of a table has them, for what looks at a few after they were ranked."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from mfalcon.items.buffer import side_of
from mfalcon.items.known import titled
from mfalcon.items.version import ItemVersion
from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.types import Floats, Ids

_MOST_SAMPLED: Final = 8_192
"""Rows that the mean vector of a large table is taken of: to read all would take longer than a delta."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """items: those that are known. vectors: [items.num_rows, dim], of the unknown item first."""

    items: ItemTable
    vectors: Floats


def excerpt(version: ItemVersion, base: ItemTable, item_ids: Ids) -> Excerpt:
    """Of these items [n], in any order. base: the checkpoint's table, which has their titles."""
    ids = np.unique(item_ids)
    rows = version.items.rows(ids)
    ids, rows = ids[rows != UNKNOWN_ROW], rows[rows != UNKNOWN_ROW]
    embedding = version.served.model.items
    items = titled(base, ids, side_of(embedding, torch.from_numpy(rows)))
    return Excerpt(items, embedding.vectors(np.concatenate([[UNKNOWN_ROW], rows])))


def mean_vector(version: ItemVersion) -> Floats:
    """Of the items in use, [dim]; of a large table that of items at equal distances."""
    num_items = version.items.num_rows - 1
    rows = 1 + np.arange(min(num_items, _MOST_SAMPLED)) * num_items // max(1, min(num_items, _MOST_SAMPLED))
    vectors = version.served.model.items.vectors(rows)
    mean: Floats = vectors.sum(axis=0, dtype=np.float64) / max(1, len(rows))
    return mean.astype(np.float32)
