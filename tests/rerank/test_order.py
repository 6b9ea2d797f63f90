"""The order of an answer: nothing is added or dropped, only the best move, and without strength nothing does."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mfalcon.best_first import best_first
from mfalcon.rerank.likeness import SimilarTo, of_length_1
from mfalcon.rerank.order import DEFAULT_DEPTH, METHODS, reranked, standardised
from mfalcon.types import NO_SCORE, RERANK_METHODS, Floats, Positions, Rerank

methods = pytest.mark.parametrize("method", METHODS)


def among_kinds(kinds: Sequence[int]) -> Callable[[Positions], SimilarTo]:
    """Candidates of one kind are the same, those of two have nothing in common."""
    one_hot = np.eye(max(kinds, default=0) + 1, dtype=np.float32)[list(kinds)]
    return among(one_hot)


def among(vectors: NDArray[np.generic]) -> Callable[[Positions], SimilarTo]:
    def likeness(positions: Positions) -> SimilarTo:
        unit = of_length_1(vectors[positions])
        return lambda position: unit @ unit[position]

    return likeness


def scores_of(*values: float) -> Floats:
    return np.array(values, dtype=np.float32)


SCORES = st.lists(
    st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.5, NO_SCORE, -1e30, 3e38])), min_size=1, max_size=30
)


@methods
@given(data=st.data())
def test_the_best_change_places_and_nothing_else(method: str, data: st.DataObject) -> None:
    scores = scores_of(*data.draw(SCORES))
    kinds = data.draw(st.lists(st.integers(0, 3), min_size=len(scores), max_size=len(scores)))
    top_k, depth = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 40))
    wish = Rerank(method, data.draw(st.floats(0, 1)), depth)
    top, by_score = reranked(scores, None, top_k, wish, among_kinds(kinds)), best_first(scores, len(scores))
    assert len(top) == min(top_k, len(scores)) and top.dtype == np.uint32
    assert len(set(top.tolist())) == len(top)
    num_moved = min(depth, np.count_nonzero(scores != NO_SCORE))
    assert set(top[:num_moved].tolist()) <= set(by_score[:num_moved].tolist())
    assert top[num_moved:].tolist() == by_score[num_moved:top_k].tolist()


@methods
@given(scores=SCORES, top_k=st.integers(0, 40))
def test_no_strength_is_the_order_of_the_scores(method: str, scores: list[float], top_k: int) -> None:
    values = scores_of(*scores)
    top = reranked(values, None, top_k, Rerank(method, 0.0), among_kinds([0] * len(values)))
    assert top.tolist() == best_first(values, top_k).tolist()


@methods
def test_unlike_ones_are_moved_up(method: str) -> None:
    scores, kinds = scores_of(0.1, 0.9, 0.8, 0.7, 0.2), [0, 1, 1, 1, 2]
    assert reranked(scores, None, 3, Rerank(method, 0.9), among_kinds(kinds)).tolist() == [1, 4, 0]
    assert reranked(scores, None, 3, Rerank(method, 0.9, depth=3), among_kinds(kinds)).tolist() == [1, 2, 3]
    in_order = [1, 2, 3, 4, 0] if method == "msd" else [1, 4, 2, 3, 0]  # whose set of four is shown best first
    assert reranked(scores, None, 5, Rerank(method, 0.9, depth=4), among_kinds(kinds)).tolist() == in_order


@methods
def test_depth_has_a_default(method: str) -> None:
    num = DEFAULT_DEPTH + 2
    scores, kinds = np.linspace(1, 0, num, dtype=np.float32), [0] * (num - 2) + [1, 2]
    top = reranked(scores, None, num, Rerank(method, 0.9), among_kinds(kinds))
    assert top[-2:].tolist() == [num - 2, num - 1]


@methods
def test_a_candidate_twice_is_two_of_one_kind(method: str) -> None:
    """Both are answered, and the second one is not worth a place at the top."""
    scores = scores_of(0.9, 0.5, 0.9)
    assert reranked(scores, None, 2, Rerank(method, 0.9), among_kinds([0, 1, 0])).tolist() == [0, 1]
    assert sorted(reranked(scores, None, 3, Rerank(method, 0.9), among_kinds([0, 1, 0])).tolist()) == [0, 1, 2]


@methods
def test_those_without_a_score_are_last(method: str) -> None:
    scores = scores_of(NO_SCORE, 0.5, NO_SCORE, 0.4, 0.3)
    top = reranked(scores, None, 5, Rerank(method, 1.0), among_kinds([1, 0, 2, 0, 3])).tolist()
    assert top[:3] == ([1, 3, 4] if method == "msd" else [1, 4, 3]) and top[3:] == [0, 2]


def test_what_a_request_may_name_is_what_there_is() -> None:
    assert (*METHODS, "llm") == RERANK_METHODS


def test_scores_are_measured_by_their_own_spread() -> None:
    scores = scores_of(0.2, NO_SCORE, 0.4, 0.9)
    values = standardised(scores)[scores != NO_SCORE]
    assert values.mean() == pytest.approx(0) and values.std() == pytest.approx(1)
    assert standardised(scores_of(-1.6, NO_SCORE, -0.2, 3.3))[[0, 2, 3]] == pytest.approx(values, rel=1e-5)
    assert not standardised(scores_of(0.7, 0.7)).any()
    assert np.isfinite(standardised(scores_of(3e38, -3e38))).all()


def test_probabilities_are_measured_by_their_logits() -> None:
    p = scores_of(0.0, 0.5, 0.9, 1.0)
    values = standardised(p, p)
    assert np.isfinite(values).all() and np.all(np.diff(values) > 0)
    logit = np.log(0.9 / 0.1)
    assert (values[2] - values[1]) / (values[3] - values[1]) == pytest.approx(
        logit / np.log((1 - 1e-7) / 1e-7), rel=1e-4
    )
