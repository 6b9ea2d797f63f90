"""The counters of a request, held to their definitions one candidate and one event at a time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mfalcon.features.counters import MOST_VALUE, VALUE_STEPS, Counts, LikeRule, count_for_request, value_steps
from mfalcon.features.standard import LARGEST
from mfalcon.features.tags import ItemTags
from mfalcon.models.config import RankerConfig, Task
from mfalcon.models.config_features import COUNTERS, CountersConfig, DenseFeature
from mfalcon.models.items import ItemTable
from mfalcon.types import Events, Ids
from tests.small import NOW_MS, random_events, small_config, small_items

CONFIG = CountersConfig(
    task="like",
    tags=("genres", "decade"),
    like_rate=0.4,
    mean_value=3.1,
    features=tuple(DenseFeature(name=name) for name in COUNTERS),
)
LIKE = LikeRule(4.0, 0)


def tags_of(items: ItemTable, row: int) -> set[tuple[str, int]]:
    if row == 0:
        return set()
    genres, decade = np.asarray(items.side["genres"][row - 1]), int(items.side["decade"][row - 1])
    return {("genres", int(tag)) for tag in np.flatnonzero(genres)} | ({("decade", decade)} if decade else set())


def by_hand(history: Events, items: ItemTable, row: int, item: Ids) -> list[float]:
    """The definition in the docstring of mfalcon.features.counters, in Python's own numbers."""
    values, n = [float(value) for value in history["value"]], len(history)
    user_mean = (math.fsum(values) + 3 * 3.1) / (n + 3)
    tags = tags_of(items, row)
    shared = [
        value
        for value, other in zip(values, items.rows(np.ascontiguousarray(history["item_id"])).tolist(), strict=True)
        for _ in tags & tags_of(items, other)
    ]
    return [
        math.log1p(n),
        (sum(value >= 4 for value in values) + 5 * 0.4) / (n + 5),
        user_mean,
        (math.fsum(shared) + 2 * 3.1) / (len(shared) + 2) - user_mean if n else 0.0,
        math.log1p(len(shared)),
        math.log1p((NOW_MS - int(history["time_ms"][-1])) / 1000) if n else 0.0,
        math.log1p(int(item[0])),
        (int(item[1]) + 5 * 0.4) / (int(item[0]) + 5),
        (int(item[2]) / VALUE_STEPS + 3 * 3.1) / (int(item[0]) + 3),
    ]


def counted(history: Events, items: ItemTable, rows: Ids, item_counts: Ids) -> Counts:
    own_rows = items.rows(np.ascontiguousarray(history["item_id"]))
    return count_for_request(history, own_rows, LIKE, ItemTags(items, CONFIG.tags), rows, NOW_MS, item_counts)


@pytest.mark.parametrize("length", [0, 1, 63])
def test_every_counter_is_what_its_definition_says(length: int) -> None:
    items, history = small_items(), random_events(length, seed=length)
    rows = np.arange(items.num_rows)
    rng = np.random.default_rng(1)
    item_counts = rng.integers(0, 1000, (len(rows), 3)) * np.array([1, 1, VALUE_STEPS])
    expected = [by_hand(history, items, row, item_counts[row]) for row in range(len(rows))]
    found = counted(history, items, rows, item_counts).numbers(CONFIG)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_candidates_count_alone() -> None:
    """Order, duplicates and neighbours move no candidate's numbers, to the bit."""
    items, history = small_items(), random_events(40, seed=2)
    rows = np.array([3, 0, 31, 3, 17, 9])
    item_counts = np.arange(18).reshape(6, 3)
    whole = counted(history, items, rows, item_counts).features(CONFIG)
    for at in range(len(rows)):
        alone = counted(history, items, rows[at : at + 1], item_counts[at : at + 1]).features(CONFIG)
        np.testing.assert_array_equal(whole[at : at + 1], alone)
    order = np.array([5, 2, 2, 0, 1])
    np.testing.assert_array_equal(
        counted(history, items, rows[order], item_counts[order]).features(CONFIG), whole[order]
    )


def test_the_most_extreme_events_give_finite_features() -> None:
    history = random_events(8)
    history["value"] = np.where(np.arange(8) % 2, -1, 1) * np.finfo(np.float32).max
    history["time_ms"] = 1
    assert np.abs(value_steps(history)).max() == MOST_VALUE * VALUE_STEPS
    items = small_items()
    most = np.full((items.num_rows, 3), np.iinfo(np.int64).max)
    features = counted(history, items, np.arange(items.num_rows), most).features(CONFIG)
    assert np.isfinite(features).all() and np.abs(features).max() <= LARGEST
    later = count_for_request(
        history, np.zeros(8, np.int64), LIKE, ItemTags(items, ()), np.zeros(1, np.int64), 0, most[:1]
    )
    assert later.numbers(CONFIG)[0, COUNTERS.index("user_idle")] == 0  # a request before its history


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=30), st.randoms())
@settings(max_examples=50, deadline=None)
def test_no_order_of_additions_moves_a_sum(values: list[float], random: object) -> None:
    events = random_events(len(values))
    events["value"] = values
    order = np.random.default_rng(len(values)).permutation(len(values))
    assert value_steps(events).sum() == value_steps(events[order]).sum()


def test_a_like_is_the_positive_label_of_the_task() -> None:
    events, actions = random_events(50), ("click", "like", "share")
    by_action = LikeRule.of_task(Task(name="acted", kind="binary", any_action=("click", "share")), actions)
    np.testing.assert_array_equal(by_action(events), (events["actions"] & 0b101) != 0)
    by_value = LikeRule.of_task(Task(name="like", kind="binary", value_at_least=4), actions)
    np.testing.assert_array_equal(by_value(events), events["value"] >= 4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"task": "rating"}, "none of the binary tasks"),
        ({"task": "nothing"}, "none of the binary tasks"),
        ({"tags": ("genres", "colour")}, "different ones of"),
        ({"tags": ("genres", "genres")}, "different ones of"),
        ({"features": CONFIG.features[1:]}, "must be"),
        ({"like_rate": 1.5}, "like_rate"),
        ({"max_events": 0}, "max_events"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(change: dict[str, object], told: str) -> None:
    fields = small_config().model_dump() | {"counters": CONFIG.model_dump() | change}
    with pytest.raises(ValidationError, match=told):
        RankerConfig.model_validate(fields)


def test_a_dense_feature_cannot_have_the_name_of_a_counter() -> None:
    fields = small_config().model_dump() | {"counters": CONFIG.model_dump(), "dense_features": [{"name": COUNTERS[8]}]}
    with pytest.raises(ValidationError, match="duplicate dense feature"):
        RankerConfig.model_validate(fields)
