"""Splits: the shares, the order, and the prototype's rule per user."""

import numpy as np
import pytest

from mfalcon.train.dataset import Dataset
from mfalcon.train.splits import TEST, TRAIN, VALIDATION, Split, split, split_a, split_b
from mfalcon.train.synthetic import synthetic


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return synthetic(77, 63, 21, seed=3)


def test_a_cuts_global_time(dataset: Dataset) -> None:
    part = split_a(dataset)
    num_events = len(part)
    assert np.all(np.diff(part) >= 0)
    assert np.count_nonzero(part == TRAIN) == int(0.8 * num_events)
    assert np.count_nonzero(part == TEST) == num_events - int(0.9 * num_events)


def test_b_cuts_every_history(dataset: Dataset) -> None:
    part = split_b(dataset)
    for index in range(len(dataset.user_ids)):
        of_user = part[dataset.of_user(index)]
        count = len(of_user)
        expected = [
            TEST if rank >= count * 0.9 else VALIDATION if rank >= count * 0.8 else TRAIN for rank in range(count)
        ]
        assert of_user.tolist() == expected


@pytest.mark.parametrize("kind", ["A", "B"])
def test_split_by_name(dataset: Dataset, kind: Split) -> None:
    part = split(dataset, kind)
    assert part.dtype == np.int8
    assert np.array_equal(part, {"A": split_a, "B": split_b}[kind](dataset))


def test_ml100k_figures(ml100k: Dataset) -> None:
    part = split(ml100k, "A")
    assert np.bincount(part).tolist() == [80_000, 10_000, 10_000]
    test_users, train_users = np.unique(ml100k.user[part == TEST]), np.unique(ml100k.user[part == TRAIN])
    assert len(test_users) == 166
    assert round(np.isin(ml100k.user[part == TEST], train_users).mean(), 2) == 0.14
