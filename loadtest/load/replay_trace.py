"""A trace played at full speed on engines in this process: tiers that serve it, tokens encoded, times of Rank."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from loadtest.load.trace import Append, Delete, Edit, Rank, Step, edited, time_ms
from mfalcon import types
from mfalcon.engine.engine import Engine
from mfalcon.errors import MFalconError
from mfalcon.types import CacheSource, Events, RankRequest, no_events

Route = Callable[[int], Engine]
"""The engine that a user's next step goes to."""


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What came back. Counts and tokens are functions of the trace and the engine's settings at concurrency 1 and
    without Redis, whose use depends on what it costs at the moment.

    errors: steps that failed, by the name of the error; they are in no other figure.
    sources: answered requests by the tier in which their state was found ("none" if in no tier).
    """

    seconds: float
    requests: int
    appends: int
    deletes: int
    edits: int
    errors: dict[str, int]
    sources: dict[str, int]
    reused_tokens: int
    encoded_tokens: int
    p50_ms: float
    p99_ms: float
    max_ms: float

    @property
    def hit_rates(self) -> dict[str, float]:
        """Share of the answered requests by the tier in which their state was found."""
        return {source: count / max(1, self.requests) for source, count in self.sources.items()}


@dataclass(slots=True)
class _Tally:
    """The report in the making, and the histories that an edit copies."""

    steps: Counter[type[Step]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    sources: Counter[CacheSource] = field(default_factory=Counter)
    reused_tokens: int = 0
    encoded_tokens: int = 0
    rank_s: list[float] = field(default_factory=list)
    histories: dict[int, Events] = field(default_factory=dict)


async def replay(route: Route, steps: Iterable[Step], concurrency: int, prefix: str = "user") -> ReplayReport:
    """Play the steps: those of one user in order, at most `concurrency` of different users at once.

    route: asked once for each step, in the order of the steps.
    The users are called `prefix`-0, `prefix`-1 and so on, and are left as the trace leaves them.
    """
    tally = _Tally()
    slots = asyncio.Semaphore(concurrency)
    latest: dict[int, asyncio.Task[None]] = {}

    async def play(engine: Engine, step: Step, before: "asyncio.Task[None] | None") -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            await _play(engine, step, f"{prefix}-{step.user}", tally)
            tally.steps[type(step)] += 1
        except MFalconError as error:
            tally.errors[type(error).__name__] += 1
        finally:
            slots.release()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for step in steps:
            await slots.acquire()
            latest[step.user] = group.create_task(play(route(step.user), step, latest.get(step.user)))
    return _report(tally, time.perf_counter() - began)


async def _play(engine: Engine, step: Step, user_id: str, tally: _Tally) -> None:
    history = tally.histories.get(step.user, no_events())
    match step:
        case Rank():
            request = RankRequest(user_id, step.candidates, 0, time_ms(step.time_s), no_events(), {})
            began = time.perf_counter()
            result = await engine.rank(request, None)
            tally.rank_s.append(time.perf_counter() - began)
            tally.sources[result.cache.source] += 1
            tally.reused_tokens += result.cache.reused_tokens
            tally.encoded_tokens += result.cache.encoded_tokens
        case Append():
            await engine.append_events(user_id, types.Append(step.events))
            tally.histories[step.user] = np.concatenate([history, step.events])
        case Delete():
            await engine.delete_user(user_id)
            tally.histories[step.user] = no_events()
        case Edit():
            await engine.delete_user(user_id)
            tally.histories[step.user] = no_events()
            # Shorter than the trace says where an append has failed: then there may be nothing to edit.
            if step.position < len(history):
                copy = edited(history, step)
                await engine.append_events(user_id, types.Append(copy, 0))
                tally.histories[step.user] = copy


def _report(tally: _Tally, seconds: float) -> ReplayReport:
    millis = np.array(tally.rank_s) * 1e3
    p50, p99, longest = np.percentile(millis, [50, 99, 100]) if len(millis) else (0.0, 0.0, 0.0)
    return ReplayReport(
        seconds=seconds,
        requests=tally.steps[Rank],
        appends=tally.steps[Append],
        deletes=tally.steps[Delete],
        edits=tally.steps[Edit],
        errors=dict(tally.errors),
        sources={source.name.lower(): tally.sources[source] for source in CacheSource},
        reused_tokens=tally.reused_tokens,
        encoded_tokens=tally.encoded_tokens,
        p50_ms=float(p50),
        p99_ms=float(p99),
        max_ms=float(longest),
    )
