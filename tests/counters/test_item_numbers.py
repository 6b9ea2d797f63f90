"""The table of items holds what a dict of Python's would, whatever the ids are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfalcon.counters.increments import INCREMENT_DTYPE, counted, merged, numbers
from mfalcon.counters.item_numbers import ITEM_BYTES, ItemNumbers
from mfalcon.features.counters import LikeRule, value_steps
from mfalcon.types import Ids
from tests.small import random_events

IDS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3) | st.integers(0, 100).map(lambda n: n << 40)
BATCHES = st.lists(st.lists(IDS, max_size=40, unique=True), max_size=20)


def some(ids: list[int], seed: int) -> tuple[Ids, Ids]:
    rng = np.random.default_rng(seed)
    return np.array(ids, dtype=np.int64), rng.integers(-(10**12), 10**12, (len(ids), 3))


@given(BATCHES)
@settings(max_examples=60, deadline=None)
def test_it_adds_and_reads_as_a_dict_does(batches: list[list[int]]) -> None:
    table, truth = ItemNumbers(10**6), dict[int, Ids]()
    for seed, batch in enumerate(batches):
        ids, added = some(batch, seed)
        assert table.add(ids, added).all()
        for item, numbers_of in zip(batch, added, strict=True):
            truth[item] = truth.get(item, np.zeros(3, np.int64)) + numbers_of
        asked = np.array([*truth, 12345, 12345], dtype=np.int64)
        zeros = np.zeros(3, np.int64)
        np.testing.assert_array_equal(table.read(asked), [truth.get(int(item), zeros) for item in asked])
    found_ids, found = table.content()
    expected = sorted(item for item, value in truth.items() if value.any())
    assert found_ids.tolist() == expected
    np.testing.assert_array_equal(found, np.reshape([truth[item] for item in expected], (-1, 3)))


def test_it_grows_and_gives_up_what_is_zero_again() -> None:
    table = ItemNumbers(10**6)
    for first in range(0, 20_000, 500):
        ids = np.arange(first, first + 500) * 2**20
        table.add(ids, np.ones((500, 3), dtype=np.int64))
        table.add(ids, -np.ones((500, 3), dtype=np.int64))
    assert len(table) < 2_000 and len(table.content()[0]) == 0
    ids = np.arange(20_000) * 2**20
    table.add(ids, np.ones((20_000, 3), dtype=np.int64))
    assert len(table) == 20_000 and table.num_bytes <= 4 * ITEM_BYTES * 20_000
    assert (table.read(ids) == 1).all()


def test_what_is_read_is_a_copy() -> None:
    table, ids = ItemNumbers(10), np.array([5, 6])
    table.add(ids, np.ones((2, 3), dtype=np.int64))
    before = table.read(ids)
    table.add(ids, np.ones((2, 3), dtype=np.int64))
    assert (before == 1).all()


def test_items_beyond_the_limit_are_left_out_and_others_still_count() -> None:
    table = ItemNumbers(3)
    assert table.add(np.array([1, 2]), np.ones((2, 3), dtype=np.int64)).all()
    assert table.add(np.array([2, 3, 4]), np.ones((3, 3), dtype=np.int64)).tolist() == [True, True, False]
    assert table.read(np.array([1, 2, 3, 4]))[:, 0].tolist() == [1, 2, 1, 0]


@pytest.mark.parametrize("length", [0, 1, 63])
def test_increments_are_sums_by_item(length: int) -> None:
    events, like = random_events(length, seed=3), LikeRule(4.0, 0)
    added = counted(events, like)
    assert added.dtype == INCREMENT_DTYPE and len(np.unique(added["item_id"])) == len(added)
    for row, of_item in zip(added, numbers(added), strict=True):
        chosen = events[events["item_id"] == row["item_id"]]
        assert of_item.tolist() == [len(chosen), like(chosen).sum(), value_steps(chosen).sum()]
    halves = np.concatenate([counted(events[: length // 2], like), counted(events[length // 2 :], like)])
    np.testing.assert_array_equal(merged(halves), added)
