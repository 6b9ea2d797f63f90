"""Faults of Redis, one at a time: what Rank is answered, what it costs and which counter tells of it.

Every answer is compared with a cold forward over the acknowledged history.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loadtest.faults.redis_faults import Fault, lift
from loadtest.faults.world import DEADLINE_S, Person, Ranked, Setup, World, place
from loadtest.faults.world import random_events as new_events
from mfalcon.errors import MFalconError, StorageUnavailable
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import Append

_POLL_S, _POLLS, _TURNS = 0.02, 50, 20
_BEFORE, _UNDER = 1_000, 2_000
"""Seeds of the candidates."""
_NUM_APPENDS = 3


@dataclass(frozen=True, slots=True)
class Answers:
    """What the ranks of one kind were answered, and their times beside those before the fault. waited_ms: of those that
    got scores, the part before the device was asked: log, decision, fetch.
    """

    outcomes: dict[str, int]
    p50_ms: float
    max_ms: float
    healthy_p50_ms: float
    healthy_max_ms: float
    waited_p50_ms: float
    waited_max_ms: float

    @property
    def text(self) -> str:
        """As a cell."""
        if len(self.outcomes) == 1:
            return next(iter(self.outcomes))
        return ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))

    @property
    def added_p50_ms(self) -> float:
        """Median under the fault less the healthy median."""
        return self.p50_ms - self.healthy_p50_ms

    @property
    def added_max_ms(self) -> float:
        """Longest under the fault less the healthy median."""
        return self.max_ms - self.healthy_p50_ms


@dataclass(frozen=True, slots=True)
class Row:
    """One fault in one setup. append: what appends during the fault were answered. counters: what moved in the engine
    whose states are only in Redis.
    """

    fault: str
    how: str
    setup: Setup
    on_host: Answers
    only_in_redis: Answers
    append: dict[str, int]
    counters: dict[str, float]
    tells: str
    complaints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Patience:
    """deadline_s: of every call. late_s: past it an answer may come. timeout_s: of a Redis that is well; 0 for that
    which a server has by default. A machine with much other work needs more.
    """

    deadline_s: float = DEADLINE_S
    late_s: float = 0.1
    timeout_s: float = 0.0


AT_REST = Patience()
"""A busy machine holds a thread up for a tenth of a second."""


async def measure(
    fault: Fault, setup: Setup, checkpoint: Checkpoint, num_ranks: int, patience: Patience = AT_REST
) -> Row:
    """Inject one fault and rank `num_ranks` users on both engines, before and under it."""
    within = (patience.deadline_s, patience.timeout_s if fault.leaves_redis_well else 0.0)
    healthy, faulty = (Ranked(), Ranked()), (Ranked(), Ranked())
    appended: Counter[str] = Counter()
    if fault.absent:
        with place() as at:
            async with World(checkpoint, setup, at, num_ranks, *within).running() as world:
                await world.prepare()
                await world.rounds(*healthy, seed=_BEFORE)
    with place(proxied=fault.proxied, clustered=fault.clustered) as at:
        world = World(checkpoint, setup, at, num_ranks, *within)
        began = counters(world.cold_metrics)
        if fault.absent:
            fault.inject(world)
        async with world.running():
            if not fault.absent:
                await world.prepare()
                await world.rounds(*healthy, seed=_BEFORE)
                began = counters(world.cold_metrics)
                await asyncio.to_thread(fault.inject, world)
                if fault.leaves_redis_well:
                    await world.until_reachable()  # it may have been held up by what was done to it
            elif setup == "states":
                await world.tell((world.host, world.cold))
                await world.rounds(Ranked(), Ranked(), 0)  # now the one has its states on host
            await world.rounds(*faulty, seed=_UNDER)
            for person in world.people[:_NUM_APPENDS]:
                await _append(world, person, appended, faulty[1])
            moved = await _moved(world, began, fault.tells, faulty[1])
            lift(world)
    on_host, only_in_redis = (
        _answers(under, before, checkpoint) for under, before in zip(faulty, healthy, strict=True)
    )
    complaints = [each for answers in (on_host, only_in_redis) for each in _complaints(fault, setup, answers, patience)]
    if not any(fault.tells in name for name in moved):
        complaints.append(f"no counter {fault.tells} moved")
    return Row(
        fault.name,
        fault.how,
        setup,
        on_host,
        only_in_redis,
        dict(appended),
        moved,
        fault.tells,
        tuple(complaints),
    )


async def _append(world: World, person: Person, into: Counter[str], ranked: Ranked) -> None:
    """One event more, and where it was acknowledged a rank that must see it and has a chunk to write."""
    last = int(person.life.events()["time_ms"][-1]) if person.life.size else 0
    events = new_events(person.life.size, 1, after_ms=last or 10**12)
    engines = (world.cold, world.host) if world.setup == "states" else (world.cold,)
    try:
        for each in engines:
            await each.append_events(
                person.user_id, Append(events, person.life.size), time.monotonic() + world.deadline_s
            )
    except StorageUnavailable as error:
        into["UNAVAILABLE, " + ("may be written" if error.may_be_done else "not written")] += 1
    except MFalconError as error:
        into[type(error).__name__] += 1
    else:
        into["acknowledged"] += 1
        person.life.add(events)
        await world.rank(world.cold, person, 3_000, ranked)


async def _moved(world: World, began: Counter[str], tells: str, ranked: Ranked) -> dict[str, float]:
    """What has moved since; what is written behind the requests' backs takes a moment, and on a busy machine a state
    may have been encoded again because that looked quicker: everybody is then ranked once more, and once more.
    """
    for turn in range(_TURNS):
        for _ in range(_POLLS):
            now = counters(world.cold_metrics)
            moved: dict[str, float] = {
                name: count - began[name] for name, count in sorted(now.items()) if count > began[name]
            }
            if any(tells in name for name in moved):
                return moved
            await asyncio.sleep(_POLL_S)
        for person in world.people:
            await world.rank(world.cold, person, 4_000 + turn, ranked)
    return moved


def counters(metrics: ServerMetrics) -> Counter[str]:
    """Every counter of ours, as name{labels}, without what all names begin and end with."""
    counts: Counter[str] = Counter()
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name.startswith("mfalcon_") and sample.name.endswith("_total"):
                name = sample.name.removeprefix("mfalcon_").removesuffix("_total")
                labels = ",".join(value for label, value in sample.labels.items() if label != "model")  # there is one
                counts[f"{name}{{{labels}}}" if labels else name] = round(sample.value)
    return counts


def _answers(under: Ranked, before: Ranked, checkpoint: Checkpoint) -> Answers:
    waited = np.array(under.waited_seconds or [0.0]) * 1e3
    return Answers(
        dict(under.outcomes(checkpoint)),
        *(under.p50_ms, under.max_ms, before.p50_ms, before.max_ms),
        *(float(np.median(waited)), float(waited.max())),
    )


def _complaints(fault: Fault, setup: Setup, answers: Answers, patience: Patience) -> Iterator[str]:
    """What must not be: a wrong answer, one after its deadline, a refusal that nothing demands."""
    allowed = {"right"}
    if fault.of_one:
        yield from _complaints_of_one(answers)
        allowed |= {"DATA_LOSS"}
    elif setup == "refuse" or (fault.absent and setup == "stale"):
        allowed |= {"UNAVAILABLE"}
    if setup == "stale" and not fault.of_one:
        allowed |= {"stale"}
    for outcome, count in answers.outcomes.items():
        if outcome not in allowed:
            yield f"{count} of {sum(answers.outcomes.values())} were answered {outcome}"
    if answers.max_ms > (patience.deadline_s + patience.late_s) * 1e3:
        yield f"an answer took {answers.max_ms:.0f} ms; the deadline is {patience.deadline_s * 1e3:.0f} ms"


def _complaints_of_one(answers: Answers) -> Iterator[str]:
    """Of a fault of one user's log: he is refused, nobody else."""
    refused = answers.outcomes.get("DATA_LOSS", 0)
    if refused != 1:
        yield f"{refused} were refused for their log, must be 1"
