"""The streaming counters of a data set: what every event would have read as a request, and what a recipe says of them.

A server counts for one request (`mfalcon.features.counters.count_for_request`); here the same whole numbers come of
running sums over all events at once, and the same formulas make features of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mfalcon.features.counters import VALUE_STEPS, Counts, LikeRule, value_steps
from mfalcon.features.tags import ItemTags, sum_runs
from mfalcon.models.config_features import COUNTERS, CountersConfig, DenseFeature, SideFeature
from mfalcon.train.dataset import Dataset
from mfalcon.types import Ids

_LEAST_SPREAD = 1e-12
"""Of a counter that is not the same for every event."""


@dataclass(frozen=True, slots=True)
class _Groups:
    """Events, of users or of items, group by group in the order of the data set.

    order: their positions, [n]. first: where the group of each begins in `order`, seen: where what it sees of it ends;
    both int64 [n], by place in `order`.
    """

    order: Ids
    first: Ids
    seen: Ids

    @staticmethod
    def of(group: Ids, times: Ids, *, is_strict: bool) -> "_Groups":
        """group: of each event, int64 [n]. times: ascending. is_strict: an event does not see others of its time."""
        order = np.argsort(group, kind="stable").astype(np.int64)
        group, places = group[order], np.arange(len(order), dtype=np.int64)
        is_first = np.ones(len(order), dtype=np.bool_)
        is_first[1:] = group[1:] != group[:-1]
        first = np.maximum.accumulate(np.where(is_first, places, 0)) if len(order) else places
        if not is_strict:
            return _Groups(order, first, places)
        is_later = is_first.copy()
        is_later[1:] |= times[order][1:] != times[order][:-1]
        return _Groups(order, first, np.maximum.accumulate(np.where(is_later, places, 0)) if len(order) else places)

    def between(self, numbers: Ids, first: Ids) -> Ids:
        """Sums of numbers [n], by position, over what each event sees from the place `first` on: by position."""
        return self.by_position(_before(numbers[self.order], self.seen) - _before(numbers[self.order], first))

    def by_position(self, numbers: Ids) -> Ids:
        """Numbers by place as numbers by position."""
        out = np.empty_like(numbers)
        out[self.order] = numbers
        return out


def count_events(dataset: Dataset, like: LikeRule, config: CountersConfig, *, is_strict: bool) -> Counts:
    """What every event counts as a request at its time for its item, [num_events] of each.

    is_strict: of its user and its item it sees events of an earlier time; else those before it in the data set.
    """
    events, times = dataset.events, np.ascontiguousarray(dataset.events["time_ms"])
    liked, value, ones = like(events).astype(np.int64), value_steps(events), np.ones(len(events), dtype=np.int64)
    users = _Groups.of(dataset.user, times, is_strict=is_strict)
    first = np.maximum(users.first, users.seen - config.max_events)
    newest = times[users.order][np.maximum(users.seen - 1, 0)]
    idle = np.where(users.seen > first, times[users.order] - newest, 0)
    tag_events, tag_value = _shared(dataset, config, users, first, value)
    _, item = np.unique(events["item_id"], return_inverse=True)
    items = _Groups.of(item.astype(np.int64), times, is_strict=is_strict)
    return Counts(
        events=users.by_position(users.seen - first),
        likes=users.between(liked, first),
        value=users.between(value, first),
        tag_events=tag_events,
        tag_value=tag_value,
        idle_ms=users.by_position(idle),
        item_events=items.between(ones, items.first),
        item_likes=items.between(liked, items.first),
        item_value=items.between(value, items.first),
    )


def counters_config(
    dataset: Dataset, is_training: NDArray[np.bool_], *, is_strict: bool, max_events: int | None = None
) -> CountersConfig | None:
    """The counters of a data set, standardised over its training events; None if it has no binary task.

    is_training: bool [num_events]. Likes are the positive events of the first binary task. Tags are every side feature
    of that kind, or every category where there are none.
    """
    task = next((task for task in dataset.tasks if task.kind == "binary"), None)
    if task is None:
        return None
    like, chosen = LikeRule.of_task(task, dataset.actions), dataset.events[is_training]
    unscaled = CountersConfig(
        task=task.name,
        tags=_tags(dataset.side_features),
        like_rate=float(like(chosen).mean()) if len(chosen) else 0.5,
        mean_value=float(value_steps(chosen).mean() / VALUE_STEPS) if len(chosen) else 0.0,
        features=tuple(DenseFeature(name=name) for name in COUNTERS),
    )
    if max_events is not None:
        unscaled = unscaled.model_copy(update={"max_events": max_events})
    numbers = count_events(dataset, like, unscaled, is_strict=is_strict).numbers(unscaled)[is_training]
    features = tuple(_scaled(name, column) for name, column in zip(COUNTERS, numbers.T, strict=True))
    return unscaled.model_copy(update={"features": features})


def _tags(side_features: tuple[SideFeature, ...]) -> tuple[str, ...]:
    for kind in ("tags", "category"):
        if names := tuple(feature.name for feature in side_features if feature.kind == kind):
            return names
    return ()


def _scaled(name: str, column: NDArray[np.float64]) -> DenseFeature:
    spread = float(column.std()) if len(column) else 0.0
    center = float(column.mean()) if len(column) else 0.0
    return DenseFeature(name=name, center=center, scale=spread if spread > _LEAST_SPREAD else 1.0)


def _shared(dataset: Dataset, config: CountersConfig, users: _Groups, first: Ids, value: Ids) -> tuple[Ids, Ids]:
    """Of each event, by position: events of its user that it sees from the place `first` on, once for each tag that
    they share, and the sum of their values.

    Every (event, tag) is a pair. In the order of (user, tag, place) the pairs that an event sees of one of its own
    follow each other, so their number and sum are differences of running ones.
    """
    tags = ItemTags(dataset.items, config.tags)
    rows = dataset.items.rows(np.ascontiguousarray(dataset.events["item_id"]))[users.order]
    tag, num = tags.of(rows)
    place = np.repeat(np.arange(len(rows), dtype=np.int64), num)
    _, key = np.unique(dataset.user[users.order][place] * tags.num_tags + tag, return_inverse=True)
    unit = len(rows) + 1
    pairs = key.astype(np.int64) * unit + place
    order = np.argsort(pairs)
    ordered = pairs[order]
    low = np.searchsorted(ordered, key * unit + first[place])
    high = np.searchsorted(ordered, key * unit + users.seen[place])
    sums = value[users.order][place][order]
    shared_value = _before(sums, high) - _before(sums, low)
    return users.by_position(sum_runs(high - low, num)), users.by_position(sum_runs(shared_value, num))


def _before(numbers: Ids, places: Ids) -> Ids:
    """Sums of the first `places` [m] numbers [n], 0 <= places <= n."""
    total = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(numbers)])
    out: Ids = total[places]
    return out
