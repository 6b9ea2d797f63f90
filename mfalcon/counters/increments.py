"""What events add to the counters of items: 24 bytes for each item among them."""

import numpy as np
from numpy.typing import NDArray

from mfalcon.features.counters import LikeRule, value_steps
from mfalcon.types import Events, Ids

INCREMENT_DTYPE = np.dtype([("item_id", "<i8"), ("events", "<u4"), ("likes", "<u4"), ("value", "<i8")])
"""value: in steps of 1 / VALUE_STEPS."""

Increments = NDArray[np.void]
"""[n] of `INCREMENT_DTYPE`. What `counted` and `merged` give has every item once, ascending."""


def counted(events: Events, like: LikeRule) -> Increments:
    """What events add."""
    every = np.empty(len(events), dtype=INCREMENT_DTYPE)
    every["item_id"], every["events"] = events["item_id"], 1
    every["likes"], every["value"] = like(events), value_steps(events)
    return merged(every)


def merged(increments: Increments) -> Increments:
    """The same, with every item once."""
    ids, which = np.unique(increments["item_id"], return_inverse=True)
    out = np.zeros(len(ids), dtype=INCREMENT_DTYPE)
    out["item_id"] = ids
    for name in ("events", "likes", "value"):
        np.add.at(out[name], which, increments[name])
    return out


def numbers(increments: Increments) -> Ids:
    """int64 [n, 3]: events, likes, value."""
    return np.stack([increments[name].astype(np.int64) for name in ("events", "likes", "value")], axis=1)
