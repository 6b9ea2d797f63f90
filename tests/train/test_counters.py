"""The counters of a data set are those that each of its events would have counted as a request, to the last unit."""

from dataclasses import fields, replace

import numpy as np
import pytest

from mfalcon.features.counters import Counts, LikeRule, count_for_request, value_steps
from mfalcon.features.tags import ItemTags
from mfalcon.models.config_features import COUNTERS, CountersConfig
from mfalcon.train.counters import count_events, counters_config
from mfalcon.train.dataset import Dataset
from mfalcon.train.splits import TRAIN, split
from mfalcon.train.synthetic import synthetic
from mfalcon.types import Events

DATASET = synthetic(17, 40, 19, seed=5)
IS_TRAINING = split(DATASET, "A") == TRAIN


def config_of(dataset: Dataset = DATASET, max_events: int = 4_096) -> CountersConfig:
    config = counters_config(dataset, split(dataset, "A") == TRAIN, is_strict=True, max_events=max_events)
    assert config is not None
    return config


def as_requests(dataset: Dataset, config: CountersConfig, *, is_strict: bool) -> list[Counts]:
    """Each event as a request that knows what came before it."""
    like, tags = LikeRule(4.0, 0), ItemTags(dataset.items, config.tags)
    out = []
    for at in range(len(dataset.events)):
        time_ms = int(dataset.events["time_ms"][at])
        before = np.flatnonzero(dataset.events["time_ms"] < time_ms) if is_strict else np.arange(at)
        history = dataset.events[before[dataset.user[before] == dataset.user[at]]][-config.max_events :]
        item = dataset.events["item_id"][at : at + 1]
        of_item = dataset.events[before][dataset.events["item_id"][before] == item]
        counts = np.array([[len(of_item), like(of_item).sum(), value_steps(of_item).sum()]])
        rows = dataset.items.rows(np.ascontiguousarray(history["item_id"]))
        out.append(count_for_request(history, rows, like, tags, dataset.items.rows(item), time_ms, counts))
    return out


@pytest.mark.parametrize("max_events", [3, 4_096])
@pytest.mark.parametrize("is_strict", [True, False])
def test_running_sums_count_what_requests_count(is_strict: bool, max_events: int) -> None:
    config = config_of(max_events=max_events)
    found = count_events(DATASET, LikeRule(4.0, 0), config, is_strict=is_strict)
    expected = as_requests(DATASET, config, is_strict=is_strict)
    for field in fields(Counts):
        column = [int(np.ravel(getattr(one, field.name))[0]) for one in expected]
        np.testing.assert_array_equal(getattr(found, field.name), column, err_msg=field.name)
    features = np.concatenate([one.features(config) for one in expected])
    np.testing.assert_array_equal(found.features(config), features)


def with_events(events: Events) -> Dataset:
    return replace(DATASET, events=events, user=DATASET.user[: len(events)])


def test_nothing_later_is_counted() -> None:
    """Neither what an event is itself nor what follows it moves what it counts."""
    config, half = config_of(), len(DATASET.events) // 2
    like, whole = LikeRule(4.0, 0), count_events(DATASET, LikeRule(4.0, 0), config, is_strict=True)
    edited = DATASET.events[: half + 1].copy()
    edited["value"][half] = 1 + edited["value"][half] % 5
    cut = count_events(with_events(edited), like, config, is_strict=True)
    for field in fields(Counts):
        np.testing.assert_array_equal(getattr(cut, field.name), getattr(whole, field.name)[: half + 1])


def test_the_recipe_standardises_over_training_events_alone() -> None:
    config = config_of()
    assert config.task == "like" and config.tags == ("genres",)
    assert config.like_rate == pytest.approx((DATASET.events["value"][IS_TRAINING] >= 4).mean())
    features = count_events(DATASET, LikeRule(4.0, 0), config, is_strict=True).features(config)[IS_TRAINING]
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(0), 1, atol=1e-5)
    later = DATASET.events.copy()
    later["value"][~IS_TRAINING] = 1
    assert config_of(replace(DATASET, events=later)) == config


def test_data_without_tags_or_likes() -> None:
    bare = replace(DATASET, side_features=(), items=replace(DATASET.items, side={}))
    config = config_of(bare)
    assert config.tags == ()
    counts = count_events(bare, LikeRule(4.0, 0), config, is_strict=False)
    assert not counts.tag_events.any() and np.isfinite(counts.features(config)).all()
    assert np.isfinite(counts.features(config)[:, COUNTERS.index("user_tag_value")]).all()
    only_values = replace(DATASET, tasks=DATASET.tasks[1:])
    assert counters_config(only_values, IS_TRAINING, is_strict=True) is None
    empty = replace(DATASET, events=DATASET.events[:0], user=DATASET.user[:0])
    assert len(count_events(empty, LikeRule(4.0, 0), config_of(), is_strict=True).events) == 0
