"""Named lives of a simulated fleet, each a traffic with what happens to the replicas meanwhile."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from simpy import Environment

from loadtest.report.table import Part, Table
from loadtest.scale.acts import Act, Visits, acts, histories
from loadtest.scale.costs import Costs
from loadtest.scale.fleet import FleetOptions, SimFleet
from loadtest.scale.outcome import ANSWERED, Ended, Outcome, Summary, summary
from loadtest.scale.play import Player
from loadtest.scale.thread import Doing
from mfalcon.errors import ConfigError

Lengths = NDArray[np.int64]
"""[num_users] events that users come with."""
Fault = Literal["none", "kill", "deploy"]
TARGET_UTILISATION = 0.6
"""Of the cores: what is left is for bursts, a failure and a deploy."""
_LOST: tuple[Outcome, ...] = ("refused", "late", "failed")
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
    """utilisation: CPU seconds a second and replica, without the beginning. redis_*: bytes of states, held at the end,
    read, written.
    """

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


def run(scenario: Scenario, costs: Costs, others: tuple[Iterable[Act], Lengths] | None = None) -> SimResult:
    """A function of the scenario and its seed. others: acts and lengths of histories in place of the scenario's."""
    env = Environment()
    fleet = SimFleet(env, costs, scenario.fleet)
    played, lengths = others or (acts(scenario.visits), histories(scenario.visits))
    player = Player(env, fleet, scenario.deadline_s, lengths)
    env.process(player.open(played))
    faults = env.process(_faults(env, fleet, scenario))
    fault_over: list[float] = []
    faults.callbacks.append(lambda _: fault_over.append(env.now))
    machines = set(fleet.cores)
    begun: list[float] = []

    def begin() -> Doing:
        yield env.timeout(scenario.warm_s)
        begun.append(sum(cores.spent_s for cores in machines))

    env.process(begin())
    env.run()
    end = max(scenario.visits.seconds, fault_over[0])
    work, lasted = sum(cores.spent_s for cores in machines) - begun[0], env.now - scenario.warm_s
    redis = fleet.redis
    return SimResult(
        scenario,
        player.asked,
        fleet.ended,
        _phases(scenario, fleet.ended, fault_over[0], end),
        work / lasted / scenario.fleet.num_replicas if lasted else 0.0,
        redis.states.num_bytes if redis else 0,
        redis.sent if redis else 0,
        redis.received if redis else 0,
    )


def simulation_page(result: SimResult, costs: Costs) -> Iterator[Part]:
    """What was simulated on which costs, a row for each phase, the replicas that the traffic needs, and Redis."""
    scenario, seconds = result.scenario, result.scenario.visits.seconds
    yield (
        f"{scenario.name}: {scenario.fleet.num_replicas} replicas, {result.asked:,} ranks in {seconds:,.0f} s; "
        f"costs of {costs.model} on {costs.machine} at {costs.commit}"
    )
    columns = (
        *("phase", "answers a second", "host", "redis", "none", "refused", "late", "failed", "retried", "moved"),
        *("p50 ms", "p99 ms"),
    )
    yield Table("What became of them", columns, [phase_row(phase) for phase in result.phases])
    needed = result.utilisation * scenario.fleet.num_replicas / TARGET_UTILISATION
    yield (
        f"cores busy: {result.utilisation:.0%} of one a replica; replicas needed for {TARGET_UTILISATION:.0%}: "
        f"{math.ceil(needed)}\nRedis: {result.redis_bytes / 2**20:,.0f} MiB of states, "
        f"{result.redis_sent / seconds / 1e6:,.1f} MB/s read, {result.redis_received / seconds / 1e6:,.1f} MB/s written"
    )


def phase_row(phase: Phase) -> tuple[str, ...]:
    """Its figures as text."""
    of = phase.figures
    shares = (f"{of.share(tier):.1%}" for tier in ANSWERED)
    lost = (f"{of.counts[name]:,}" for name in _LOST)
    moved = f"{of.moved / max(1, of.answered):.1%}"
    times = f"{of.p50_s * 1e3:,.0f}", f"{of.p99_s * 1e3:,.0f}"
    return phase.name, f"{of.per_second:,.1f}", *shares, *lost, f"{of.retried:,}", moved, *times


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
