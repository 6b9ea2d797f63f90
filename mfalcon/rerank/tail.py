"""The long tail: items that are seldom acted on, which a ranker that learns from actions seldom puts first."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.types import Ids, Positions

Reals = NDArray[np.float64]

UNCOUNTED = -1
"""Of an item that the model does not know: nobody can say how often it was acted on."""

HEAD_SHARE = 0.8
"""Of all events, what the popular items have that are not in the long tail."""

Counts = Callable[[Positions], Ids]
"""Positions of candidates [n] -> how often the item of each was acted on, or `UNCOUNTED`, [n]."""


def num_events(items: ItemTable, rows: Ids) -> Ids:
    """How often the items at rows [n] were acted on in training, [n]; `UNCOUNTED` of the unknown row."""
    assert items.num_events is not None
    if len(items.num_events) == 0:
        return np.full(len(rows), UNCOUNTED)
    return np.where(rows == UNKNOWN_ROW, UNCOUNTED, items.num_events[rows - 1])


def long_tail(items: ItemTable) -> NDArray[np.bool_]:
    """Whether the item of each row is in the long tail: all but the most popular items that together have
    `HEAD_SHARE` of the events of training, [num_rows]. Nobody can say so of the unknown row: False.
    """
    assert items.num_events is not None
    most_first = np.argsort(-items.num_events, kind="stable")
    before = np.cumsum(items.num_events[most_first]) - items.num_events[most_first]
    is_tail = np.zeros(items.num_rows, dtype=np.bool_)
    is_tail[1 + most_first] = before >= HEAD_SHARE * items.num_events.sum()
    return is_tail


def rarity(counts: Ids) -> Reals:
    """How rare items are beside each other, [n]: -log(1 + count) less its mean and over its deviation; 0 of what is
    uncounted, and of all if none is rarer than another.
    """
    known = counts != UNCOUNTED
    surprise = -np.log1p(counts, where=known, out=np.zeros(len(counts)))
    spread = surprise[known].std() if known.any() else 0.0
    if not spread > 0:
        return np.zeros(len(counts))
    standardised: Reals = np.where(known, (surprise - surprise[known].mean()) / spread, 0.0)
    return standardised
