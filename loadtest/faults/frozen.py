"""A Redis that freezes under load: what that adds to Rank, in the first second and once the breaker is open.

Clients ask in this process, each at a steady pace whatever the last answer took, and a rank's time counts from when it
was due: a wait for Redis that delays later requests is not hidden. Where states are not on host, encoding replaces
fetching while Redis is away, and takes longer by itself; so the baseline is an engine without Redis under the same
load, which encodes (or has on host) the same states. Every round has its own baseline: added is the median over the
rounds of p99 less the p99 of the round's baseline.

On a busy machine p99 of a whole rank tells of the neighbours. The wait before the device is asked (log, decision,
fetch) is the part that a fault of Redis can add to; its p99 over all rounds is given too.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from loadtest.faults.table import IN_REDIS, counters
from loadtest.faults.world import Place, Ranked, Setup, World, engine, fault_checkpoint, place, rank
from loadtest.report.machine import Machine, commit, this_machine
from mfalcon.engine.engine import Engine
from mfalcon.models.checkpoint import Checkpoint

Where: TypeAlias = Literal["host", "cold"]

CASES: tuple[tuple[Setup, Where], ...] = (("states", "cold"), ("stale", "cold"), ("stale", "host"))
FIRST_SECOND_BAR_MS, OPEN_BAR_MS = 50.0, 2.0
_FIRST_S = 1.0
_WARM_UP_S = 1.0
_RECOVERY_S = 1.5
_PHASES = ("without Redis", "healthy", "first second", "breaker open")


@dataclass(frozen=True, slots=True)
class FrozenOptions:
    """clients: each has a user of its own. period_s: of each client. rounds: freezes. phase_s: length of the phases
    other than the first second.
    """

    clients: int = 8
    period_s: float = 0.4
    rounds: int = 10
    phase_s: float = 1.5


@dataclass(frozen=True, slots=True)
class Phase:
    """Ranks of one phase over all rounds: times from when they were due."""

    name: str
    num_ranks: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    waited_p99_ms: float
    """Of the time before the device was asked."""
    outcomes: dict[str, int]


@dataclass(frozen=True, slots=True)
class FrozenCase:
    """One setup. added: median over the rounds of p99 less the baseline's. waited: p99 of the wait before the device,
    over all rounds, less the baseline's. spread: lowest and highest p99 of the baseline in one round, which is what
    the machine adds by itself.
    """

    setup: Setup
    where: Where
    phases: tuple[Phase, ...]
    added_first_second_p99_ms: float
    added_open_p99_ms: float
    waited_first_second_p99_ms: float
    waited_open_p99_ms: float
    baseline_p99_spread_ms: tuple[float, float]
    opened_after_ms: tuple[float, ...]
    counters: dict[str, float]


@dataclass(frozen=True, slots=True)
class FrozenResult:
    """All cases, and where they were measured."""

    machine: Machine
    commit: str | None
    options: FrozenOptions
    cases: tuple[FrozenCase, ...]


@dataclass(slots=True)
class _Load:
    """Paced clients of one engine."""

    world: World
    target: Engine
    period_s: float
    ranked: dict[str, list[Ranked]] = field(default_factory=dict)

    async def run(self, phase: str, seconds: float) -> None:
        """All clients for so long; what is under way then is awaited and counted."""
        into = Ranked()
        self.ranked.setdefault(phase, []).append(into)
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(len(self.world.people)):
                offset = self.period_s * number / len(self.world.people)
                group.create_task(self._client(number, began + offset, began + seconds, into))

    async def _client(self, number: int, due: float, stop: float, into: Ranked) -> None:
        person, seed = self.world.people[number], 0
        while due < stop:
            await asyncio.sleep(due - time.monotonic())
            late = time.monotonic() - due
            own = Ranked()
            await rank(self.target, person, seed, own)
            into.seconds.append(own.seconds[0] + max(0.0, late))
            into.waited_seconds += own.waited_seconds
            into.errors += own.errors
            into.answers += own.answers
            due, seed = due + self.period_s, seed + 1


async def measure(setup: Setup, where: Where, checkpoint: Checkpoint, options: FrozenOptions) -> FrozenCase:
    """Freeze and thaw Redis a few times under load."""
    with place() as at:
        world = World(checkpoint, setup, at, options.clients)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(world.running())
            await world.prepare()
            target, metrics = (world.host, world.host_metrics) if where == "host" else (world.cold, world.cold_metrics)
            alone = await stack.enter_async_context(engine(checkpoint, None, (1 << 30) if where == "host" else 0))
            for person in world.people:
                await alone.append_events(person.user_id, person.life.events(), 0)
                await alone.prefill(person.user_id, None)
            baseline = _Load(world, alone, options.period_s)
            load = _Load(world, target, options.period_s)
            await load.run("warm-up", _WARM_UP_S)
            began, opened = counters(metrics), []
            for _ in range(options.rounds):
                await baseline.run("without Redis", options.phase_s)
                await load.run("healthy", options.phase_s)
                opened.append(await _freeze(at, world, where, load, options))
                await load.run("breaker open", options.phase_s)
                at.server.thaw()
                await asyncio.sleep(_RECOVERY_S)
            moved = {name: count - began[name] for name, count in sorted(counters(metrics).items())}
    runs = baseline.ranked | load.ranked
    phases = {name: _phase(name, runs[name], checkpoint) for name in _PHASES}
    alone_waited = phases["without Redis"].waited_p99_ms
    rounds = [_p99_ms(each) for each in runs["without Redis"]]
    return FrozenCase(
        setup,
        where,
        tuple(phases.values()),
        _added_ms(runs["first second"], rounds),
        _added_ms(runs["breaker open"], rounds),
        phases["first second"].waited_p99_ms - alone_waited,
        phases["breaker open"].waited_p99_ms - alone_waited,
        (min(rounds), max(rounds)),
        tuple(opened),
        {name: count for name, count in moved.items() if count},
    )


async def _freeze(at: Place, world: World, where: Where, load: _Load, options: FrozenOptions) -> float:
    """Freeze Redis in the middle of the load and go on for a second; returns ms until the breaker was open."""
    registry = (world.host_metrics if where == "host" else world.cold_metrics).registry
    at.server.freeze()
    began, opened = time.monotonic(), asyncio.create_task(_opened(registry.get_sample_value))
    await load.run("first second", _FIRST_S)
    return (await opened - began) * 1e3


async def _opened(sample: Callable[[str, dict[str, str]], float | None]) -> float:
    """When the breaker is seen open; after 3 s it never was."""
    until = time.monotonic() + 3.0
    while time.monotonic() < until:
        if sample("mfalcon_redis_breaker_open", {"node": ""}) == 1.0:
            break
        await asyncio.sleep(0.002)
    return time.monotonic()


def _p99_ms(ranked: Ranked) -> float:
    return float(np.percentile(ranked.seconds, 99)) * 1e3


def _added_ms(rounds: Sequence[Ranked], baseline_ms: Sequence[float]) -> float:
    return float(np.median([_p99_ms(each) - base for each, base in zip(rounds, baseline_ms, strict=True)]))


def _phase(name: str, parts: Sequence[Ranked], checkpoint: Checkpoint) -> Phase:
    together = Ranked()
    for part in parts:
        together.seconds += part.seconds
        together.waited_seconds += part.waited_seconds
        together.errors += part.errors
        together.answers += part.answers
    p50, p99, longest = np.percentile(together.seconds, (50, 99, 100)) * 1e3
    waited = float(np.percentile(together.waited_seconds or [0.0], 99)) * 1e3
    outcomes = dict(together.outcomes(checkpoint))
    return Phase(name, len(together.seconds), float(p50), float(p99), float(longest), waited, outcomes)


def run(options: FrozenOptions, progress: Callable[[str], None]) -> FrozenResult:
    """Every case."""
    checkpoint = fault_checkpoint()
    cases = []
    for setup, where in CASES:
        progress(f"frozen under load: {setup}, states {'on host' if where == 'host' else 'only in Redis'}")
        cases.append(asyncio.run(measure(setup, where, checkpoint, options)))
    return FrozenResult(this_machine(), commit(), options, tuple(cases))


_HEAD = (
    *(
        "in Redis",
        "states",
        "phase",
        "ranks",
        "answers",
        "p50 ms",
        "p99 ms",
        "max ms",
        "wait before the device, p99 ms",
    ),
)


def markdown(result: FrozenResult) -> Iterator[str]:
    """Lines of a table, and of what they come to."""
    yield f"| {' | '.join(_HEAD)} |"
    yield "|" + "---|" * len(_HEAD)
    for case in result.cases:
        where = "on host" if case.where == "host" else "only in Redis"
        for phase in case.phases:
            answers = ", ".join(f"{name} {count}" for name, count in sorted(phase.outcomes.items()))
            times = (f"{ms:.1f}" for ms in (phase.p50_ms, phase.p99_ms, phase.max_ms, phase.waited_p99_ms))
            cells = (IN_REDIS[case.setup], where, phase.name, str(phase.num_ranks), answers, *times)
            yield f"| {' | '.join(cells)} |"
    yield ""
    for case in result.cases:
        where = "on host" if case.where == "host" else "only in Redis"
        low, high = case.baseline_p99_spread_ms
        yield (
            f"- {IN_REDIS[case.setup]}, states {where}: added to p99 {case.added_first_second_p99_ms:+.1f} ms in the "
            f"first second (bar {FIRST_SECOND_BAR_MS:.0f}), {case.added_open_p99_ms:+.1f} ms once open (bar "
            f"{OPEN_BAR_MS:.0f}); by waiting alone {case.waited_first_second_p99_ms:+.1f} and "
            f"{case.waited_open_p99_ms:+.1f} ms; the baseline's p99 was {low:.1f} to {high:.1f} ms in its rounds; the "
            f"breaker opened after {min(case.opened_after_ms):.0f} to {max(case.opened_after_ms):.0f} ms"
        )
