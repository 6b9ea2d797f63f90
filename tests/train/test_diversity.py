"""What is said of a diverse top, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from mfalcon.models.items import ItemTable
from mfalcon.rerank.likeness import Likeness
from mfalcon.train.diversity import Pool, Shown, show, strongest
from mfalcon.types import Rerank

KINDS = 3
ITEMS = ItemTable(np.arange(1, 61), ("",) * 60, {"kind": np.repeat(np.eye(KINDS, dtype=np.uint8), 20, axis=0)})
LIKENESS = Likeness(ITEMS)
ROWS = np.arange(1, 61)
SCORES = np.linspace(1, 0, 60, dtype=np.float32)
"""The first kind is best, then the second."""


def pool(*liked: int) -> Pool:
    return Pool(ROWS, SCORES, None, np.isin(ROWS, liked))


def test_by_score_all_are_of_one_kind() -> None:
    shown = show([pool(1, 2), pool(3)], LIKENESS, Rerank("dpp", 0.0))
    assert shown.ndcg == pytest.approx([1, 1 / 2])  # the third place is worth a half
    assert shown.diversity == pytest.approx([0, 0])
    assert shown.coverage == pytest.approx(10 / 60)


@pytest.mark.parametrize("method", ["mmr", "dpp"])
def test_at_full_strength_one_of_each_kind_comes_first(method: str) -> None:
    shown = show([pool(1, 21, 41)], LIKENESS, Rerank(method, 1.0))
    assert shown.ndcg == pytest.approx([1])
    assert shown.diversity[0] > 0.3
    assert show([pool(1, 21, 41)], LIKENESS, Rerank(method, 1.0, depth=10)).diversity == pytest.approx([0])


def test_fewer_than_ten_are_a_list_too() -> None:
    rows = np.array([1, 21])
    shown = show([Pool(rows, SCORES[:2], SCORES[:2], np.array([False, True]))], LIKENESS, Rerank("mmr", 0.5))
    assert shown.ndcg == pytest.approx([1 / np.log2(3)])
    assert shown.diversity == pytest.approx([1])
    assert shown.coverage == 1


def test_one_candidate_is_not_diverse() -> None:
    shown = show([Pool(ROWS[:1], SCORES[:1], None, np.array([True]))], LIKENESS, Rerank("mmr", 0.5))
    assert (shown.ndcg.tolist(), shown.diversity.tolist()) == ([1], [0])


def test_the_long_tail_is_counted_where_the_checkpoint_says_it() -> None:
    counts = np.where(ROWS <= 20, 100, 0)
    counted = Likeness(replace(ITEMS, num_events=counts))
    shown = [show([pool(1)], counted, Rerank("dpp", 0.0, 0, weight)).tail for weight in (0.0, 1.0)]
    assert shown == [0.0, 1.0]  # by score the first ten are of those 16 that have four fifths of all events
    assert show([pool(1)], LIKENESS, Rerank("dpp", 0.0)).tail is None


def test_the_most_diverse_that_costs_little_is_chosen() -> None:
    def of(ndcg: float, diversity: float) -> Shown:
        return Shown(np.array([ndcg, ndcg]), np.array([diversity, diversity]), 0.0)

    sweep = [(0.1, of(0.50, 0.6)), (0.2, of(0.496, 0.7)), (0.3, of(0.49, 0.8)), (0.4, of(0.51, 0.65))]

    def diversity(shown: Shown) -> float:
        return float(shown.diversity.mean())

    assert [strongest(least, sweep, diversity) for least in (0.5, 0.495, 0.49)] == [0.4, 0.2, 0.3]
    assert strongest(0.495, sweep[2:3], diversity) == 0.0
