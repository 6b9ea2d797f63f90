"""Entropy by Lempel and Ziv: of order, of chance, and of which symbols."""

import numpy as np
import pytest

from mfalcon.errors import DataError
from mfalcon.planner.entropy import entropy_of, relative_entropy
from mfalcon.train.synthetic import synthetic


def test_order_has_none_and_chance_has_all() -> None:
    rng = np.random.default_rng(0)
    assert relative_entropy(np.zeros(50, dtype=np.int64)) == 0
    assert relative_entropy(np.array([], dtype=np.int64)) == 0
    assert relative_entropy(np.tile([0, 1, 2], 100)) < 0.2
    assert 0.85 < relative_entropy(rng.integers(0, 4, 300)) < 1.15


def test_what_is_between_lies_between() -> None:
    rng = np.random.default_rng(1)
    chance, order = rng.integers(0, 4, 300), np.tile([0, 1, 2, 3], 75)
    mixed = np.where(rng.random(300) < 0.3, chance, order)
    assert relative_entropy(order) < relative_entropy(mixed) < relative_entropy(chance)


def test_names_of_symbols_do_not_matter() -> None:
    sequence = np.random.default_rng(2).integers(0, 5, 200)
    assert relative_entropy(sequence) == relative_entropy(7 * sequence + 3)


def test_items_that_come_again_are_the_symbol() -> None:
    dataset = synthetic(30, 10, 60, seed=0)
    value, symbol = entropy_of(dataset, np.arange(30))
    assert symbol == "item"
    assert 0.5 < value < 1.2


def test_items_that_never_come_again_are_not() -> None:
    dataset = synthetic(30, 5_000, 40, seed=0)
    _, symbol = entropy_of(dataset, np.arange(30))
    assert symbol.startswith(dataset.side_features[0].name)
    assert "value" in symbol


def test_too_short_histories_are_refused() -> None:
    with pytest.raises(DataError, match="no user has 20 events"):
        entropy_of(synthetic(5, 50, 1, seed=0), np.arange(5))
