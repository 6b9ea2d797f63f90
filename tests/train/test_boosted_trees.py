"""Boosted trees as a baseline: what they learn from, and what they may not look at."""

import numpy as np
from numpy.typing import NDArray

from mfalcon.train.boosted_trees import boosted_trees, known_of
from mfalcon.train.dataset import Dataset
from mfalcon.train.metrics import auc, normalized_entropy
from mfalcon.train.sequences import labels
from mfalcon.train.splits import TEST, TRAIN, VALIDATION, split

ROWS = 3_000


def parts() -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows to fit, to choose by, and to test."""
    part = np.arange(ROWS) % 3
    return part == 0, part == 1, part == 2


def exclusive(noise: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features of which one alone says nothing, and a label that is right but for a share of the rows."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(ROWS, 4))
    wrong = rng.random(ROWS) < noise
    return features, (((features[:, 0] > 0) ^ (features[:, 1] > 0)) ^ wrong).astype(np.float64)


def test_learns_what_no_weighted_sum_can() -> None:
    features, label = exclusive(noise=0.1)
    fit, choose, test = parts()
    chance = boosted_trees(features, label, fit, choose)
    assert auc(label[test], features[test, 0]) < 0.55
    assert auc(label[test], chance[test]) > 0.85


def test_stops_before_it_knows_the_noise_by_heart() -> None:
    features, label = exclusive(noise=0.3)
    fit, choose, _ = parts()
    by_choice, of_all = (boosted_trees(features, label, fit, rows, max_trees=300) for rows in (choose, fit))
    # each tree betters the rows that it learns from, so by their own loss all are taken
    assert normalized_entropy(label[fit], of_all[fit]) < normalized_entropy(label[fit], by_choice[fit]) - 0.05
    assert normalized_entropy(label[choose], of_all[choose]) > normalized_entropy(label[choose], by_choice[choose])


def test_no_label_of_another_row_is_looked_at() -> None:
    features, label = exclusive(noise=0.3)
    fit, choose, test = parts()
    expected = boosted_trees(features, label, fit, choose, max_trees=40)
    label[test] = 1 - label[test]
    np.testing.assert_array_equal(boosted_trees(features, label, fit, choose, max_trees=40), expected)


def test_an_unknown_number_is_no_number_and_may_say_much() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(ROWS) < 0.5).astype(np.float64)
    features = np.where(label[:, None] > 0, np.nan, rng.normal(size=(ROWS, 1)))
    fit, choose, test = parts()
    assert auc(label[test], boosted_trees(features, label, fit, choose, max_trees=20)[test]) == 1


def test_reads_what_is_known_of_user_and_item(ml100k: Dataset) -> None:
    known = known_of(ml100k)
    assert known.shape == (len(ml100k.events), 4)
    at = int(np.flatnonzero(ml100k.items.item_id == 50)[0])  # Star Wars (1977)
    year = ml100k.side_features[1].vocabulary.index("1975-1979")
    assert ml100k.items.side["year"][at] == year + 1
    rows = np.flatnonzero(ml100k.events["item_id"] == 50)
    assert (known[rows, 3] == year).all()
    np.testing.assert_array_equal(known[:, 0], ml100k.user_context["age"][ml100k.user])


def test_orders_better_than_the_item_means(ml100k: Dataset) -> None:
    """Without counters it knows the user's group and the item's age alone: .60 where chance is .50."""
    part = split(ml100k, "A")
    like = labels(ml100k, ml100k.tasks)[:, 0].astype(np.float64)
    chance = boosted_trees(known_of(ml100k), like, part == TRAIN, part == VALIDATION, max_trees=60)
    assert auc(like[part == TEST], chance[part == TEST]) > 0.57
