"""Which events are alike in what makes them hard: how long the history is, whether the user is new, how frequent the
item is.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mfalcon.train.dataset import Dataset
from mfalcon.train.sequences import Visibility, visible_events

Mask = NDArray[np.bool_]

ALL = "all"
_LENGTHS = ((0, 0), (1, 9), (10, 49), (50, 199), (200, None))
_HEAD_SHARE = 0.5
"""Of the training events: the fewest items that have so many of them are the head."""


def slices(dataset: Dataset, chosen: Mask, fit: Mask, visibility: Visibility) -> Mapping[str, Mask]:
    """Of the chosen events, bool [num_chosen] by the name of a slice; those without an event are left out.

    chosen, fit: bool [num_events], the events that are judged and those that were learned from.
    """
    seen = _num_visible(dataset, visibility)[chosen]
    found = {ALL: np.ones(len(seen), dtype=np.bool_)}
    for low, high in _LENGTHS:
        name = f"{low} events" if low == high else f"{low} events on" if high is None else f"{low} to {high} events"
        found[name] = (seen >= low) & (seen <= (high if high is not None else np.iinfo(np.int64).max))
    is_known = np.isin(dataset.user[chosen], dataset.user[fit])
    found |= {"known users": is_known, "new users": ~is_known}
    items, index = np.unique(dataset.events["item_id"], return_inverse=True)
    count = np.bincount(index[fit], minlength=len(items))
    by_count = np.argsort(-count, kind="stable")
    head_len = int(np.searchsorted(np.cumsum(count[by_count]), _HEAD_SHARE * count.sum())) + 1
    is_head = np.zeros(len(items), dtype=np.bool_)
    is_head[by_count[:head_len]] = True
    item = index[chosen]
    found["head items"] = is_head[item] & (count[item] > 0)
    found["tail items"] = ~is_head[item] & (count[item] > 0)
    found["new items"] = count[item] == 0
    return {name: mask for name, mask in found.items() if mask.any()}


def _num_visible(dataset: Dataset, visibility: Visibility) -> NDArray[np.int64]:
    """How many events of its user each event sees, [num_events]."""
    order = np.argsort(dataset.user, kind="stable")
    times = dataset.events["time_ms"][order]
    ends = np.cumsum(np.bincount(dataset.user, minlength=len(dataset.user_ids)))
    seen = np.empty(len(order), dtype=np.int64)
    for first, last in zip([0, *ends[:-1]], ends, strict=True):
        seen[order[first:last]] = visible_events(times[first:last], visibility)
    return seen
