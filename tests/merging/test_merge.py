"""Laws of a merge: it is a mean, of whoever has a score, and whoever else is merged moves no candidate's share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfalcon.merging.merge import SMALLEST_PROBABILITY, Calibration, Merge, logit, sigmoid
from mfalcon.types import MERGE_METHODS, NO_SCORE, Floats, MergeMethod, TaskInfo

TASKS = (TaskInfo("like", "binary", 1.0), TaskInfo("rating", "regression", 0.05))


def member(seed: int, num_candidates: int = 7, spread: float = 3.0) -> Floats:
    rng = np.random.default_rng(seed)
    raw = rng.normal(0, spread, num_candidates)
    return np.stack([sigmoid(raw), rng.normal(3.5, 1, num_candidates)]).astype(np.float32)


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_of_one_and_of_equals_it_is_what_they_say(method: MergeMethod) -> None:
    one = member(0)
    for members, weights in (([one], [0.3]), ([one, one, one], [1, 2, 5])):
        merged = Merge(method, TASKS)(members, weights)
        assert np.abs(merged.task_scores - one).max() <= 3e-7  # a float32 of 3.5 has steps of 2.4e-7
        assert np.abs(merged.scores - (one[0] + 0.05 * one[1])).max() <= 3e-7


def test_logits_probabilities_and_values_are_averaged() -> None:
    one, other = member(1), member(2)
    weights = [0.25, 0.75]
    by_logit = Merge("logit", TASKS)([one, other], weights).task_scores
    by_probability = Merge("probability", TASKS)([one, other], weights).task_scores
    p, q = one.astype(np.float64), other.astype(np.float64)
    odds = (p[0] / (1 - p[0])) ** 0.25 * (q[0] / (1 - q[0])) ** 0.75
    assert np.allclose(by_logit[0], odds / (1 + odds), rtol=0, atol=1e-7)
    assert np.allclose(by_probability[0], 0.25 * p[0] + 0.75 * q[0], rtol=0, atol=1e-7)
    for merged in (by_logit, by_probability):
        assert np.allclose(merged[1], 0.25 * p[1] + 0.75 * q[1], rtol=0, atol=3e-7)


@settings(deadline=None, max_examples=60)
@given(
    method=st.sampled_from(MERGE_METHODS),
    weights=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=5),
    num=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_only_shares_count_and_candidates_do_not_meet(
    method: MergeMethod, weights: list[float], num: int, seed: int
) -> None:
    members = [member(10 * seed + at, num) for at in range(len(weights))]
    members[0][:, num // 2] = NO_SCORE
    merge = Merge(method, TASKS, (Calibration(1.1, -0.2), Calibration(0.9, 0.4)))
    merged = merge(members, weights)
    assert len(merged.failed) == 0 and np.isfinite(merged.scores).all()
    scaled = merge(members[::-1], [7.5 * weight for weight in weights[::-1]])
    assert np.allclose(scaled.task_scores, merged.task_scores, rtol=0, atol=1e-6)
    order = np.random.default_rng(seed).permutation(num)[: num // 2 + 1]
    some = merge([scores[:, order] for scores in members], weights)
    assert np.array_equal(some.scores, merged.scores[order])
    rest = merge(members[1:], weights[1:])  # who has no score for a candidate has no say of it
    assert np.abs(rest.task_scores - merged.task_scores)[:, num // 2].max() <= 1e-6


def test_a_candidate_that_nobody_scores_has_no_score_and_comes_last() -> None:
    one, other = member(3), member(4)
    one[:, [0, 5]] = other[:, 5] = NO_SCORE
    merged = Merge("logit", TASKS)([one, other], [1, 1])
    assert merged.failed.tolist() == [5]
    assert merged.scores[5] == NO_SCORE and (merged.task_scores[:, 5] == NO_SCORE).all()
    assert merged.top(7)[-1] == 5
    assert merged.task_scores[0, 0] == pytest.approx(other[0, 0], abs=1e-7)


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_certainty_and_huge_values_stay_finite(method: MergeMethod) -> None:
    one = np.array([[0, 1, 1, 0.5], [1e30, -1e30, 3e38, 0]], dtype=np.float32)
    other = np.array([[0, 1, 0, 0.5], [1e30, -1e30, 3e38, 0]], dtype=np.float32)
    merged = Merge(method, TASKS)([one, other], [1, 1])
    assert np.isfinite(merged.task_scores).all() and len(merged.failed) == 0
    assert merged.task_scores[0].tolist() == pytest.approx([0, 1, 0.5, 0.5], abs=1e-6)
    beyond = Merge(method, TASKS, (Calibration(), Calibration(scale=10.0)))([one, other], [1, 1])
    assert beyond.failed.tolist() == [2]  # 3e39 is no float32


def test_the_blend_ranks_what_was_merged() -> None:
    one, other = member(5, 63), member(6, 63)
    merged = Merge("logit", TASKS)([one, other], [2, 1])
    blend = merged.task_scores[0].astype(np.float64) + 0.05 * merged.task_scores[1]
    assert np.abs(merged.scores - blend).max() <= 2e-7
    assert merged.top(10).tolist() == np.argsort(-merged.scores, kind="stable")[:10].tolist()


def test_a_calibration_is_of_the_logit() -> None:
    one = member(7)
    merged = Merge("probability", TASKS, (Calibration(2.0, 0.5), Calibration(0.5, 1.0)))([one], [1])
    raw = logit(one[0].astype(np.float64))
    assert np.allclose(merged.task_scores[0], 1 / (1 + np.exp(-(2 * raw + 0.5))), rtol=0, atol=1e-7)
    assert np.allclose(merged.task_scores[1], 0.5 * one[1] + 1, rtol=0, atol=3e-7)


def test_the_clip_is_the_step_of_a_float32_below_1() -> None:
    assert np.float32(1 - SMALLEST_PROBABILITY) == np.nextafter(np.float32(1), np.float32(0))
