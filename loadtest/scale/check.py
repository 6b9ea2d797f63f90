"""The simulation beside real replicas that play the same trace on the same machine."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError
from simpy import Environment

from loadtest.load.trace import Step
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import headline
from loadtest.report.table import Part, Table
from loadtest.scale.acts import acts_of
from loadtest.scale.costs import Costs
from loadtest.scale.fleet import FleetOptions, SimFleet
from loadtest.scale.outcome import Outcome, Summary, summary
from loadtest.scale.play import Player
from loadtest.scale.real import CheckOptions, Measured, measure, steps_of
from mfalcon.errors import ConfigError

BAR = 0.15
"""Most that a prediction of throughput or of the hit rate may be off, of what is measured."""
_REDIS_BYTES = 1e12
_TIERS: tuple[Outcome, ...] = ("host", "redis", "none")


CASES = {
    "states fit": CheckOptions(pool_mb=1_024),
    "states exceed the pools": CheckOptions(pool_mb=48),
    "states exceed the pools, Redis": CheckOptions(pool_mb=48, has_redis=True),
}
"""States of a replica's users, and pools that hold all of them, or a part."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A run of a case. predicted: with the cores that the real run had; quiet: with all of the machine's."""

    name: str
    options: CheckOptions
    measured: Measured
    predicted: Summary
    quiet: Summary

    @property
    def throughput_off(self) -> float:
        """Relative, for the cores that the run had."""
        return self.predicted.per_second * self.measured.seconds / self.measured.answered - 1

    @property
    def hits_off(self) -> float:
        """Relative, of all answers that found a state."""
        found = 1 - self.measured.counts["none"] / self.measured.answered
        return (1 - self.predicted.share("none")) / found - 1

    @property
    def holds(self) -> bool:
        """Both within the bar."""
        return abs(self.throughput_off) <= BAR and abs(self.hits_off) <= BAR


@dataclass(frozen=True, slots=True)
class CheckResult:
    """All runs, and what they were made on."""

    machine: Machine
    commit: str | None
    costs_commit: str
    cases: tuple[Checked, ...]


def check(
    path: Path, costs: Costs, cases: Mapping[str, CheckOptions], runs: int, progress: Callable[[str], None]
) -> CheckResult:
    """Cases in turns, each run with a trace of its own."""
    machine, checked = this_machine(), list[Checked]()
    for run in range(runs):
        for name, case in cases.items():
            progress(f"{name}: run {run + 1} of {runs}")
            options = replace(case, seed=run)
            steps = steps_of(path, options)
            measured = measure(path, options, steps)
            of = [predict(options, steps, costs, cores) for cores in (measured.cores, machine.cores)]
            checked.append(Checked(name, options, measured, *of))
    return CheckResult(machine, commit(), costs.commit, tuple(checked))


def as_json(result: CheckResult) -> str:
    """What `load_check` reads."""
    return _ADAPTER.dump_json(result, indent=2).decode() + "\n"


def load_check(path: Path) -> CheckResult:
    """Raises ConfigError for a file that is none."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: no check of the simulation: {error}") from None


_ADAPTER = TypeAdapter(CheckResult)


def predict(options: CheckOptions, steps: Iterable[Step], costs: Costs, cores: float) -> Summary:
    """What the simulation says of the run."""
    env = Environment()
    fleet = SimFleet(
        env,
        costs,
        FleetOptions(
            num_replicas=options.num_replicas,
            pool_bytes=options.pool_mb << 20,
            redis_bytes=_REDIS_BYTES if options.has_redis else None,
            shared_cores=cores,
        ),
    )
    player = Player(env, fleet, math.inf, np.zeros(0, dtype=np.int64))
    env.process(player.closed(acts_of(steps), options.clients))
    env.run()
    begin = fleet.ended[options.warm - 1].ended if options.warm else 0.0
    return summary(fleet.ended[options.warm :], begin, math.nextafter(env.now, math.inf))


def check_page(result: CheckResult) -> Iterator[Part]:
    """Where it was measured, three rows for each run, and how far apart they are."""
    checked = result.cases
    yield headline(result.machine, result.commit)
    columns = ("case", "", "requests a second", "host", "redis", "none", "tokens encoded", "p50 ms", "p99 ms")
    rows: list[tuple[str, ...]] = []
    for case in checked:
        real = case.measured
        shares = [real.counts[name] / real.answered for name in _TIERS]
        took = real.encoded, real.p50_s, real.p99_s
        rows.append(
            (case.name, f"measured, {real.cores:.2f} cores", *_row(real.answered / real.seconds, shares, *took))
        )
        for name, sim in (("simulated, as many", case.predicted), ("simulated, all cores", case.quiet)):
            shares = [sim.share(tier) for tier in _TIERS]
            rows.append(("", name, *_row(sim.per_second, shares, sim.encoded, sim.p50_s, sim.p99_s)))
    yield Table("Simulated beside real", columns, rows)
    offs = [
        (case.name, f"{case.throughput_off:+.1%}", f"{case.hits_off:+.1%}", "yes" if case.holds else "NO")
        for case in checked
    ]
    yield Table(f"Off by; the bar is {BAR:.0%}", ("case", "throughput", "hit rate", "holds"), offs)


def _row(per_second: float, shares: Sequence[float], encoded: int, p50_s: float, p99_s: float) -> tuple[str, ...]:
    of = [f"{share:.1%}" for share in shares]
    return f"{per_second:.1f}", *of, f"{encoded:,}", f"{p50_s * 1e3:.0f}", f"{p99_s * 1e3:.0f}"
