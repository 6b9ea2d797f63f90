"""What counting costs an append: a server whose model reads item counters beside one whose model reads none, each on a
Redis of its own, asked in turns while both rank.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from loadtest.faults.redis_server import RedisServer
from loadtest.faults.server_process import ServerProcess
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import headline
from loadtest.report.table import Part, Table
from mfalcon.errors import ConfigError
from mfalcon.models.manifest import CONFIG, load_items, read_config
from mfalcon.types import EVENT_DTYPE, Events, Ids
from mfalcon_client import AsyncClient, ClientError, Retry

COUNTED, PLAIN = "counted", "not counted"
_NOW_MS = 1_700_000_000_000
_RANKED = 100
"""Candidates of the ranks beside."""
_FIRST = 20
"""Appends of each that warm up connections and scripts."""


@dataclass(frozen=True, slots=True)
class CountingOptions:
    """events: of an append. appends: of each server and size. ranks: a second, of each server, meanwhile. users: of
    whom each append is for one.
    """

    events: tuple[int, ...] = (1, 10, 500)
    appends: int = 400
    ranks: tuple[float, ...] = (0.0, 20.0)
    users: int = 50


@dataclass(frozen=True, slots=True)
class CountingCell:
    """Times of appends, as their caller sees them. failed: those that were not acknowledged."""

    counters: str
    events: int
    ranks: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    failed: int


@dataclass(frozen=True, slots=True)
class CountingResult:
    """Everything that `mfalcon bench counting` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    options: CountingOptions
    cells: tuple[CountingCell, ...]


def run(
    with_counters: Path, without: Path, options: CountingOptions, progress: Callable[[str], None]
) -> CountingResult:
    """Time appends on both servers in turns. Raises ConfigError for checkpoints that are not one of each kind."""
    for path, wanted in ((with_counters, True), (without, False)):
        if (read_config(path / CONFIG).counters is not None) != wanted:
            raise ConfigError(f"{path}: its model must {'read' if wanted else 'not read'} item counters")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="mfalcon-")))
        targets = {}
        for name, path in ((COUNTED, with_counters), (PLAIN, without)):
            redis = stack.enter_context(RedisServer(append_only=True))
            flags = ("--redis-url", redis.url, "--threads", "1", "--kv-budget-mb", "64")
            targets[name] = stack.enter_context(ServerProcess(path, scratch, flags)).grpc
        cells = asyncio.run(_measure(targets, load_items(with_counters).item_id, options, progress))
    return CountingResult("counting", this_machine(), commit(), options, tuple(cells))


async def _measure(
    targets: dict[str, str], items: Ids, options: CountingOptions, progress: Callable[[str], None]
) -> list[CountingCell]:
    rng, cells = np.random.default_rng(0), list[CountingCell]()
    async with AsyncExitStack() as stack:
        once = Retry(attempts=1)
        clients = {
            name: await stack.enter_async_context(AsyncClient(target, retry=once)) for name, target in targets.items()
        }
        for ranks in options.ranks:
            async with asyncio.TaskGroup() as beside:
                ranking = [beside.create_task(_rank(client, items, ranks, options)) for client in clients.values()]
                for num in options.events:
                    progress(f"appends of {num} events, {ranks:g} ranks a second beside")
                    cells += await _appends(clients, items, num, ranks, options, rng)
                for task in ranking:
                    task.cancel()
    return cells


async def _appends(
    clients: dict[str, AsyncClient],
    items: Ids,
    num: int,
    ranks: float,
    options: CountingOptions,
    rng: np.random.Generator,
) -> list[CountingCell]:
    """Both servers are given the same appends, one after the other, each first in every other turn."""
    seconds: dict[str, list[float]] = {name: [] for name in clients}
    failed = dict.fromkeys(clients, 0)
    names = list(clients)
    for turn in range(_FIRST + options.appends):
        user_id, events = f"user-{rng.integers(options.users)}", _events(items, num, rng)
        for name in names if turn % 2 else reversed(names):
            began = time.perf_counter()
            try:
                await clients[name].append_events(user_id, events, timeout_s=5)
            except ClientError:
                failed[name] += 1
            if turn >= _FIRST:
                seconds[name].append(time.perf_counter() - began)
    cells = []
    for name in clients:
        p50, p95, p99 = (1e3 * np.quantile(seconds[name], (0.5, 0.95, 0.99))).tolist()
        cells.append(CountingCell(name, num, ranks, p50, p95, p99, failed[name]))
    return cells


async def _rank(client: AsyncClient, items: Ids, rate: float, options: CountingOptions) -> None:
    """Rank so often, until it is cancelled. What is refused or late is not what is measured here."""
    rng = np.random.default_rng(1)
    while rate:
        candidates = rng.choice(items, _RANKED)
        with suppress(ClientError):
            await client.rank(f"user-{rng.integers(options.users)}", candidates, request_time_ms=2 * _NOW_MS)
        await asyncio.sleep(rng.exponential(1 / rate))


def _events(items: Ids, num: int, rng: np.random.Generator) -> Events:
    events = np.zeros(num, dtype=EVENT_DTYPE)
    events["item_id"], events["actions"], events["value"] = rng.choice(items, num), 1, 4.0
    events["time_ms"] = _NOW_MS
    return events


def page(result: CountingResult) -> Iterator[Part]:
    """What was measured where, and what the words mean."""
    yield headline(result.machine, result.commit)
    options = result.options
    rows = [
        (
            f"{c.events}",
            f"{c.ranks:g}",
            c.counters,
            f"{c.p50_ms:.2f}",
            f"{c.p95_ms:.2f}",
            f"{c.p99_ms:.2f}",
            f"{c.failed}",
        )
        for c in result.cells
    ]
    title = f"An append, ms as its caller sees it, {options.appends} of each, both servers in turns"
    yield Table(title, ("events", "ranks/s beside", "item counters", "p50", "p95", "p99", "failed"), rows)
    yield (
        f"- each server has a Redis of its own with an append-only file, and one thread; {options.users} users; ranks "
        f"of {_RANKED} candidates at the times of a Poisson process on both servers"
    )
