"""Many clients that append to one user through several replicas at once, beside as many users with a client each."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import numpy as np

from loadtest.bench.some_checkpoint import some_checkpoint
from loadtest.faults.fleet import Fleet
from loadtest.faults.redis_server import RedisServer
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, as_number, bar_table, headline
from loadtest.report.table import Part, Table
from loadtest.scale.caller import cpu_s
from proto import ranking_pb2 as pb
from proto.ranking_pb2_grpc import RankingStub

ONE, EACH = "one user", "a user each"
NOTES = (
    "one user: all clients append to it, one event an append, each as soon as it has its last answer; a user each: the "
    "same clients, without anything that they share",
    "slowest: appends of the client that had the fewest, over the mean of all",
    "CPU ms: processor time of the replicas for an append",
    "wrong: events in the histories that nobody was told of, or that are missing, once all is over",
)
_TIME_MS = 1_700_000_000_000
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class StormOptions:
    """checkpoint: None for the demo's or random weights. writers: clients of each replica. history: events that each
    user has before. seconds: of each of the two loads, `rounds` times in turns. with_ids: whether appends bear one.
    """

    checkpoint: Path | None = None
    replicas: int = 2
    writers: int = 32
    history: int = 200
    seconds: float = 6.0
    rounds: int = 3
    with_ids: bool = True
    redis_flags: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StormRow:
    """One load in one round; see NOTES."""

    load: str
    per_second: float
    p50_ms: float
    p99_ms: float
    slowest: float
    cpu_ms: float
    failed: int
    wrong: int


@dataclass(frozen=True, slots=True)
class StormResult:
    """Everything that `mfalcon bench storm` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    notes: tuple[str, ...]
    replicas: int
    writers: int
    history: int
    rows: tuple[StormRow, ...]
    bars: tuple[Bar, ...]


class _Writer:
    """A client: one append after the other. Its name is new in each round, and so are its append ids."""

    def __init__(self, stub: RankingStub, user_id: str, name: str, with_ids: bool) -> None:
        self.user_id = user_id
        self.seconds: list[float] = []
        self.failed = 0
        self._stub = stub
        self._name = name
        self._with_ids = with_ids

    async def run(self, until: float) -> None:
        """Append until then."""
        for number in itertools.count():
            if time.monotonic() >= until:
                return
            append_id = f"{self._name}-{number}" if self._with_ids else ""
            began = time.monotonic()
            try:
                await append(self._stub, self.user_id, 1, append_id)
                self.seconds.append(time.monotonic() - began)
            except grpc.aio.AioRpcError:
                self.failed += 1


async def append(stub: RankingStub, user_id: str, num_events: int, append_id: str = "") -> int:
    """Append events of one moment: whoever comes first, none is late. The history's length."""
    request = pb.AppendEventsRequest(user_id=user_id, append_id=append_id)
    for number in range(num_events):
        request.events.add(item_id=1 + number % 100, actions=1, time_ms=_TIME_MS)
    answer = await stub.AppendEvents(request, timeout=_TIMEOUT_S)
    return int(answer.history_len)


def run(options: StormOptions, progress: Callable[[str], None]) -> StormResult:
    """Measure on replicas and a Redis of its own. Raises EngineFailure if they do not start."""
    machine, rows = this_machine(), []
    with ExitStack() as stack:
        path = stack.enter_context(some_checkpoint(options.checkpoint))
        redis = stack.enter_context(RedisServer(append_only=True, arguments=options.redis_flags))
        flags = ("--redis-url", redis.url, "--threads", "1", "--kv-budget-mb", "64", *options.flags)
        fleet = stack.enter_context(Fleet(path, options.replicas, flags))
        for number in range(options.rounds):
            for load in (ONE, EACH):
                progress(f"round {number + 1}: {load}")
                rows.append(asyncio.run(_round(options, fleet, load, f"{load} {number}")))
    return StormResult(
        benchmark="storm",
        machine=machine,
        commit=commit(),
        notes=NOTES,
        replicas=options.replicas,
        writers=options.writers,
        history=options.history,
        rows=tuple(rows),
        bars=_bars(rows),
    )


async def _round(options: StormOptions, fleet: Fleet, load: str, name: str) -> StormRow:
    channels = [grpc.aio.insecure_channel(target) for target in fleet.targets]
    stubs = [RankingStub(channel) for channel in channels]
    writers = [
        _Writer(stub, name if load == ONE else f"{name} {replica} {number}", f"{name} {replica} {number}", with_ids)
        for replica, stub in enumerate(stubs)
        for number, with_ids in enumerate([options.with_ids] * options.writers)
    ]
    users = sorted({writer.user_id for writer in writers})
    for user_id in users:
        await append(stubs[0], user_id, max(1, options.history))
    began, before = time.monotonic(), cpu_s(fleet.pids)
    await asyncio.gather(*(writer.run(began + options.seconds) for writer in writers))
    seconds, cpu = time.monotonic() - began, cpu_s(fleet.pids) - before
    lengths = [await append(stubs[-1], user_id, 1) for user_id in users]
    for channel in channels:
        await channel.close()
    told = sum(len(writer.seconds) for writer in writers)
    expected = told + len(users) * (max(1, options.history) + 1)
    return _row(load, writers, seconds, cpu, wrong=max(0, abs(sum(lengths) - expected) - _failed(writers)))


def _failed(writers: Sequence[_Writer]) -> int:
    return sum(writer.failed for writer in writers)


def _row(load: str, writers: Sequence[_Writer], seconds: float, cpu: float, *, wrong: int) -> StormRow:
    counts = [len(writer.seconds) for writer in writers]
    times = np.concatenate([writer.seconds for writer in writers])
    p50, p99 = np.percentile(times * 1_000, (50, 99)).tolist() if len(times) else (float("nan"),) * 2
    return StormRow(
        load=load,
        per_second=sum(counts) / seconds,
        p50_ms=p50,
        p99_ms=p99,
        slowest=min(counts) / max(1e-9, float(np.mean(counts))),
        cpu_ms=1_000 * cpu / max(1, sum(counts)),
        failed=_failed(writers),
        wrong=wrong,
    )


def _bars(rows: Sequence[StormRow]) -> tuple[Bar, ...]:
    """Of the median round."""
    one, each = ([row for row in rows if row.load == load] for load in (ONE, EACH))

    def median(rows: Sequence[StormRow], name: str) -> float:
        return float(np.median([getattr(row, name) for row in rows]))

    return (
        Bar.least("appends a second, one user", median(one, "per_second"), 500),
        Bar.most("p99 ms, one user", median(one, "p99_ms"), 150),
        Bar.least("slowest client over the mean, one user", min(row.slowest for row in one), 1 / 3),
        Bar.least("one user over a user each", median(one, "per_second") / median(each, "per_second"), 0.5),
        Bar.most("wrong", sum(row.wrong for row in rows), 0),
    )


def page(result: StormResult) -> Iterator[Part]:
    """A row for each load and round."""
    yield headline(result.machine, result.commit)
    columns = ("load", "a second", "p50 ms", "p99 ms", "slowest", "CPU ms", "failed", "wrong")
    rows = [
        (
            *(row.load, as_number(row.per_second), as_number(row.p50_ms), as_number(row.p99_ms)),
            *(f"{row.slowest:.2f}", f"{row.cpu_ms:.2f}", str(row.failed), str(row.wrong)),
        )
        for row in result.rows
    ]
    title = f"Appends through {result.replicas} replicas x {result.writers} clients, {result.history:,} events before"
    yield Table(title, columns, rows)
    yield bar_table(result.bars)
    yield "\n".join(f"- {note}" for note in result.notes)
