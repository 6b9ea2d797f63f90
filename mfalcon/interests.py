"""What a large user model is asked and what it answers: the words of Interests, numpy only.

A condition is an outcome and a category, by its name in the checkpoint: "like:Comedy". A user's interest under it is a
vector, and near to it are the items that he would take next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mfalcon.types import NO_CACHE, NO_TIMINGS, CacheInfo, Events, Floats, Ids, Timings, no_events


@dataclass(frozen=True, slots=True)
class InterestsRequest:
    """A wish to know a user's interests, already validated.

    conditions: by name, in any order, duplicates allowed. top_items: how many of the nearest items to tell of each, 0
    for none. request_time_ms, recent_events: as in `RankRequest`.
    """

    user_id: str
    conditions: tuple[str, ...]
    top_items: int = 0
    request_time_ms: int = 0
    recent_events: Events = field(default_factory=no_events)


@dataclass(frozen=True, slots=True)
class Nearest:
    """Items of a condition's category, the nearest first. item_ids, scores: [num_items], at most as many as were asked
    for. Scores are logits among the items of the category: larger is nearer. texts: of each id, "" where it has none;
    empty where ids are integers.
    """

    item_ids: Ids
    scores: Floats
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Interests:
    """The answer to an `InterestsRequest`.

    vectors: [num_conditions, dim], of length 1 and aligned with the conditions. nearest: of each condition, none where
    no items were asked. computed_ahead: by a prefill of the same history, and not for this request. history_len,
    history_version, stale: as in `RankResult`.
    """

    conditions: tuple[str, ...]
    vectors: Floats
    nearest: tuple[Nearest, ...]
    model_version: str
    cache: CacheInfo = NO_CACHE
    timings: Timings = NO_TIMINGS
    history_len: int = 0
    history_version: bytes = b""
    stale: bool = False
    computed_ahead: bool = False


def interleaved(nearest: Sequence[Nearest], num_items: int) -> Ids:
    """At most so many items of several conditions, each once: the nearest of every condition in turn, then the second
    nearest, because logits of different categories do not compare.
    """
    longest = max((len(each.item_ids) for each in nearest), default=0)
    table = np.zeros((longest, len(nearest)), dtype=np.int64)
    is_there = np.zeros(table.shape, dtype=np.bool_)
    for column, each in enumerate(nearest):
        table[: len(each.item_ids), column], is_there[: len(each.item_ids), column] = each.item_ids, True
    in_turn = table[is_there]
    _, first = np.unique(in_turn, return_index=True)
    chosen: Ids = in_turn[np.sort(first)[:num_items]]
    return chosen
