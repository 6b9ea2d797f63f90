"""Classes of requests from text, and Poisson arrivals."""

import numpy as np
import pytest

from loadtest.load.search import search
from loadtest.load.traffic import Traffic, parse_traffic, poisson_arrivals
from mfalcon.errors import ConfigError


def test_a_class_is_read_from_text() -> None:
    big = parse_traffic("name=big,clients=2,candidates=16384,deadline-ms=4000,users=2,history=64")
    assert big == Traffic(name="big", clients=2, candidates=16_384, deadline_ms=4_000, users=2, history=64)
    assert parse_traffic("name=cold,clients=1,cold_share=1").cold_share == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name=big", "give either a rate or a number of clients"),
        ("rate=1,clients=1", "give either a rate or a number of clients"),
        ("rate=1,cold_share=1.1", "cold_share: got 1.1"),
        ("rate=1,candidates=0", "candidates: got 0"),
        ("rate=1,cancel_share=1.1", "cancel_share: got 1.1"),
        ("rate=nan", "rate: got nan"),
        ("rate=1,size=3", "size: got 3"),
        ("big", "big"),
    ],
)
def test_what_is_no_class_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_traffic(text)


def test_arrivals_are_a_poisson_process_of_the_seed() -> None:
    times = poisson_arrivals(100, 100, np.random.default_rng(1))
    assert np.array_equal(times, poisson_arrivals(100, 100, np.random.default_rng(1)))
    assert not np.array_equal(times[:10], poisson_arrivals(100, 100, np.random.default_rng(2))[:10])
    assert times[0] > 0 and times[-1] < 100
    gaps = np.diff(times)
    assert (gaps > 0).all()
    assert len(times) == pytest.approx(10_000, abs=500)  # five deviations
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)


def test_arrivals_fill_the_time_also_where_the_first_draw_is_too_short() -> None:
    ends = [poisson_arrivals(0.5, 100, np.random.default_rng(seed))[-1] for seed in range(200)]
    assert 96 < np.mean(ends) < 99


@pytest.mark.parametrize("limit", [37.0, 100.0, 1_234.0])
async def test_a_search_brackets_the_limit(limit: float) -> None:
    tried = []

    async def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    low, high = await search(100.0, holds, lowest=1.0, highest=10_000.0)
    assert low is not None and high is not None
    assert low <= limit < high <= low * 1.051
    assert len(tried) == len(set(tried)) <= 12


@pytest.mark.parametrize(
    ("always", "lowest", "highest", "max_runs", "found"),
    [
        (True, 0.0, 1e9, 4, (64.0, None)),
        (True, 0.0, 20.0, 12, (16.0, None)),
        (False, 0.0, 1e9, 4, (None, 1.0)),
        (False, 3.0, 1e9, 12, (None, 4.0)),
    ],
)
async def test_a_search_without_a_bracket_says_so(
    always: bool, lowest: float, highest: float, max_runs: int, found: tuple[float | None, float | None]
) -> None:
    async def holds(rate: float) -> bool:
        return always

    assert await search(8.0, holds, lowest=lowest, highest=highest, max_runs=max_runs) == found


def test_a_class_has_a_user_for_each_client_or_32() -> None:
    assert Traffic(clients=2).num_users == 2
    assert Traffic(rate=2).num_users == 32
    assert Traffic(rate=2, users=5).num_users == 5
