"""The logs of one machine in turns: appends by durability, bytes a user, the start, and memory within bounds."""

import asyncio
import gc
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, as_number, bar_table, headline
from loadtest.report.table import Part, Table
from mfalcon.history.budget import LogBudget
from mfalcon.history.chain import user_hash
from mfalcon.history.deletions import Deletion
from mfalcon.history.file_log import FileLog, FileLogOptions
from mfalcon.history.history import Retention
from mfalcon.history.local_log import LocalLog
from mfalcon.metrics.logs import LogMetrics
from mfalcon.metrics.states import StateMetrics
from mfalcon.types import EVENT_DTYPE, Append, Events

MEMORY, FILE, FSYNC = "memory", "file, memory", "file, fsync"
KINDS = (MEMORY, FILE, FSYNC)
NOTES = (
    "one event an append, to users drawn at random, each writer as soon as it has its last answer, in one event loop "
    "without a network; CPU us: processor time of the process for an append",
    "a user: bytes of resident memory, or of the file with its journal emptied; events drawn at random from a million "
    "items, values 1 to 5, and 200 days",
    "start: until a history that nobody has read before is there, after the last server ended; killed: without its end",
    "bounds: new users all the time, the oldest evicted; a hundred known ones come again and again, none is refused or "
    "evicted; memory: resident, above that of an empty log, since half of the users have come",
)
_RETENTION = Retention(16_384, 1_024)
_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class LogOptions:
    """users, events: of the logs. writers: at once. seconds: of each load, `rounds` times in turns. bounded_users: who
    come to a log of `bounded_mb` MiB of memory, 0 for none.
    """

    users: int = 1_000_000
    events: int = 20
    writers: tuple[int, ...] = (1, 64, 256)
    seconds: float = 4.0
    rounds: int = 3
    bounded_users: int = 10_000_000
    bounded_mb: int = 4_096


@dataclass(frozen=True, slots=True)
class RateRow:
    """One load in one round; see NOTES."""

    log: str
    writers: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class SizeRow:
    """What a log of many users takes. start_s, killed_s: None in memory."""

    log: str
    users: int
    bytes_a_user: float
    fill_us: float
    start_s: float | None
    killed_s: float | None


@dataclass(frozen=True, slots=True)
class BoundRow:
    """A log in memory within its bounds. least_mb, most_mb: resident memory since half of the users have come."""

    users: int
    budget_mb: int
    kept: int
    evicted: int
    known_lost: int
    least_mb: float
    most_mb: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class LogResult:
    """Everything that `mfalcon bench log` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    notes: tuple[str, ...]
    rates: tuple[RateRow, ...]
    sizes: tuple[SizeRow, ...]
    bounds: tuple[BoundRow, ...]
    bars: tuple[Bar, ...]


def run(options: LogOptions, directory: Path | None, progress: Callable[[str], None]) -> LogResult:
    """Measure in a directory of its own below `directory`, or where temporary files go."""
    machine = this_machine()
    with tempfile.TemporaryDirectory(dir=directory) as place:
        where = Path(place)
        bounds = _bounded(options, progress) if options.bounded_users else ()
        sizes = [asyncio.run(_size(kind, options, where / kind, progress)) for kind in (MEMORY, FSYNC)]
        rates = []
        for number in range(options.rounds):
            for kind in KINDS:
                for writers in options.writers:
                    progress(f"round {number + 1}: {kind}, {writers} writers")
                    rates.append(asyncio.run(_rate(kind, writers, options, where)))
    return LogResult(
        benchmark="log",
        machine=machine,
        commit=commit(),
        notes=NOTES,
        rates=tuple(rates),
        sizes=tuple(sizes),
        bounds=tuple(bounds),
        bars=_bars(rates, sizes, bounds),
    )


def _open(kind: str, directory: Path) -> LocalLog | FileLog:
    if kind == MEMORY:
        return LocalLog(_RETENTION)
    options = FileLogOptions(directory, "fsync" if kind == FSYNC else "memory")
    return FileLog(options, LogBudget(), _RETENTION, StateMetrics(), LogMetrics(), lambda _: None)


async def _rate(kind: str, writers: int, options: LogOptions, where: Path) -> RateRow:
    """The file is that of the sizes, whatever its durability then."""
    log = _open(kind, where / FSYNC)
    log.start()
    if kind == MEMORY:
        await _fill(log, min(options.users, 20_000), options.events)
    users = len(log)
    times: list[float] = []
    until = time.monotonic() + options.seconds

    async def write(seed: int) -> None:
        rng, event = random.Random(seed), np.zeros(1, dtype=EVENT_DTYPE)
        while time.monotonic() < until:
            # The newest of all events: whichever of two writers comes first, none is late.
            event["time_ms"], event["item_id"] = 10**14, rng.randrange(10**6)
            began = time.perf_counter()
            await log.append(_name(rng.randrange(users)), Append(event.copy()), None)
            times.append(time.perf_counter() - began)
            if kind == MEMORY:
                await asyncio.sleep(0)

    began, cpu = time.monotonic(), time.process_time()
    await asyncio.gather(*(write(seed) for seed in range(writers)))
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    await log.close()
    p50, p99 = np.percentile(np.array(times) * 1_000, (50, 99)).tolist()
    return RateRow(kind, writers, len(times) / seconds, p50, p99, 1e6 * cpu / len(times))


async def _size(kind: str, options: LogOptions, directory: Path, progress: Callable[[str], None]) -> SizeRow:
    progress(f"{kind}: {options.users:,} users of {options.events} events")
    gc.collect()
    before = _resident_bytes()
    log = _open(FILE if kind == FSYNC else kind, directory)
    log.start()
    cpu = time.process_time()
    await _fill(log, options.users, options.events)
    cpu = time.process_time() - cpu
    taken = _resident_bytes() - before
    if kind == MEMORY:
        await log.close()
        return SizeRow(kind, options.users, taken / options.users, 1e6 * cpu / options.users, None, None)
    await log.close()
    size = _bytes_of(directory)
    started = await _start(directory, options.users - 1)
    # As a killed server leaves it: the journal holds what was written last.
    copy = directory.with_name("killed")
    log = _open(FILE, directory)
    log.start()
    for number in range(min(options.users, 20_000)):
        event = np.zeros(1, dtype=EVENT_DTYPE)
        event["time_ms"] = 10**14
        await log.append(_name(number), Append(event), None)
    shutil.copytree(directory, copy)
    await log.close()
    killed = await _start(copy, options.users - 2)
    return SizeRow(kind, options.users, size / options.users, 1e6 * cpu / options.users, started, killed)


async def _start(directory: Path, user: int) -> float:
    began = time.monotonic()
    log = _open(FSYNC, directory)
    log.start()
    history = (await log.read(_name(user), 60)).history
    seconds = time.monotonic() - began
    assert len(history)
    await log.close()
    return seconds


async def _fill(log: LocalLog | FileLog, users: int, events: int) -> None:
    rng = np.random.default_rng(0)
    for first in range(0, users, 256):
        some = range(first, min(users, first + 256))
        await asyncio.gather(*(log.append(_name(user), Append(_events(rng, events)), None) for user in some))


def _bounded(options: LogOptions, progress: Callable[[str], None]) -> list[BoundRow]:
    async def fill() -> BoundRow:
        gone, known_lost = 0, 0
        known = {user_hash(_name(user)) for user in range(100)}

        def evicted(deletion: Deletion) -> None:
            nonlocal gone, known_lost
            gone += 1
            known_lost += deletion.user in known

        gc.collect()
        before = _resident_bytes()
        log = LocalLog(_RETENTION, LogBudget(options.bounded_mb << 20, when_full="evict"), LogMetrics(), evicted)
        rng, memory, cpu = np.random.default_rng(0), list[int](), time.process_time()
        for user in range(options.bounded_users):
            await log.append(_name(user), Append(_events(rng, options.events)), None)
            if user % 1_000 == 0:  # a hundred users come again and again: they are never the oldest
                for number in range(min(user, 100)):
                    await log.append(_name(number), Append(_later(user)), None)
            if user % 1_000 == 0 and user >= options.bounded_users // 2:
                memory.append(_resident_bytes() - before)
            if user % 1_000_000 == 0:
                progress(f"bounds: {user:,} users, {(_resident_bytes() - before) >> 20} MiB")
        cpu = time.process_time() - cpu
        return BoundRow(
            users=options.bounded_users,
            budget_mb=options.bounded_mb,
            kept=len(log),
            evicted=gone,
            known_lost=known_lost,
            least_mb=min(memory) / 2**20,
            most_mb=max(memory) / 2**20,
            cpu_us=1e6 * cpu / options.bounded_users,
        )

    return [asyncio.run(fill())]


def _bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _later(number: int) -> Events:
    event = np.zeros(1, dtype=EVENT_DTYPE)
    event["time_ms"], event["item_id"] = 10**14, number
    return event


def _events(rng: np.random.Generator, num: int) -> Events:
    events = np.zeros(num, dtype=EVENT_DTYPE)
    events["item_id"], events["actions"] = rng.integers(0, 10**6, num), rng.integers(0, 4, num)
    events["value"] = rng.integers(1, 6, num)
    events["time_ms"] = 1_700_000_000_000 + np.sort(rng.integers(0, 200 * _MS, num))
    return events


def _name(user: int) -> str:
    return f"user-{user:08}"


def _bars(rates: Sequence[RateRow], sizes: Sequence[SizeRow], bounds: Sequence[BoundRow]) -> tuple[Bar, ...]:
    durable = [row.per_second for row in rates if row.log == FSYNC and row.writers == 64]
    starts = [seconds for row in sizes for seconds in (row.start_s, row.killed_s) if seconds is not None]
    flat = [row.most_mb / max(1e-9, row.least_mb) for row in bounds]
    within = [row.most_mb / row.budget_mb for row in bounds]
    return (
        Bar.least("durable appends a second, 64 writers", float(np.median(durable)) if durable else None, 1_000),
        Bar.most("seconds to start", max(starts, default=None), 2),
        Bar.most("memory within bounds, most over least", max(flat, default=None), 1.05),
        Bar.most("memory within bounds, most over the budget", max(within, default=None), 1.1),
        Bar.most("known users lost within bounds", sum(row.known_lost for row in bounds) if bounds else None, 0),
    )


def page(result: LogResult) -> Iterator[Part]:
    """Rates, sizes, bounds."""
    yield headline(result.machine, result.commit)
    rates = [
        (row.log, str(row.writers), *map(as_number, (row.per_second, row.p50_ms, row.p99_ms, row.cpu_us)))
        for row in result.rates
    ]
    yield Table("Appends", ("log", "writers", "a second", "p50 ms", "p99 ms", "CPU us"), rates)
    sizes = [
        (
            *(row.log, f"{row.users:,}", as_number(row.bytes_a_user), as_number(row.fill_us)),
            *("-" if value is None else f"{value:.3f}" for value in (row.start_s, row.killed_s)),
        )
        for row in result.sizes
    ]
    yield Table("Users", ("log", "users", "bytes a user", "CPU us to fill", "start s", "killed, start s"), sizes)
    bounds = [
        (
            *(f"{row.users:,}", str(row.budget_mb), f"{row.kept:,}", f"{row.evicted:,}", str(row.known_lost)),
            *(as_number(row.least_mb), as_number(row.most_mb), as_number(row.cpu_us)),
        )
        for row in result.bounds
    ]
    columns = ("users", "budget MiB", "kept", "evicted", "known lost", "least MiB", "most MiB", "CPU us a user")
    yield Table("A log in memory within bounds", columns, bounds)
    yield bar_table(result.bars)
    yield "\n".join(f"- {note}" for note in result.notes)
