"""The simulation against what is known without one."""

import math
from dataclasses import replace

import numpy as np
import pytest
from simpy import Environment

from loadtest.load.trace import TraceOptions, trace
from loadtest.scale.acts import Visits, acts, acts_of
from loadtest.scale.fleet import FleetOptions, SimFleet
from loadtest.scale.play import Player
from loadtest.scale.scenario import ALL, Scenario, SimResult, named, run
from mfalcon.errors import ConfigError
from tests.loadtest.scale.made_up import FREE, USUAL

SMALL = FleetOptions(num_replicas=4, pool_bytes=100 * USUAL.page_bytes, redis_bytes=300e6, bound=1.25)
VISITS = Visits(rate=60, seconds=45, num_users=300, max_history=1_024, candidates=100)
ALONE = FleetOptions(num_replicas=1, slice_s=math.inf)


@pytest.fixture(scope="module")
def results() -> dict[str, SimResult]:
    return {name: run(named(name, SMALL, VISITS), USUAL) for name in ALL}


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_waiting_is_that_of_one_server_with_equal_service(load: float) -> None:
    """M/D/1: a request waits load * service / (2 * (1 - load)) on average, and then is served."""
    service = 0.01
    costs = replace(FREE, call=((1, service),))
    visits = Visits(rate=load / service, seconds=300, num_users=50, append_share=0.0)
    result = run(Scenario(fleet=ALONE, visits=visits, deadline_s=math.inf), costs)
    times = [one.ended - one.began for one in result.requests]
    assert np.mean(times) == pytest.approx(service + load * service / (2 * (1 - load)), rel=0.05)
    assert result.utilisation == pytest.approx(load, rel=0.03)


@pytest.mark.parametrize("name", ALL)
def test_every_request_ends_once(name: str, results: dict[str, SimResult]) -> None:
    result = results[name]
    ranks = sum(act.candidates > 0 for act in acts(result.scenario.visits))
    assert result.asked == ranks == len(result.requests)
    assert all(one.ended >= one.began for one in result.requests)


def test_the_same_seed_is_the_same_run(results: dict[str, SimResult]) -> None:
    assert run(named("kill", SMALL, VISITS), USUAL).requests == results["kill"].requests
    other = run(named("kill", SMALL, replace(VISITS, seed=1)), USUAL)
    assert other.requests != results["kill"].requests


def test_a_kill_moves_a_quarter_and_its_return_brings_them_back(results: dict[str, SimResult]) -> None:
    result = results["kill"]
    of = {phase.name: phase.figures for phase in result.phases}
    fault_s, back_s = result.scenario.fault_s, result.scenario.fault_s + result.scenario.restart_s
    during = [one for one in result.requests if one.began > fault_s and one.ended < back_s]
    assert during and all(one.replica != 0 for one in during)
    assert any(one.replica == 0 for one in result.requests if one.began > back_s)
    lost = sum(phase.figures.counts["failed"] for phase in result.phases)
    assert lost == 0  # one retry elsewhere is enough for one failure
    assert of["after"].share("host") <= of["before"].share("host")


def test_a_deploy_of_all_loses_nothing(results: dict[str, SimResult]) -> None:
    assert sum(one.outcome == "failed" for one in results["deploy"].requests) == 0
    assert [phase.name for phase in results["deploy"].phases] == ["before", "during", "after"]


def test_what_redis_holds_is_fetched_when_a_replica_is_cold(results: dict[str, SimResult]) -> None:
    deployed = {phase.name: phase.figures for phase in results["deploy"].phases}
    assert deployed["during"].counts["redis"] > 0
    without = run(named("deploy", replace(SMALL, redis_bytes=None), VISITS), USUAL)
    assert all(one.outcome != "redis" for one in without.requests)
    encoded = [sum(one.encoded for one in result.requests) for result in (results["deploy"], without)]
    assert encoded[0] < encoded[1]


def test_a_hot_user_spills_by_bounded_load() -> None:
    visits = replace(VISITS, rate=100, hot_share=0.8, append_share=0.0)
    share = {}
    for bound in (1.25, math.inf):
        result = run(named("hot", replace(SMALL, bound=bound), visits), USUAL)
        owners = [one.replica for one in result.requests]
        share[bound] = max(owners.count(number) for number in range(4)) / len(owners)
    assert share[1.25] < 0.6 < share[math.inf]


def test_more_than_there_is_time_for_is_refused() -> None:
    costs = replace(FREE, call=((1, 0.02),))
    visits = Visits(rate=100, seconds=30, num_users=50, append_share=0.0)
    scenario = Scenario(fleet=replace(ALONE, slice_s=0.008), visits=visits, deadline_s=0.1, warm_s=5)
    [phase] = run(scenario, costs).phases
    assert phase.figures.per_second == pytest.approx(50, rel=0.03)  # all that one core can do
    assert phase.figures.counts["refused"] > 0.4 * phase.figures.total
    assert phase.figures.p99_s <= 0.1
    assert phase.figures.counts["late"] == 0


def test_the_trace_is_played_by_clients_in_a_closed_loop() -> None:
    options = TraceOptions(num_users=40, num_requests=300, delete_share=0.0, edit_share=0.0)
    env = Environment()
    fleet = SimFleet(env, USUAL, replace(SMALL, shared_cores=2.0, redis_bytes=None, bound=math.inf))
    player = Player(env, fleet, math.inf, np.zeros(0, dtype=np.int64))
    env.process(player.closed(acts_of(trace(options)), clients=8))
    env.run()
    assert len(fleet.ended) == player.asked == 300
    seen: set[int] = set()
    for one in fleet.ended:
        assert (one.outcome == "none") == (one.user not in seen)  # nothing is evicted, and every user sticks
        seen.add(one.user)


def test_an_unknown_scenario_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be one of steady"):
        named("storm", SMALL, VISITS)
