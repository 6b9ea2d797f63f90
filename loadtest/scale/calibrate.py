"""Measures what the parts of a request cost on real servers, in CPU time, from what whole requests cost.

Cells of requests of one kind (a history, candidates, events that are new) are sent one after the other; the CPU time of
the server's process over their number is what one of them costs. Rounds of all cells are taken in turns and the median
counts. A process beside scores on one core all the while: costs on a machine that does nothing else are lower, and not
those that decide how much it can do.
"""

import asyncio
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import median

import numpy as np

from loadtest.bench.busy import neighbour
from loadtest.faults.fleet import Fleet
from loadtest.faults.redis_server import RedisServer
from loadtest.load.trace import START_MS
from loadtest.report.machine import commit, this_machine
from loadtest.scale.caller import Caller, cpu_s
from loadtest.scale.costs import Costs
from loadtest.scale.fit import fitted
from loadtest.scale.neighbour import MODULE
from mfalcon.engine.redis_parts import layout_of
from mfalcon.errors import EngineFailure
from mfalcon.kvcache.state import PlainLayout
from mfalcon.models.checkpoint import Checkpoint, load
from mfalcon.types import EVENT_DTYPE, Events
from proto import ranking_pb2 as pb

FLAGS = ("--threads", "1", "--microbatch", "96", "--log-format", "json", "--request-timeout-ms", "60000")
"""Of every server here: one core computes, and nothing that is measured at start differs from one to the next."""
REDIS_FLAGS = ("--redis-timeout-ms", "2000")
FEW = 8
"""Candidates where it is not about candidates."""
_DELTA, _DELTA_USERS = 5, 10
_MANY = 1_000
"""Events of a large append."""
_IDLE_S = 2.0
_SHORT = 4
"""Histories, of those that are measured, to which events are added, and whose states go through Redis."""
_GROUP, _MOST_GROUPS = 10, 8
_WRITTEN_S = 1.0
"""Until a state is in Redis, behind its request."""


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """candidates: the larger number that is measured, and that client_s is for. histories: lengths, of which those
    count that the model's window holds. cell_s: CPU seconds of a cell and round. latency_s, bandwidth: of the network
    to Redis, which is not measured.
    """

    candidates: int = 500
    histories: tuple[int, ...] = (64, 256, 1_024, 2_560, 10_000)
    rounds: int = 3
    cell_s: float = 0.5
    latency_s: float = 0.0005
    bandwidth: float = 2.5e9
    seed: int = 0


Call = Callable[[], Awaitable[None]]


class _Bench:
    """One caller, and the processes whose time counts."""

    def __init__(self, caller: Caller, pids: tuple[int, ...], items: np.ndarray, options: CalibrateOptions) -> None:
        self._caller = caller
        self._pids = pids
        self._items = items
        self._options = options
        self._rng = np.random.default_rng(options.seed)
        self._life = secrets.token_hex(4)
        self._number = 0
        self._idle = 0.0
        self.now_ms = START_MS
        self.cells: defaultdict[tuple[str, int, int], list[float]] = defaultdict(list)
        self.client_s: list[float] = []

    async def settle(self) -> None:
        """What the processes cost while nothing is asked, which is taken off everything else."""
        before, began = cpu_s(self._pids), time.monotonic()
        await asyncio.sleep(_IDLE_S)
        self._idle = (cpu_s(self._pids) - before) / (time.monotonic() - began)

    async def cell(self, name: tuple[str, int, int], call: Call) -> None:
        """Call until the cell has had its time; what one call costs."""
        await call()
        began, cpu, own, count = time.monotonic(), cpu_s(self._pids), time.process_time(), 0
        while (spent := cpu_s(self._pids) - cpu) < self._options.cell_s:
            await call()
            count += 1
        spent -= self._idle * (time.monotonic() - began)
        self.cells[name].append(max(1e-9, spent / count))
        if name[0] == "hit" and name[2] != FEW:
            self.client_s.append((time.process_time() - own) / count)

    async def user(self, num_events: int) -> str:
        """A new one, with a history and no state."""
        self._number += 1
        user = f"calibrate-{self._life}-{self._number}"
        await self._caller.append(user, self.events(num_events))
        return user

    def events(self, num_events: int) -> Events:
        """Random ones."""
        events = np.zeros(num_events, dtype=EVENT_DTYPE)
        events["item_id"] = self._rng.choice(self._items, num_events)
        events["actions"] = 1
        events["value"] = 3
        events["time_ms"] = self.now_ms + np.arange(num_events)
        self.now_ms += num_events
        return events

    async def rank(self, user: str, candidates: int) -> pb.RankResponse:
        """Ask for random candidates."""
        return await self._caller.rank(user, self._rng.choice(self._items, candidates), self.now_ms)

    async def warm(self, num_events: int) -> str:
        """A user whose state is there."""
        user = await self.user(num_events)
        await self.rank(user, FEW)
        return user

    async def hits(self, num_events: int, candidates: int) -> None:
        """Ranks of a user whose state is there."""
        user = await self.warm(num_events)

        async def call() -> None:
            await self.rank(user, candidates)

        await self.cell(("hit", num_events, candidates), call)

    async def appends(self, num_events: int) -> None:
        """Appends, to users nobody ranks."""

        async def call() -> None:
            await self.user(num_events)

        await self.cell(("append", num_events, 0), call)

    async def deltas(self, num_events: int) -> None:
        """A few events are appended, and the user is ranked; users in turns, so that no history grows by much."""
        users = cycle([await self.warm(num_events) for _ in range(_DELTA_USERS)])

        async def call() -> None:
            user = next(users)
            await self._caller.append(user, self.events(_DELTA))
            await self.rank(user, FEW)

        await self.cell(("delta", num_events, FEW), call)

    async def cold(self, num_events: int) -> None:
        """A new user's first rank, with the append before it."""

        async def call() -> None:
            await self.warm(num_events)

        await self.cell(("cold", num_events, FEW), call)

    def of(self, kind: str, num_events: int, candidates: int) -> float:
        """Median of a cell."""
        return median(self.cells[kind, num_events, candidates])


def calibrate(path: Path, options: CalibrateOptions, progress: Callable[[str], None]) -> tuple[Costs, list[str]]:
    """The costs of a checkpoint here, and how far they are from each cell. Raises EngineFailure for a server that does
    not start.
    """
    return asyncio.run(_calibrate(path.absolute(), options, progress))


async def _calibrate(path: Path, options: CalibrateOptions, progress: Callable[[str], None]) -> tuple[Costs, list[str]]:
    loaded = load(path)
    items, window = np.asarray(loaded.items.item_id), loaded.model.config.max_history
    options = replace(options, histories=tuple(n for n in options.histories if n <= window) or (window,))
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        alone = stack.enter_context(Fleet(path, 1, FLAGS))
        shared = stack.enter_context(Fleet(path, 2, (*FLAGS, *REDIS_FLAGS, "--redis-url", redis.url)))
        stack.enter_context(stack.enter_context(neighbour(MODULE, str(path))).working())
        async with AsyncExitStack() as callers:
            own = await callers.enter_async_context(Caller(alone.targets, ["alone"]))
            first, second = [await callers.enter_async_context(Caller([target], ["one"])) for target in shared.targets]
            bench = _Bench(own, alone.pids, items, options)
            writer = _Bench(first, shared.pids[:1], items, options)
            reader = _Fetches(first, second, shared.pids[1], redis.pid, items, options)
            for one in (bench, writer):
                await one.settle()
            for number in range(options.rounds):
                progress(f"round {number + 1} of {options.rounds}: without Redis")
                for num_events in options.histories:
                    await bench.hits(num_events, FEW)
                    await bench.hits(num_events, options.candidates)
                    await bench.cold(num_events)
                for num_events in options.histories[:_SHORT]:
                    await bench.deltas(num_events)
                for num_events in (1, _MANY):
                    await bench.appends(num_events)
                progress(f"round {number + 1} of {options.rounds}: with Redis")
                await writer.hits(options.histories[0], FEW)
                await writer.appends(1)
                for num_events in options.histories[:_SHORT]:
                    await writer.cold(num_events)
                    await writer.deltas(num_events)
                    await reader.measure(num_events)
    return _put_together(loaded, options, bench, writer, reader)


class _Fetches:
    """Users whose states one replica writes to Redis and another fetches."""

    def __init__(
        self, first: Caller, second: Caller, pid: int, redis: int, items: np.ndarray, options: CalibrateOptions
    ) -> None:
        self._writer = _Bench(first, (), items, options)
        self._second = second
        self._pid, self._redis = pid, redis
        self._seconds = options.cell_s
        self._candidates = items[:FEW]
        self.server: defaultdict[int, list[float]] = defaultdict(list)
        self.redis: defaultdict[int, list[float]] = defaultdict(list)

    async def measure(self, num_events: int) -> None:
        """What one fetch costs the reader and Redis, and all else of its request."""
        count, server, redis = 0, 0.0, 0.0
        for _ in range(_MOST_GROUPS):
            users = [await self._writer.warm(num_events) for _ in range(_GROUP)]
            await asyncio.sleep(_WRITTEN_S)
            before = cpu_s((self._pid,)), cpu_s((self._redis,))
            answers = [await self._second.rank(user, self._candidates, self._writer.now_ms) for user in users]
            if all(answer.cache.source == pb.CacheInfo.REDIS for answer in answers):
                count += len(users)
                server += cpu_s((self._pid,)) - before[0]
                redis += cpu_s((self._redis,)) - before[1]
            if server >= self._seconds:
                break
        if not count:
            raise EngineFailure(f"no state of {num_events} events was fetched from Redis, of {_MOST_GROUPS * _GROUP}")
        self.server[num_events].append(server / count)
        self.redis[num_events].append(redis / count)


def _put_together(
    loaded: Checkpoint, options: CalibrateOptions, bench: _Bench, writer: _Bench, reader: _Fetches
) -> tuple[Costs, list[str]]:
    costs = _without_redis(loaded, options, bench)
    byte, chunk_tokens = costs.redis_token_bytes, costs.chunk_tokens
    # What Redis adds: to a rank, to an append, to what is stored, and to each byte of that; on average half a chunk and
    # what is new is written of a state that grew.
    rows = {"hit": (1, 0, 0, 0), "append": (0, 1, 0, 0), "delta": (1, 1, 1, (chunk_tokens / 2 + _DELTA) * byte)}
    cells = list(writer.cells)
    log_s, append_log_s, store_s, store_byte_s = fitted(
        [rows.get(kind, (1, 1, 1, n * byte)) for kind, n, _ in cells],
        [writer.of(*cell) for cell in cells],
        [bench.of(*cell) for cell in cells],
    )
    sizes = [(1, n * byte) for n in reader.server]
    fetch_s, fetch_byte_s = fitted(
        sizes,
        [median(seconds) for seconds in reader.server.values()],
        [bench.of("hit", n, FEW) + log_s for n in reader.server],
    )
    redis_s, redis_byte_s = fitted(sizes, [max(1e-6, median(seconds)) for seconds in reader.redis.values()])
    costs = replace(
        costs,
        log_s=log_s,
        append_log_s=append_log_s,
        fetch_s=fetch_s,
        fetch_byte_s=fetch_byte_s,
        store_s=store_s,
        store_byte_s=store_byte_s,
        redis_s=redis_s,
        redis_byte_s=redis_byte_s,
    )
    notes = [
        f"{kind} of {n} events, {m} candidates{where}: {of.of(kind, n, m) * 1e3:.3f} ms"
        for of, where in ((bench, ""), (writer, ", with Redis"))
        for kind, n, m in of.cells
    ]
    notes += [f"fetch of {n} events: {median(seconds) * 1e3:.3f} ms" for n, seconds in reader.server.items()]
    notes += [f"load of the machine {os.getloadavg()[0]:.1f}"]
    return costs, notes


def _without_redis(loaded: Checkpoint, options: CalibrateOptions, bench: _Bench) -> Costs:
    """What a call costs less what it has in common with another one; nothing is fitted."""
    append_event_s = max(0.0, bench.of("append", _MANY, 0) - bench.of("append", 1, 0)) / (_MANY - 1)
    append_s = max(0.0, bench.of("append", 1, 0) - append_event_s)
    encode, call, candidate = list[tuple[int, float]](), list[tuple[int, float]](), list[tuple[int, float]]()
    for n in options.histories:
        few, many = bench.of("hit", n, FEW), bench.of("hit", n, options.candidates)
        each = max(0.0, many - few) / (options.candidates - FEW)
        candidate.append((n, each))
        call.append((n, max(0.0, few - FEW * each)))
        encode.append((n, max(0.0, bench.of("cold", n, FEW) - append_s - n * append_event_s - few) / n))
    host_s = min(seconds for _, seconds in call)
    layout = layout_of(loaded.model, loaded.fingerprint, None)
    page = PlainLayout(loaded.prefix_model.kv_shape())
    costs = Costs(
        model=loaded.model.config.name,
        machine=this_machine().cpu,
        commit=commit() or "unknown",
        encode=tuple(encode),
        extend_s=0.0,
        call=tuple((n, seconds - host_s) for n, seconds in call),
        candidate=tuple(candidate),
        host_s=host_s,
        append_s=append_s,
        append_event_s=append_event_s,
        log_s=0.0,
        append_log_s=0.0,
        fetch_s=0.0,
        fetch_byte_s=0.0,
        store_s=0.0,
        store_byte_s=0.0,
        redis_s=0.0,
        redis_byte_s=0.0,
        client_s=median(bench.client_s),
        latency_s=options.latency_s,
        bandwidth=options.bandwidth,
        page_tokens=page.page_tokens,
        page_bytes=page.page_bytes,
        redis_token_bytes=layout.payload_bytes(1),
        chunk_tokens=layout.events_per_chunk * layout.tokens_per_event,
        max_history=loaded.model.config.max_history,
        window_chunk=loaded.model.config.window_chunk,
    )
    appending = append_s + _DELTA * append_event_s
    behind = [
        bench.of("delta", n, FEW) - bench.of("hit", n, FEW) - appending - costs.encode_s(n, _DELTA)
        for n in options.histories[:_SHORT]
    ]
    return replace(costs, extend_s=max(0.0, median(behind)))
