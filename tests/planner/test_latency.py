"""The law of latency: prices found again, never negative; and a real engine that is asked."""

import numpy as np
import pytest

from mfalcon.models.config import RankerConfig
from mfalcon.planner.grid import PROBES, Reach
from mfalcon.planner.latency import LatencyLaw, counted, measure, memory_of
from mfalcon.train.dataset import Dataset
from mfalcon.train.synthetic import synthetic

REACH = Reach()


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return synthetic(20, 60, 30, seed=0)


def configs(dataset: Dataset) -> tuple[list[RankerConfig], list[RankerConfig]]:
    return [s.model(dataset) for s in REACH.shapes(PROBES)], [s.model(dataset) for s in REACH.space]


PRICES = np.array([3e-4, 2e-5, 8e-12, 6e-12, 2e-10, 1e-9])


@pytest.mark.parametrize("num_candidates", [1, 100, 16_384])
def test_prices_are_found_again(dataset: Dataset, num_candidates: int) -> None:
    probes, others = configs(dataset)
    rng = np.random.default_rng(0)
    seconds = np.array([counted(c, num_candidates) @ PRICES * (1 + rng.normal(0, 0.01)) for c in probes])
    law = LatencyLaw(probes, seconds, num_candidates)
    for config in others:
        assert law.seconds(config) == pytest.approx(counted(config, num_candidates) @ PRICES, rel=0.1)


def test_more_work_never_costs_less(dataset: Dataset) -> None:
    probes, _ = configs(dataset)
    law = LatencyLaw(probes, np.random.default_rng(1).uniform(1e-3, 2e-3, len(probes)), 1_000)
    small, large = (Reach(dim=dim, max_history=n).shapes(((2, 1, 1, 1.0),))[0] for dim, n in ((32, 64), (64, 128)))
    assert 0 < law.seconds(small.model(dataset)) <= law.seconds(large.model(dataset))


def test_flops_are_those_of_the_paper(dataset: Dataset) -> None:
    [shape] = REACH.shapes(((2, 1, 1 / 2, 1.0),))
    config = shape.model(dataset)
    m, n, d = 7, 100, 64
    _, layers, linear, attention, silus, numbers = counted(config, m)
    assert (layers, numbers) == (2, m * d)
    assert linear == 2 * m * 10 * d * d
    assert attention == 2 * m * 4 * d * (n + 1)
    assert silus == 2 * m * n * 2


def test_an_engine_is_asked(dataset: Dataset) -> None:
    small, large = Reach(dim=16, max_history=16).shapes(((1, 1, 1, 1.0), (2, 1, 1, 1.0)))
    found = measure(dataset, {s.name: s.model(dataset) for s in (small, large)}, 50, 1, rounds=3)
    assert set(found) == {small.name, large.name}
    assert all(0 < seconds < 10 for seconds in found.values())


def test_memory_is_counted(dataset: Dataset) -> None:
    [one, two] = Reach(dim=16, max_history=32).shapes(((1, 1, 1, 1.0), (2, 1, 1, 1.0)))
    of_one, of_two = (memory_of(dataset, shape.model(dataset)) for shape in (one, two))
    assert of_one.state_bytes == 32 * (8 + 2 * 16 * 4)
    assert of_two.state_bytes == 32 * (8 + 2 * 2 * 16 * 4)
    assert of_two.parameters > of_one.parameters > 0
