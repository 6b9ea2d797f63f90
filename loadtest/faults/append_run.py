"""A run of writers on a Redis that is killed, frozen and cut off, and the judgement of what they saw."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from loadtest.faults.append_faults import Faults, Home, home
from loadtest.faults.append_writers import WriterOptions, Writers
from loadtest.faults.linearizability import violations
from loadtest.faults.recorder import Recorder, keeps_append_ids
from loadtest.faults.recording import Operation
from mfalcon.engine.histories import Histories, HistoryOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.history.durability import Durability
from mfalcon.history.redis_log import LogOptions
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisSettings

_log = logging.getLogger(__name__)

_READ_S, _WRITE_S = 0.1, 0.5


@dataclass(frozen=True, slots=True)
class RunOptions:
    """fault_gap_s: mean, between two faults; 0 for none. replicas: of the event log, each with its own connections.
    durability: of what is acknowledged; with "replica" no failover may lose anything.
    """

    seconds: float = 60.0
    fault_gap_s: float = 3.0
    replicas: int = 2
    writers: WriterOptions = field(default_factory=WriterOptions)
    durability: Durability = "memory"
    seed: int = 0

    def loses_on_failover(self) -> bool:
        """Whether a failover may take what was acknowledged."""
        return self.durability != "replica"


@dataclass(frozen=True, slots=True)
class AppendReport:
    """What was done and what was wrong. operations: by kind and outcome. lost: acknowledged events that are gone.
    trouble: what the run itself met with, such as a fault that was lifted late; what was recorded is judged all the
    same.
    """

    home: str
    durability: str
    seconds: float
    faults: dict[str, int]
    operations: dict[str, int]
    found: int
    lost: int
    told_lost: int
    wrong: tuple[str, ...]
    trouble: tuple[str, ...] = ()


async def run(kind: Home, options: RunOptions) -> AppendReport:
    """Write, break, mend, read and judge, as much as there is when the run ends early."""
    recorder, began, faults, wrong = Recorder(), time.monotonic(), None, []
    try:
        with home(kind, seed=options.seed) as faults:
            async with replicas(faults, options) as logs:
                with_ids = await keeps_append_ids(logs[0])
                asked = replace(options.writers, with_ids=with_ids, seed=options.seed)
                began = time.monotonic()
                unread = await _write(logs, recorder, asked, faults, options)
                wrong += [f"{user} could not be read any more" for user in unread]
                seconds = time.monotonic() - began
    except Exception as error:
        if faults is None or not recorder.operations:
            raise
        _log.exception("the run ended early")
        wrong.append(f"the run ended early: {type(error).__name__}: {error}")
        seconds = time.monotonic() - began
    may_lose, judged = faults.times, recorder.operations
    if not (faults.fails_over and options.loses_on_failover()):
        may_lose = []
    if faults.fails_over and not may_lose:
        judged = [o for o in judged if not (_only_tells(o) and _during(o, faults.times))]
    wrong += await asyncio.to_thread(violations, judged, may_lose)
    if recorder.lost_events and not may_lose:
        wrong.append(f"writers were told of {recorder.lost_events} lost events, where none can be lost")
    operations = Counter(f"{o.kind} {o.outcome}" for o in recorder.operations)
    return AppendReport(
        kind,
        options.durability,
        seconds,
        dict(faults.done),
        dict(operations),
        found=sum(o.was_written for o in recorder.operations),
        lost=lost_events(recorder.operations),
        told_lost=recorder.lost_events,
        wrong=tuple(wrong),
        trouble=tuple(faults.trouble),
    )


def _only_tells(operation: Operation) -> bool:
    """Whether it says what a history is, and acknowledges nothing. A master that does not know yet that another one has
    taken its place tells what it has: less than the other, or an append that no replica has and nobody acknowledged.
    """
    return operation.kind == "read" or operation.outcome == "refused"


def _during(operation: Operation, times: Sequence[tuple[float, float]]) -> bool:
    return any(operation.began < until and since < operation.ended for since, until in times)


async def _write(
    logs: Sequence[Histories], recorder: Recorder, asked: WriterOptions, faults: Faults, options: RunOptions
) -> list[str]:
    """The users whose history could not be read at the end."""
    lift = threading.Event()
    injecting = (
        asyncio.create_task(asyncio.to_thread(faults.inject, lift, options.fault_gap_s, options.seed))
        if options.fault_gap_s
        else None
    )
    writers = Writers(logs, recorder, asked)
    writing = asyncio.create_task(writers.run(time.monotonic() + options.seconds))
    try:
        await asyncio.wait({writing}, timeout=options.seconds)
    finally:
        lift.set()
        if injecting is not None:
            await injecting
        writers.faults_are_over()
    await writing
    return writers.unread


@asynccontextmanager
async def replicas(faults: Faults, options: RunOptions) -> AsyncIterator[list[Histories]]:
    """What a server has of its users' histories, several times over."""
    async with AsyncExitStack() as stack:
        logs = []
        for _ in range(options.replicas):
            log = LogOptions(durability=options.durability)
            redis = RedisOptions(RedisSettings(faults.url, _READ_S, _WRITE_S), prefix="appends", log=log)
            logs.append(Histories(HistoryOptions(redis=redis), StateMetrics()))
            stack.push_async_callback(logs[-1].close)
            await logs[-1].start()
        yield logs


def lost_events(operations: Sequence[Operation]) -> int:
    """Acknowledged events that no deletion ended and that the last read of their user lacks."""
    users: dict[str, list[Operation]] = {}
    for operation in operations:
        users.setdefault(operation.user, []).append(operation)
    lost = 0
    for mine in users.values():
        reads = [o for o in mine if o.kind == "read" and o.outcome == "ok" and not o.stale]
        if not reads:
            continue
        last = max(reads, key=lambda o: o.began)
        deleted = max((o.began for o in mine if o.kind == "delete" and o.outcome != "refused"), default=0.0)
        told = (o for o in mine if o.kind == "append" and o.outcome == "ok" and o.began > deleted)
        lost += len({item for o in told if o.ended < last.began for item in o.items} - last.items)
    return lost
