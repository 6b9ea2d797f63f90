"""The item table against a dict."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.models.texts import Texts

INT64 = st.integers(-(2**63), 2**63 - 1)


def table(ids: list[int]) -> ItemTable:
    return ItemTable(np.array(ids, dtype=np.int64), tuple(f"title {i}" for i in ids), {})


@given(st.one_of(st.sets(INT64), st.sets(st.integers(0, 40))), st.lists(st.one_of(INT64, st.integers(-1, 41))))
def test_rows_are_what_a_dict_says(ids: set[int], wanted: list[int]) -> None:
    items = table(sorted(ids))
    oracle = {item_id: row for row, item_id in enumerate(sorted(ids), start=1)}
    queries = wanted + sorted(ids)
    rows = items.rows(np.array(queries, dtype=np.int64))
    assert rows.dtype == np.int64
    assert rows.tolist() == [oracle.get(item_id, UNKNOWN_ROW) for item_id in queries]
    assert items.num_rows == len(ids) + 1
    for item_id in queries[:5]:
        assert items.title(item_id) == (f"title {item_id}" if item_id in oracle else "")


def test_an_empty_table_knows_nothing() -> None:
    items = table([])
    assert items.num_rows == 1
    assert items.rows(np.array([0, 1, 2**62], dtype=np.int64)).tolist() == [0, 0, 0]
    assert items.rows(np.empty(0, dtype=np.int64)).tolist() == []
    assert items.title(5) == ""


@pytest.mark.parametrize("ids", [[2, 1], [1, 1], [5, -5], [2**63 - 1, -(2**63)]])
def test_ids_ascend_strictly(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="strictly ascending"):
        table(ids)


def test_the_full_range_of_ids_ascends() -> None:
    """The difference of the ends does not fit an int64."""
    assert table([-(2**63), 2**63 - 1]).num_rows == 3


def test_columns_have_a_row_per_item() -> None:
    ids = np.arange(3, dtype=np.int64)
    with pytest.raises(ValueError, match="titles: got 2, there are 3 items"):
        ItemTable(ids, ("a", "b"), {})
    with pytest.raises(ValueError, match="side feature year: got 4 rows, there are 3 items"):
        ItemTable(ids, ("a", "b", "c"), {"year": np.zeros(4, dtype=np.int64)})


def test_texts_of_known_items() -> None:
    named = ItemTable(np.array([1, 5, 9]), ("",) * 3, {}, texts=Texts.of(["é", "b\U0001f600", "c"]))
    assert named.texts_of(np.array([9, 2, 5, 1, 9])) == ("c", "", "b\U0001f600", "é", "c")
    assert table([1, 5]).texts_of(np.array([1])) == ()
    with pytest.raises(ValueError, match="texts: got 2, there are 3 items"):
        ItemTable(np.array([1, 5, 9]), ("",) * 3, {}, texts=Texts.of(["a", "b"]))


def test_texts_that_do_not_fit_together() -> None:
    for end in ([2, 1], [-1, 3], [1, 2], [1, 4]):
        with pytest.raises(ValueError, match="their ends must ascend"):
            Texts(np.frombuffer(b"abc", dtype=np.uint8), np.array(end))
    with pytest.raises(ValueError, match="must be uint8 and int64"):
        Texts(np.zeros(1, dtype=np.uint8), np.array([1.0]))
    with pytest.raises(ValueError, match="one ends within a character"):
        Texts(np.frombuffer("aé".encode(), dtype=np.uint8), np.array([2, 3]))
    with pytest.raises(UnicodeDecodeError):
        Texts(np.frombuffer(b"a\xff", dtype=np.uint8), np.array([1, 2]))
    assert len(Texts.of([])) == 0
