"""`mfalcon ingest` into one server: events a second, and whether each event is there once, though both ends are killed
again and again.
"""

import asyncio
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from loadtest.faults.redis_server import RedisServer
from loadtest.faults.server_process import ServerProcess
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import headline
from loadtest.report.table import Part, Table
from mfalcon.errors import EngineFailure
from mfalcon.types import EVENT_DTYPE, Events
from mfalcon_client import AsyncClient

LOGS = ("memory", "file", "redis")
_KILLS_SERVER = ("file", "redis")
"""A log in memory ends with its process."""
_MOST_GAP_MS = 50
_FIRST_MS = 1_700_000_000_000
_END_S = 1_800.0
_READERS = 16


@dataclass(frozen=True, slots=True)
class IngestBenchOptions:
    """users: who have events, by Zipf's law. window: events that are acknowledged together. kills: of `mfalcon ingest`,
    and as many of the server where its log outlives it.
    """

    events: int = 1_000_000
    users: int = 20_000
    window: int = 50_000
    logs: tuple[str, ...] = ("memory", "file")
    kills: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class IngestRow:
    """One run. cpu_us: of `mfalcon ingest` for an event, where it was not killed. wrong: users whose history is not
    exactly their events in their order.
    """

    log: str
    seconds: float
    per_second: float
    cpu_us: float
    kills: int
    found: int
    wrong: int


@dataclass(frozen=True, slots=True)
class IngestResult:
    """Everything that `mfalcon bench ingest` knows."""

    options: IngestBenchOptions
    rows: tuple[IngestRow, ...]
    machine: Machine
    commit: str | None


def run(checkpoint: Path, options: IngestBenchOptions, progress: Callable[[str], None]) -> IngestResult:
    """Ingest the same events into a new server with each log."""
    machine = this_machine()
    with tempfile.TemporaryDirectory(prefix="mfalcon-ingest-") as place:
        where = Path(place)
        progress(f"writing {options.events:,} events")
        user_of, events = _stream(options)
        _write(where / "events.jsonl", user_of, events)
        rows = [_run(checkpoint, log, options, where, (user_of, events), progress) for log in options.logs]
    return IngestResult(options, tuple(rows), machine, commit())


def _stream(options: IngestBenchOptions) -> tuple[np.ndarray, Events]:
    """Events in the order of their times; users int64 [num_events]. The item's id is the number of the event."""
    random = np.random.default_rng(options.seed)
    events = np.zeros(options.events, EVENT_DTYPE)
    events["item_id"] = np.arange(options.events)
    events["actions"] = random.integers(0, 2, options.events)
    events["value"] = random.integers(1, 6, options.events)
    events["time_ms"] = _FIRST_MS + np.cumsum(random.integers(0, _MOST_GAP_MS, options.events))
    return random.zipf(1.3, options.events) % options.users, events


def _write(path: Path, user_of: np.ndarray, events: Events) -> None:
    with path.open("wb") as file:
        for user, (item, actions, value, time_ms) in zip(user_of.tolist(), events.tolist(), strict=True):
            fields = {"user_id": f"u{user}", "item_id": item, "actions": actions, "value": value, "time_ms": time_ms}
            file.write(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))


def _run(
    checkpoint: Path,
    log: str,
    options: IngestBenchOptions,
    where: Path,
    stream: tuple[np.ndarray, Events],
    progress: Callable[[str], None],
) -> IngestRow:
    with ExitStack() as stack:
        flags = ["--log-max-events", str(options.events)]
        if log == "file":
            flags += ["--log-dir", str(where / "log")]
        if log == "redis":
            redis = stack.enter_context(RedisServer(append_only=True))
            flags += ["--redis-url", redis.url]
        server = stack.enter_context(ServerProcess(checkpoint, where, flags))
        command = [sys.executable, "-m", "mfalcon.cli", "ingest", str(where / "events.jsonl"), "--json"]
        command += ["--target", server.grpc, "--progress", str(where / f"{log}.progress")]
        command += ["--window", str(options.window)]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        kills = 0
        if options.kills:
            kills = _killed(command, server, log, options, progress)
        told = orjson.loads(_end(subprocess.Popen(command, stdout=subprocess.PIPE)))
        seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        progress(f"{log}: {told['events']:,} events in {seconds:.1f} s; reading them back")
        wrong = asyncio.run(_num_wrong(server.grpc, *stream))
    return IngestRow(
        log,
        seconds,
        options.events / seconds,
        0.0 if kills else 1e6 * cpu_s / options.events,
        kills,
        told["found"],
        wrong,
    )


def _killed(
    command: list[str], server: ServerProcess, log: str, options: IngestBenchOptions, progress: Callable[[str], None]
) -> int:
    """Begin it and kill it, at times that are drawn; and the server, in between. How many kills that were."""
    random, num = np.random.default_rng(options.seed), 0
    for number in range(options.kills):
        ingesting = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(1.5, 4.0))
        if log in _KILLS_SERVER:
            progress(f"{log}: kill {number + 1} of the server, then of ingest")
            server.kill()
            server.start()
            num += 1
            time.sleep(random.uniform(0.1, 4.0))
        if ingesting.poll() is None:
            ingesting.send_signal(signal.SIGKILL)
            num += 1
        ingesting.wait(_END_S)
    server.wait_ready()
    return num


def _end(ingesting: "subprocess.Popen[bytes]") -> bytes:
    """What it printed. Raises EngineFailure."""
    told, _ = ingesting.communicate(timeout=_END_S)
    if ingesting.returncode:
        raise EngineFailure(f"mfalcon ingest has failed (exit code {ingesting.returncode})")
    return told


async def _num_wrong(target: str, user_of: np.ndarray, events: Events) -> int:
    """Users whose history is not exactly his events in their order."""
    order = np.argsort(user_of, kind="stable")
    users, begins = np.unique(user_of[order], return_index=True)
    left = list(zip(users.tolist(), np.split(events[order], begins[1:]), strict=True))
    wrong = 0

    async def read(client: AsyncClient) -> None:
        nonlocal wrong
        while left:
            user, expected = left.pop()
            parts, first = [], 0
            while first < len(expected):
                page = await client.get_history(f"u{user}", first)
                if not len(page.events):
                    break
                parts.append(page.events)
                first = page.next_first
            is_same = bool(parts) and page.history_len == len(expected)
            wrong += not (is_same and np.array_equal(np.concatenate(parts), expected))

    async with AsyncClient(target, timeout_s=60.0) as client:
        await asyncio.gather(*(read(client) for _ in range(_READERS)))
    return wrong


def page(result: IngestResult) -> list[Part]:
    """For people."""
    options = result.options
    rows = [
        (
            row.log,
            f"{row.per_second:,.0f}",
            f"{row.seconds:.1f}",
            f"{row.cpu_us:.1f}" if row.cpu_us else "-",
            str(row.kills),
            f"{row.found:,}",
            str(row.wrong),
        )
        for row in result.rows
    ]
    columns = ("log", "events/s", "s", "CPU us of ingest", "kills", "found again", "users wrong")
    told = f"{options.events:,} events of {options.users:,} users in windows of {options.window:,}, seed {options.seed}"
    return [headline(result.machine, result.commit), Table(told, columns, rows)]
