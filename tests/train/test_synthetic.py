"""Synthetic data: the shape of ML-100K, the same for the same seed, and something to learn in it."""

import numpy as np
import pytest

from mfalcon.train.baselines import item_mean, logistic_user_item
from mfalcon.train.dataset import Dataset
from mfalcon.train.metrics import auc
from mfalcon.train.splits import split
from mfalcon.train.synthetic import synthetic


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return synthetic(943, 1682, 106, seed=0)


def test_same_kinds_as_ml100k(dataset: Dataset, ml100k: Dataset) -> None:
    assert dataset.actions == ml100k.actions
    assert dataset.tasks == ml100k.tasks
    assert dataset.blend == ml100k.blend
    assert [(f.name, f.kind) for f in dataset.side_features] == [(f.name, f.kind) for f in ml100k.side_features]
    assert [(f.name, f.num_values, f.derive) for f in dataset.context_features] == [
        (f.name, f.num_values, f.derive) for f in ml100k.context_features
    ]
    assert dataset.user_context.keys() == ml100k.user_context.keys()
    assert dataset.user.dtype == ml100k.user.dtype
    assert dataset.events.dtype == ml100k.events.dtype


def test_codes_are_in_range(dataset: Dataset) -> None:
    for side in dataset.side_features:
        column = dataset.items.side[side.name]
        if side.kind == "tags":
            assert column.shape == (len(dataset.items.item_id), len(side.vocabulary))
        else:
            assert 0 == column.min() <= column.max() <= len(side.vocabulary)
    for context in dataset.context_features:
        if context.derive is None:
            codes = dataset.user_context[context.name]
            assert len(codes) == len(dataset.user_ids)
            assert 0 <= codes.min() <= codes.max() < context.num_values
    assert np.all(dataset.items.rows(np.ascontiguousarray(dataset.events["item_id"])) > 0)


def test_shape_of_the_histories(dataset: Dataset) -> None:
    history_len = np.bincount(dataset.user, minlength=len(dataset.user_ids))
    assert history_len.min() >= 1
    assert history_len.mean() == pytest.approx(106, rel=0.1)
    assert np.median(history_len) < 0.8 * history_len.mean()
    order = np.argsort(dataset.user, kind="stable")
    user, time_ms = dataset.user[order], dataset.events["time_ms"][order]
    ties = (user[1:] == user[:-1]) & (time_ms[1:] == time_ms[:-1])
    assert 0.45 < ties.mean() < 0.55
    key = list(zip(dataset.events["time_ms"], dataset.user, dataset.events["item_id"], strict=True))
    assert key == sorted(key)


def test_there_is_something_to_learn(dataset: Dataset) -> None:
    part = split(dataset, "B")
    fit, test = part == 0, part == 2
    item = dataset.items.rows(np.ascontiguousarray(dataset.events["item_id"]))
    label = (dataset.events["value"] >= 4).astype(np.float64)
    assert 0.5 < label.mean() < 0.6
    of_item = auc(label[test], item_mean(item, label, fit)[test])
    of_both = auc(label[test], logistic_user_item(dataset.user, item, label, fit)[test])
    assert 0.6 < of_item < of_both < 0.9


def test_seed_decides() -> None:
    one, same, other = (synthetic(20, 30, 7, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.events, same.events)
    assert not np.array_equal(one.events, other.events)


@pytest.mark.parametrize(("num_users", "num_items", "events_per_user"), [(1, 1, 1), (3, 2, 1), (2, 5, 63)])
def test_small(num_users: int, num_items: int, events_per_user: int) -> None:
    dataset = synthetic(num_users, num_items, events_per_user, seed=0)
    assert set(dataset.user.tolist()) == set(range(num_users))
