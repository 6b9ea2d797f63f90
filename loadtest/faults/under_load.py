"""A fault of Redis under load: what that adds to Rank, in the first second and once the breaker is open.

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
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from prometheus_client import CollectorRegistry

from loadtest.faults.redis_faults import Fault, lift
from loadtest.faults.table import counters
from loadtest.faults.world import Ranked, Setup, World, engine, place, rank
from mfalcon.engine.engine import Engine
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import Append

Where: TypeAlias = Literal["host", "cold"]

CASES: tuple[tuple[Setup, Where], ...] = (("states", "cold"), ("stale", "cold"), ("stale", "host"))
_FIRST_S = 1.0
_WARM_UP_S = 1.0
_RECOVERY_S = 1.5
_PHASES = ("without Redis", "healthy", "first second", "breaker open")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """clients: each has a user of its own. period_s: of each client. rounds: of the fault. phase_s: length of the
    phases other than the first second.
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
class LoadCase:
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
            own.seconds[0] += max(0.0, late)
            into.add(own)
            due, seed = due + self.period_s, seed + 1


async def measure(fault: Fault, setup: Setup, where: Where, checkpoint: Checkpoint, options: LoadOptions) -> LoadCase:
    """Inject and lift the fault a few times under load."""
    with place(proxied=fault.proxied, clustered=fault.clustered) as at:
        world = World(checkpoint, setup, at, options.clients)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(world.running())
            await world.prepare()
            target, metrics = (world.host, world.host_metrics) if where == "host" else (world.cold, world.cold_metrics)
            alone = await stack.enter_async_context(engine(checkpoint, None, (1 << 30) if where == "host" else 0))
            for person in world.people:
                await alone.append_events(person.user_id, Append(person.life.events(), 0))
                await alone.prefill(person.user_id, None)
            baseline = _Load(world, alone, options.period_s)
            load = _Load(world, target, options.period_s)
            await load.run("warm-up", _WARM_UP_S)
            began, opened = counters(metrics), []
            for _ in range(options.rounds):
                await baseline.run("without Redis", options.phase_s)
                await load.run("healthy", options.phase_s)
                opened.append(await _first_second(fault, world, metrics.registry, load))
                await load.run("breaker open", options.phase_s)
                lift(world)
                await asyncio.sleep(_RECOVERY_S)
            moved = {name: count - began[name] for name, count in sorted(counters(metrics).items())}
    runs = baseline.ranked | load.ranked
    phases = {name: _phase(name, runs[name], checkpoint) for name in _PHASES}
    alone_waited = phases["without Redis"].waited_p99_ms
    rounds = [_p99_ms(each) for each in runs["without Redis"]]
    return LoadCase(
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


async def _first_second(fault: Fault, world: World, registry: CollectorRegistry, load: _Load) -> float:
    """Inject the fault in the middle of the load and go on for a second; returns ms until the breaker was open."""
    fault.inject(world)
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
        together.add(part)
    p50, p99, longest = np.percentile(together.seconds, (50, 99, 100)) * 1e3
    waited = float(np.percentile(together.waited_seconds or [0.0], 99)) * 1e3
    outcomes = dict(together.outcomes(checkpoint))
    return Phase(name, len(together.seconds), float(p50), float(p99), float(longest), waited, outcomes)
