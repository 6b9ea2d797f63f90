"""Both greedy methods, held to their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mfalcon.rerank.greedy import Reals, dpp, mmr, msd
from mfalcon.rerank.likeness import of_length_1
from mfalcon.rerank.order import METHODS, Greedy
from mfalcon.types import Floats, Ids

greedy = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def similar(vectors: NDArray[np.generic], method: Greedy, relevance: Reals, num_picks: int, strength: float) -> Ids:
    unit: Floats = of_length_1(vectors)
    return method(relevance, lambda position: unit @ unit[position], num_picks, strength)


def drawn(seed: int, num: int, dim: int) -> tuple[Reals, Reals]:
    """Relevance, best first, and vectors."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.standard_normal(num))[::-1].copy(), rng.standard_normal((num, dim))


@given(seed=st.integers(0, 2**32), strength=st.floats(0.05, 0.95))
def test_dpp_takes_the_largest_determinant_each_time(seed: int, strength: float) -> None:
    relevance, vectors = drawn(seed, 9, 12)
    q = np.exp((1 - strength) / strength * relevance)
    unit = of_length_1(vectors).astype(np.float64)
    kernel, picks = q[:, None] * (unit @ unit.T) * q, list[int]()
    for pick in similar(vectors, dpp, relevance, 5, strength).tolist():
        others = [one for one in range(9) if one not in picks]
        log_det = {one: np.linalg.slogdet(kernel[np.ix_([*picks, one], [*picks, one])])[1] for one in others}
        assert log_det[pick] == pytest.approx(max(log_det.values()), abs=1e-3)
        picks.append(pick)


@given(seed=st.integers(0, 2**32), strength=st.floats(0.05, 1))
def test_mmr_takes_the_largest_margin_each_time(seed: int, strength: float) -> None:
    relevance, vectors = drawn(seed, 9, 3)
    unit, picks = of_length_1(vectors), list[int]()
    for pick in similar(vectors, mmr, relevance, 9, strength).tolist():
        others = [one for one in range(9) if one not in picks]
        most = {one: max([0.0, *(float(unit[one] @ unit[other]) for other in picks)]) for one in others}
        margin = {one: (1 - strength) * relevance[one] - strength * most[one] for one in others}
        assert margin[pick] == pytest.approx(max(margin.values()), abs=1e-6)
        picks.append(pick)


@given(seed=st.integers(0, 2**32), strength=st.floats(0, 1))
def test_msd_makes_a_set_that_no_single_pick_of_its_greed_could_better(seed: int, strength: float) -> None:
    """Each pick is the one by which mean relevance and mean unlikeness of pairs grow the most; shown best first."""
    relevance, vectors = drawn(seed, 9, 3)
    unit, num_picks = of_length_1(vectors).astype(np.float64), 4

    def objective(chosen: list[int]) -> float:
        pairs = [1 - unit[a] @ unit[b] for at, a in enumerate(chosen) for b in chosen[at + 1 :]]
        unlikeness = float(sum(pairs)) * 2 / (num_picks * (num_picks - 1))
        return (1 - strength) * float(relevance[chosen].sum()) / num_picks + strength * unlikeness

    chosen = list[int]()
    for _ in range(num_picks):
        others = [one for one in range(9) if one not in chosen]
        chosen.append(max(others, key=lambda one: objective([*chosen, one])))
    picks = similar(vectors, msd, relevance, num_picks, strength).tolist()
    assert picks == sorted(picks) and objective(picks) == pytest.approx(objective(chosen), abs=1e-5)


@pytest.mark.parametrize("strength", [0.0, 5e-324, 1e-310, 1.0])
def test_dpp_takes_nobody_twice_at_the_least_strength(strength: float) -> None:
    """Half of the least number above 0 is 0, and 0 times the log of what is explained would be no number."""
    relevance = np.array([2.0, 1.0, 0.0])
    assert similar(np.eye(3), dpp, relevance, 3, strength).tolist() == [0, 1, 2]
    assert similar(np.ones((3, 3)), dpp, relevance, 3, strength).tolist() == [0, 1, 2]


@greedy
@given(data=st.data())
def test_picks_are_different_candidates(data: st.DataObject, method: Greedy) -> None:
    num, dim = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
    relevance, vectors = drawn(data.draw(st.integers(0, 2**32)), num, dim)
    vectors[data.draw(st.lists(st.integers(0, num - 1)))] = data.draw(st.sampled_from([0.0, 1.0]))
    picks = similar(vectors, method, relevance, num_picks := data.draw(st.integers(1, num)), data.draw(st.floats(0, 1)))
    assert len(picks) == num_picks and len(np.unique(picks)) == num_picks
    assert np.all((picks >= 0) & (picks < num))


@greedy
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_among_equals_the_first_is_picked(method: Greedy, strength: float) -> None:
    for vectors in (np.ones((6, 2)), np.zeros((6, 2))):
        assert similar(vectors, method, np.zeros(6), 6, strength).tolist() == [0, 1, 2, 3, 4, 5]


@greedy
def test_one_of_each_kind_comes_first_at_full_strength(method: Greedy) -> None:
    kinds = np.repeat(np.eye(4), 3, axis=0)
    picks = similar(kinds, method, np.linspace(1, -1, 12), 4, 1.0)
    assert picks.tolist() == [0, 3, 6, 9]


def test_what_dpp_cannot_tell_apart_follows_by_relevance() -> None:
    """Rank 2: after two picks nothing is left of the others. Relevance so large would overflow a kernel with q."""
    relevance, vectors = drawn(0, 200, 2)
    picks = similar(vectors, dpp, 1e3 * relevance, 200, 0.001).tolist()
    assert picks[2:] == sorted(set(range(200)) - set(picks[:2]))


@pytest.mark.parametrize("dim", [2, 18, 82])
def test_dpp_stops_at_the_rank_and_not_far_behind(dim: int) -> None:
    relevance, vectors = drawn(1, 400, dim)
    picks = similar(vectors, dpp, relevance, 400, 1.0).tolist()
    unit = of_length_1(vectors).astype(np.float64)
    assert np.linalg.matrix_rank(unit[picks[:dim]], tol=1e-3) == dim
    assert picks[dim:] == sorted(picks[dim:])
