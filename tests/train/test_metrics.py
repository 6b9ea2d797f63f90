"""Metrics against scikit-learn, on random and on tied scores."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from mfalcon.train.metrics import auc, gauc, ndcg_at, normalized_entropy

EXACT = 1e-10
"""Both sides compute in float64 over at most a few hundred rows; they differ in the order of sums only."""

Reals = NDArray[np.float64]


@st.composite
def rows(draw: st.DrawFn) -> tuple[NDArray[np.int64], Reals, Reals]:
    """Groups, binary labels and scores, the scores from few levels (many ties) or from many."""
    num_rows = draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 5, 1 << 40]))
    groups = 7 * rng.integers(0, draw(st.integers(1, 12)), num_rows) - 3
    labels = (rng.random(num_rows) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))).astype(np.float64)
    return groups, labels, (rng.integers(0, levels, num_rows) + 0.5) / levels


def both_classes(labels: Reals) -> bool:
    return bool(0 < labels.mean() < 1)


@given(rows())
def test_auc(data: tuple[NDArray[np.int64], Reals, Reals]) -> None:
    _, labels, scores = data
    if both_classes(labels):
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=EXACT)
    else:
        assert np.isnan(auc(labels, scores))


@given(rows())
def test_normalized_entropy(data: tuple[NDArray[np.int64], Reals, Reals]) -> None:
    _, labels, scores = data
    if both_classes(labels):
        base = np.full(len(labels), labels.mean())
        expected = log_loss(labels, scores) / log_loss(labels, base)
        assert normalized_entropy(labels, scores) == pytest.approx(expected, rel=EXACT)
        assert normalized_entropy(labels, base) == pytest.approx(1.0, rel=EXACT)
    else:
        assert np.isnan(normalized_entropy(labels, scores))


def test_normalized_entropy_clips() -> None:
    expected = -np.log(1e-7) / 2 / np.log(2)
    assert normalized_entropy([1, 0], [0.0, 0.0]) == pytest.approx(expected, rel=1e-6)


@given(rows())
def test_gauc(data: tuple[NDArray[np.int64], Reals, Reals]) -> None:
    groups, labels, scores = data
    mixed = [at for group in np.unique(groups) if both_classes(labels[at := groups == group])]
    if mixed:
        values = [roc_auc_score(labels[at], scores[at]) for at in mixed]
        expected = np.average(values, weights=[at.sum() for at in mixed])
        assert gauc(groups, labels, scores) == pytest.approx(expected, abs=EXACT)
    else:
        assert np.isnan(gauc(groups, labels, scores))


@given(rows(), st.sampled_from([1, 3, 10, 1000]))
def test_ndcg(data: tuple[NDArray[np.int64], Reals, Reals], k: int) -> None:
    groups, labels, scores = data
    # scikit-learn refuses a list of one; a second row that is scored last and gains nothing changes no NDCG.
    values = [
        ndcg_score([[*labels[at], 0.0]], [[*scores[at], -1.0]], k=k)
        for group in np.unique(groups)
        if labels[at := groups == group].any()
    ]
    if values:
        assert ndcg_at(groups, labels, scores, k) == pytest.approx(np.mean(values), abs=EXACT)
    else:
        assert np.isnan(ndcg_at(groups, labels, scores, k))


@given(rows(), st.integers(0, 2**32 - 1))
def test_order_of_rows_does_not_matter(data: tuple[NDArray[np.int64], Reals, Reals], seed: int) -> None:
    groups, labels, scores = data
    other = np.random.default_rng(seed).permutation(len(labels))
    for metric in (gauc, ndcg_at):
        same = metric(groups[other], labels[other], scores[other])
        assert same == pytest.approx(metric(groups, labels, scores), abs=EXACT, nan_ok=True)
    assert auc(labels[other], scores[other]) == pytest.approx(auc(labels, scores), abs=EXACT, nan_ok=True)


def test_groups_may_be_text() -> None:
    assert gauc(["a", "a", "b", "b"], [0, 1, 1, 0], [0.1, 0.2, 0.1, 0.2]) == 0.5


def test_nothing_is_nan_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan([auc([], []), gauc([], [], []), normalized_entropy([], []), ndcg_at([], [], [])]).all()


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 are NaN"):
        auc([0, 1], [0.5, float("nan")])
    with pytest.raises(ValueError, match="must be 0 or 1"):
        auc([0, 2], [0.5, 0.5])
