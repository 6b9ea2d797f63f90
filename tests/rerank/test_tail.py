"""The long tail: what is rare, by how much, and that a tail weight lifts it among the best and nowhere else."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.rerank.likeness import SimilarTo
from mfalcon.rerank.order import METHODS, reranked
from mfalcon.rerank.tail import UNCOUNTED, long_tail, num_events, rarity
from mfalcon.types import NO_SCORE, Ids, Positions, Rerank

methods = pytest.mark.parametrize("method", METHODS)


def counted(*counts: int) -> ItemTable:
    return ItemTable(np.arange(len(counts)), ("",) * len(counts), {}, np.array(counts, dtype=np.int64))


def unlike(positions: Positions) -> SimilarTo:
    """Every candidate is like itself alone."""
    return lambda position: (np.arange(len(positions)) == position).astype(np.float32)


def of(counts: list[int]) -> Callable[[Positions], Ids]:
    return lambda positions: np.array(counts)[positions]


def test_counts_are_those_of_the_rows() -> None:
    assert num_events(counted(5, 0, 7), np.array([3, 1, UNKNOWN_ROW, 2])).tolist() == [7, 5, UNCOUNTED, 0]
    assert num_events(counted(), np.array([UNKNOWN_ROW, UNKNOWN_ROW])).tolist() == [UNCOUNTED, UNCOUNTED]


def test_the_tail_is_what_the_popular_leave_of_the_events() -> None:
    assert long_tail(counted(1, 60, 9, 30)).tolist() == [False, True, False, True, False]
    assert long_tail(counted(80, 20)).tolist() == [False, False, True]
    assert long_tail(counted()).tolist() == [False]


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=30))
def test_the_rarer_the_more_and_all_in_one_scale(counts: list[int]) -> None:
    values = rarity(np.array(counts))
    assert np.isfinite(values).all()
    order = np.argsort(counts, kind="stable")
    assert (np.diff(values[order]) <= 1e-12).all()
    if len(set(np.log1p(counts))) > 1:
        assert values.mean() == pytest.approx(0, abs=1e-6) and values.std() == pytest.approx(1)


def test_what_is_unknown_is_neither_rare_nor_popular() -> None:
    assert rarity(np.array([UNCOUNTED, 0, 100])).tolist() == pytest.approx([0, 1, -1])
    assert rarity(np.array([UNCOUNTED, UNCOUNTED])).tolist() == [0, 0]
    assert rarity(np.array([3, 3, UNCOUNTED])).tolist() == [0, 0, 0]


@methods
def test_without_strength_it_is_the_order_of_score_and_rarity(method: str) -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, NO_SCORE], dtype=np.float32)
    counts = of([1_000, 1_000, 1_000, 0, 0])
    tops = [
        reranked(scores, None, 5, Rerank(method, 0.0, depth, weight), unlike, counts).tolist()
        for weight, depth in ((0.0, 0), (0.5, 0), (1.0, 0), (1.0, 3))
    ]
    assert tops == [[0, 1, 2, 3, 4], [0, 1, 3, 2, 4], [0, 3, 1, 2, 4], [0, 1, 2, 3, 4]]


@methods
@given(data=st.data())
def test_the_best_change_places_and_nothing_else(method: str, data: st.DataObject) -> None:
    num = data.draw(st.integers(1, 30))
    scores = np.array(data.draw(st.lists(st.floats(0, 1, width=32), min_size=num, max_size=num)), dtype=np.float32)
    counts = data.draw(st.lists(st.integers(UNCOUNTED, 2**62), min_size=num, max_size=num))
    wish = Rerank(method, data.draw(st.floats(0, 1)), data.draw(st.integers(1, 40)), data.draw(st.floats(0, 1)))
    top_k = data.draw(st.integers(0, 40))
    top, by_score = reranked(scores, None, top_k, wish, unlike, of(counts)), np.argsort(-scores, kind="stable")
    assert len(top) == min(top_k, num) and len(set(top.tolist())) == len(top)
    assert set(top[: wish.depth].tolist()) <= set(by_score[: wish.depth].tolist())
    assert top[wish.depth :].tolist() == by_score[wish.depth : top_k].tolist()


@methods
@given(seed=st.integers(0, 2**32), weight=st.floats(0, 1), strength=st.floats(0, 1))
def test_a_weight_lets_no_place_of_a_rare_item_sink(method: str, seed: int, weight: float, strength: float) -> None:
    """Where nothing is like another, more weight never puts the one rare item further down."""
    rng = np.random.default_rng(seed)
    scores, rare = rng.random(20, dtype=np.float32), int(rng.integers(20))
    counts = np.full(20, 50)
    counts[rare] = 0
    places = [
        reranked(scores, None, 20, Rerank(method, strength, 0, w), unlike, of(counts.tolist())).tolist().index(rare)
        for w in (weight / 2, weight)
    ]
    if strength < 1:  # diversity alone has no eye for it
        assert places[1] <= places[0]
