"""Items with their titles, as people are shown them."""

from dataclasses import replace

import numpy as np
import pytest

from mfalcon.engine.listing import NO_ITEMS, listed
from mfalcon.types import ItemsRequest
from tests.small import small_items

TABLE = small_items()
NOBODY = np.empty(0, dtype=np.int64)


def test_titles_of_known_and_unknown_items() -> None:
    wanted = np.array([TABLE.item_id[5], 2**53 + 1, TABLE.item_id[3], 2**62, TABLE.item_id[5]])
    items = listed(TABLE, ItemsRequest("", wanted))
    assert np.array_equal(items.item_ids, wanted) and items.num_items == len(TABLE.item_id)
    assert items.titles == ("Ítem 5", "", "", f"Ítem {len(TABLE.item_id) - 1}", "Ítem 5")


@pytest.mark.parametrize("num", [1, 7, 1_000])
def test_a_sample_repeats_nothing_and_is_its_seeds(num: int) -> None:
    one, again, other = (listed(TABLE, ItemsRequest("", NOBODY, num, seed)).item_ids for seed in (3, 3, 4))
    assert len(one) == len(set(one.tolist())) == min(num, len(TABLE.item_id)) and set(one) <= set(TABLE.item_id)
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_what_was_acted_on_more_often_is_sampled_more_often() -> None:
    counts = np.zeros(len(TABLE.item_id), dtype=np.int64)
    counts[11] = 10**9
    table = replace(TABLE, num_events=counts)
    for seed in range(20):
        assert listed(table, ItemsRequest("", NOBODY, 1, seed)).item_ids.tolist() == [int(TABLE.item_id[11])]


def test_no_items_at_all() -> None:
    items = listed(NO_ITEMS, ItemsRequest("", np.array([7]), 5))
    assert (items.item_ids.tolist(), items.titles, items.num_items) == ([7], ("",), 0)
