"""Named lives of a simulated fleet, each a traffic with what happens to the replicas meanwhile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from simpy import Environment

from loadtest.scale.acts import Visits, acts, histories
from loadtest.scale.costs import Costs
from loadtest.scale.fleet import FleetOptions, SimFleet
from loadtest.scale.outcome import Ended, Summary, summary
from loadtest.scale.play import Player
from loadtest.scale.thread import Doing
from mfalcon.errors import ConfigError

Fault = Literal["none", "kill", "deploy"]
ALL = ("steady", "kill", "deploy", "hot")
"""Names of scenarios."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """fault: at `fault_s` one replica is killed and comes back cold after `restart_s`, or all are deployed, one after
    the other. warm_s: of the beginning, which is in no figure.
    """

    name: str = "steady"
    fleet: FleetOptions = field(default_factory=lambda: FleetOptions(redis_bytes=4 << 30))
    visits: Visits = field(default_factory=lambda: Visits(rate=40.0, seconds=240.0))
    deadline_s: float = 1.0
    fault: Fault = "none"
    fault_s: float = 120.0
    restart_s: float = 20.0
    drain_s: float = 10.0
    warm_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Phase:
    """A time of the run and what became of the requests that ended in it."""

    name: str
    figures: Summary


@dataclass(frozen=True, slots=True)
class SimResult:
    """utilisation: of the replicas' computing cores. redis_*: bytes of states, held at the end, read, written."""

    scenario: Scenario
    asked: int
    requests: Sequence[Ended]
    phases: Sequence[Phase]
    utilisation: float
    redis_bytes: int
    redis_sent: int
    redis_received: int


def named(name: str, fleet: FleetOptions, visits: Visits) -> Scenario:
    """Raises ConfigError for a name that is not in `ALL`."""
    third = visits.seconds / 3
    times = {"warm_s": third / 2, "fault_s": third, "restart_s": third / 8, "drain_s": 5.0}
    if name not in ALL:
        raise ConfigError(f"scenario: got {name!r}, must be one of {', '.join(ALL)}")
    fault: Mapping[str, Fault] = {"kill": "kill", "deploy": "deploy"}
    return Scenario(name, fleet, visits, fault=fault.get(name, "none"), **times)


def run(scenario: Scenario, costs: Costs) -> SimResult:
    """A function of the scenario and its seed."""
    env = Environment()
    fleet = SimFleet(env, costs, scenario.fleet)
    player = Player(env, fleet, scenario.deadline_s, histories(scenario.visits))
    env.process(player.open(acts(scenario.visits)))
    faults = env.process(_faults(env, fleet, scenario))
    fault_over: list[float] = []
    faults.callbacks.append(lambda _: fault_over.append(env.now))
    env.run()
    end = max(scenario.visits.seconds, fault_over[0])
    work = sum(cores.work_s for cores in set(fleet.cores))
    redis = fleet.redis
    return SimResult(
        scenario,
        player.asked,
        fleet.ended,
        _phases(scenario, fleet.ended, fault_over[0], end),
        work / env.now / scenario.fleet.num_replicas,
        redis.states.num_bytes if redis else 0,
        redis.sent if redis else 0,
        redis.received if redis else 0,
    )


def _phases(scenario: Scenario, ended: Sequence[Ended], over: float, end: float) -> list[Phase]:
    if scenario.fault == "none":
        return [Phase("all", summary(ended, scenario.warm_s, end))]
    times = (("before", scenario.warm_s, scenario.fault_s), ("during", scenario.fault_s, over), ("after", over, end))
    return [Phase(name, summary(ended, begin, stop)) for name, begin, stop in times]


def _faults(env: Environment, fleet: SimFleet, scenario: Scenario) -> Doing:
    if scenario.fault == "none":
        return
    yield env.timeout(scenario.fault_s)
    if scenario.fault == "kill":
        fleet.kill(0)
        yield env.timeout(scenario.restart_s)
        fleet.start(0)
        return
    for number in range(scenario.fleet.num_replicas):
        yield from fleet.deploy(number, scenario.drain_s, scenario.restart_s)
