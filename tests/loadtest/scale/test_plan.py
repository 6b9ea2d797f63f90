"""The arithmetic of docs/scaling.md, and that the page is what it makes."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from loadtest.load.visit_times import HOTTEST_CYCLE_S, visit_times
from loadtest.scale.costs import as_json, load_costs
from loadtest.scale.fit import fitted
from loadtest.scale.gaps import DAY_S, Gaps
from loadtest.scale.page import rewritten
from loadtest.scale.plan import Demand, Plan, Site, even_bandwidth, even_tokens
from mfalcon.errors import ConfigError
from tests.loadtest.scale.made_up import FREE, USUAL

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "loadtest" / "results"


def test_parts_are_found_in_wholes() -> None:
    parts = (2e-3, 3e-5, 1e-8)
    features = [(1, m, m * n) for m in (8, 500) for n in (64, 512, 2_048)]
    wholes = [sum(map(math.prod, zip(parts, row, strict=True))) for row in features]
    assert fitted(features, wholes) == pytest.approx(parts, rel=1e-3)
    known = [parts[0]] * len(features)
    assert fitted([row[1:] for row in features], wholes, known) == pytest.approx(parts[1:], rel=1e-3)


def test_a_part_that_would_be_negative_is_nothing() -> None:
    assert fitted([(1, 1), (1, 2), (1, 3)], [3.0, 2.0, 1.0])[1] == 0.0


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(as_json(USUAL))
    assert load_costs(tmp_path / "costs.json") == USUAL
    (tmp_path / "costs.json").write_text(as_json(USUAL).replace('"host_s"', '"host_ms"'))
    with pytest.raises(ConfigError, match="no costs of requests"):
        load_costs(tmp_path / "costs.json")


@pytest.mark.parametrize("visits_a_day", [3.0, 30.0])
def test_gaps_are_those_of_the_visits(visits_a_day: float) -> None:
    """4 visits a cycle, whose mean is told by the user's rank: here 1 over the share of the most frequent user."""
    gaps = Gaps(visits_a_day)
    exponent = math.log2(4 * DAY_S / visits_a_day / HOTTEST_CYCLE_S)
    visits = visit_times(np.random.default_rng(3), 2, exponent, 0.0)
    drawn = np.array([later - earlier for earlier, later in pairwise(next(visits) for _ in range(40_000))])
    assert drawn.mean() == pytest.approx(gaps.mean_s, rel=0.04)  # three deviations of such a mean
    for seconds in (5.0, 60.0, 200.0, 600.0, 3_600.0, 40_000.0):
        assert (drawn <= seconds).mean() == pytest.approx(gaps.hit_rate(seconds), abs=0.01)
        assert np.minimum(drawn, seconds).mean() / gaps.mean_s == pytest.approx(gaps.held(seconds), rel=0.04)
        assert gaps.held(gaps.kept_s(gaps.held(seconds))) == pytest.approx(gaps.held(seconds))
    assert gaps.kept_s(1.0) == math.inf


def test_twice_the_users_need_twice_the_machines() -> None:
    one, two = (Plan(USUAL, Demand(users=users), Site()) for users in (1e7, 2e7))
    assert two.cores == pytest.approx(2 * one.cores)
    assert two.shares == pytest.approx(one.shares)
    assert two.state_bytes == pytest.approx(2 * one.state_bytes)


def test_the_plan_is_where_its_cores_give_its_cores() -> None:
    plan = Plan(USUAL, Demand(users=1e7), Site())
    assert sum(plan.shares.values()) == pytest.approx(1)
    assert plan.cores == pytest.approx(plan.demand.rate * plan.visit_s / plan.site.utilisation)


def test_without_memory_states_gain_nothing() -> None:
    plan = Plan(USUAL, Demand(users=1e7), Site(pool_bytes=0.0, state_ttl_s=0.0))
    assert plan.shares["none"] == pytest.approx(1)
    assert plan.ratio == pytest.approx(1)


def test_longer_histories_gain_more() -> None:
    site = Site(pool_bytes=1e12)
    ratios = [Plan(USUAL, Demand(users=1e6, history=history), site).ratio for history in (100, 1_000, 4_000)]
    assert 1 < ratios[0] < ratios[1] < ratios[2]


def test_a_fetch_that_costs_more_than_encoding_is_not_made() -> None:
    dear = replace(USUAL, bandwidth=1e3)
    plan = Plan(dear, Demand(users=1e7), Site())
    assert plan.shares["redis"] == 0
    assert Plan(USUAL, Demand(users=1e7), Site()).shares["redis"] > 0


def test_where_fetching_breaks_even() -> None:
    costs = replace(FREE, encode=((1, 1e-4),), latency_s=0.01)
    even = even_bandwidth(costs, 1_000)
    assert even == pytest.approx(6_000 * 1_000 / (0.1 - 0.01))
    assert even_bandwidth(costs, 100) is None  # 10 ms to encode, and as many until the first byte
    assert even_tokens(costs, 6e7) is None  # no faster than encoding
    tokens = even_tokens(costs, 1e9)
    assert tokens is not None
    assert tokens * 1e-4 == pytest.approx(0.01 + tokens * 6_000 / 1e9, abs=1e-4)


def test_the_page_is_what_the_costs_make_of_it() -> None:
    """Otherwise: mfalcon bench scale-page."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    files = (RESULTS / f"scale-{name}.json" for name in ("costs", "check", "simulated"))
    assert rewritten(page, *files) == page


def test_a_table_that_nobody_knows_is_refused() -> None:
    files = (RESULTS / f"scale-{name}.json" for name in ("costs", "check", "simulated"))
    with pytest.raises(ConfigError, match="got 'weather'"):
        rewritten("<!-- table: weather -->\n\n<!-- end -->", *files)
