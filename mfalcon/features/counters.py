"""The streaming counters: what each of them is, once, for the trainer, the evaluator and the server.

A request for candidates at a time reads nine numbers of each. Six are of the user, from the newest
`CountersConfig.max_events` events of the visible history, which is the acknowledged history followed by the request's
recent events: a function of the history alone, so every replica, the trainer and the evaluator agree. Three are of the
item, from `ItemCounts`: what all users had done with it before. With k likes of n events and a sum of values v:

    user_events      ln(1 + n)
    user_like_rate   (k + like_weight * like_rate) / (n + like_weight)
    user_mean_value  (v + value_weight * mean_value) / (n + value_weight)
    user_tag_value   (v_tag + tag_weight * mean_value) / (n_tag + tag_weight) - user_mean_value
    user_tag_events  ln(1 + n_tag)
    user_idle        ln(1 + seconds since the newest event), 0 of an empty history
    item_events, item_like_rate, item_mean_value: the first three, of the item's events

An event that shares several tags with the candidate counts once for each of them in n_tag and v_tag. What is counted
are whole numbers, so that no order of additions and no deletion moves a sum: a value counts in steps of 1/1024, up to a
million.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mfalcon.features.standard import standard
from mfalcon.features.tags import ItemTags
from mfalcon.models.config import RankerConfig, Task
from mfalcon.models.config_features import CountersConfig
from mfalcon.types import Events, Floats, Ids

VALUE_STEPS = 1_024
"""Of a value of 1."""
MOST_VALUE = 1 << 20
"""An event counts as no more, of either sign. 2**33 events of it fit a sum of int64."""


@dataclass(frozen=True, slots=True)
class LikeRule:
    """Which events are likes: a value of at least `value_at_least`, or, where that is None, one of the actions of a
    bitmask.
    """

    value_at_least: float | None
    actions: int

    @staticmethod
    def of(config: RankerConfig) -> "LikeRule":
        """That of a model with counters: the label of the task that its counters name."""
        assert config.counters is not None
        [task] = [task for task in config.tasks if task.name == config.counters.task]
        return LikeRule.of_task(task, config.actions)

    @staticmethod
    def of_task(task: Task, actions: tuple[str, ...]) -> "LikeRule":
        """The positive label of a binary task over an action vocabulary."""
        return LikeRule(task.value_at_least, sum(1 << actions.index(action) for action in task.any_action))

    def __call__(self, events: Events) -> NDArray[np.bool_]:
        """bool [num_events]."""
        if self.value_at_least is not None:
            liked: NDArray[np.bool_] = events["value"] >= self.value_at_least
            return liked
        acted: NDArray[np.bool_] = (events["actions"] & np.uint32(self.actions)) != 0
        return acted


def value_steps(events: Events) -> Ids:
    """What the values of events count as: int64 [num_events], in steps of 1 / VALUE_STEPS."""
    values = np.clip(events["value"].astype(np.float64), -MOST_VALUE, MOST_VALUE)
    return np.rint(values * VALUE_STEPS).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted for each of n candidates: every field is int64 [n], or [] where it is the same for all.

    events, likes, value: of the user's events. tag_events, tag_value: of those that share tags with the candidate.
    idle_ms: since the newest one, 0 without any. item_events, item_likes, item_value: of the item. Values are in steps.
    """

    events: Ids
    likes: Ids
    value: Ids
    tag_events: Ids
    tag_value: Ids
    idle_ms: Ids
    item_events: Ids
    item_likes: Ids
    item_value: Ids

    def numbers(self, config: CountersConfig) -> NDArray[np.float64]:
        """The nine counters of each candidate, [n, 9], as defined above."""
        like_prior = config.like_weight * config.like_rate
        value_prior = config.value_weight * config.mean_value
        user_mean = (self.value / VALUE_STEPS + value_prior) / (self.events + config.value_weight)
        tag_mean = (self.tag_value / VALUE_STEPS + config.tag_weight * config.mean_value) / (
            self.tag_events + config.tag_weight
        )
        columns = (
            np.log1p(self.events),
            (self.likes + like_prior) / (self.events + config.like_weight),
            user_mean,
            np.where(self.events > 0, tag_mean - user_mean, 0.0),
            np.log1p(self.tag_events),
            np.log1p(np.maximum(self.idle_ms, 0) / 1000),
            np.log1p(self.item_events),
            (self.item_likes + like_prior) / (self.item_events + config.like_weight),
            (self.item_value / VALUE_STEPS + value_prior) / (self.item_events + config.value_weight),
        )
        return np.stack(np.broadcast_arrays(*columns), axis=-1)

    def features(self, config: CountersConfig) -> Floats:
        """What a model reads of them: float32 [n, 9]."""
        numbers = self.numbers(config)
        return np.stack([standard(feature, numbers[:, at]) for at, feature in enumerate(config.features)], axis=1)


def count_for_request(
    history: Events, rows: Ids, like: LikeRule, tags: ItemTags, candidates: Ids, time_ms: int, item_counts: Ids
) -> Counts:
    """What a request counts.

    history: the newest events that count, at most `max_events`. rows: their item rows, [num_events]. candidates: item
    rows, [n]. item_counts: int64 [n, 3], events, likes and value of each candidate's item (`ItemCounters.read`).
    """
    values = value_steps(history)
    tag_events, tag_value = tags.shared(rows, values, candidates)
    idle_ms = time_ms - int(history["time_ms"][-1]) if len(history) else 0
    return Counts(
        events=np.array(len(history)),
        likes=np.array(np.count_nonzero(like(history))),
        value=np.array(values.sum()),
        tag_events=tag_events,
        tag_value=tag_value,
        idle_ms=np.array(idle_ms),
        item_events=item_counts[:, 0],
        item_likes=item_counts[:, 1],
        item_value=item_counts[:, 2],
    )
