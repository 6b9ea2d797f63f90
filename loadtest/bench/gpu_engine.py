"""The engine on a device: ranks of a cached user, of one with new events, of one whose state comes up from the host, of
many at once.

A random ranker of DLRM-v3's width, its relative bias on; embeddings, heads and the event log count. Medians of the
host's clock around `Engine.rank`. A rehearsal asks the same of a tiny ranker on the CPU.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from loadtest.bench.gpu_engine_sizes import NUM_ITEMS, REAL, REHEARSAL, Sizes
from loadtest.bench.gpu_record import CELL, Record, Turns
from loadtest.bench.gpu_run import START_S, asked, backend_of
from loadtest.bench.random_checkpoint import random_checkpoint
from mfalcon.backends.select import serve, workspace_of
from mfalcon.cores import owned_cores
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.ranker import RankerOptions
from mfalcon.models import checkpoint as checkpoints
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import EVENT_DTYPE, Append, Events, RankRequest, RankResult, no_events

_NOW_MS = 1_700_000_000_000
_START_S = 120.0
_ENGINE_S = 8.0
"""Assumed for an engine that starts, records its graphs and answers some ranks."""


@dataclass(frozen=True, slots=True)
class EngineCell:
    """What was asked, and how long it took. sources: where the states were found, each once."""

    name: str
    m: int
    n: int
    users: int
    p50_ms: float | None = None
    least_ms: float | None = None
    most_ms: float | None = None
    per_second: float | None = None
    sources: tuple[str, ...] = ()
    error: str | None = None


def measure(sizes: Sizes, backend: str, record: Record, time_is_up: Callable[[], bool]) -> None:
    """Every cell as soon as it is measured; one that fails takes no other with it."""
    made = random_checkpoint(sizes.shape, NUM_ITEMS, max_history=sizes.max_history)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random"
        checkpoints.save(path, made.model, made.items)
        loaded = checkpoints.load(path, getattr(torch, sizes.dtype), sizes.device)
        window = loaded.prefix_model.kv_shape().bytes_per_token() * 1024 * (-(-sizes.max_history // 1024) + 1)
        beside = workspace_of(serve(loaded.model, backend).stack)
        cells: tuple[tuple[str, int, Callable[[Engine, Sizes], Awaitable[EngineCell]]], ...] = (
            ("cached", 8 * window, _cached),
            ("16 new events", 8 * window, _appended),
            ("from the host", 0 if sizes.device == "cpu" else 3 * window, _promoted),
            ("at once", 8 * window, _at_once),
        )
        turns = Turns(record)
        for name, device_bytes, cell in cells:
            if time_is_up():
                return
            if not turns.begin(name):
                continue
            options = RankerOptions(
                backend=backend, device_budget_bytes=device_bytes and device_bytes + beside, kv_budget_bytes=1 << 30
            )
            record.add(CELL, _tried(name, sizes, partial(_in_engine, loaded, sizes, options, cell)))
        if sizes is REHEARSAL:
            record.predict(START_S + _ENGINE_S * len(cells))


def _tried(name: str, sizes: Sizes, action: Callable[[], EngineCell]) -> EngineCell:
    try:
        return action()
    except Exception as error:  # noqa: BLE001 (whatever fails ends a cell, not the run)
        return EngineCell(name, sizes.m, 0, 0, error=f"{type(error).__name__}: {error}"[:500])


def _in_engine(
    loaded: Checkpoint, sizes: Sizes, options: RankerOptions, cell: Callable[[Engine, Sizes], Awaitable[EngineCell]]
) -> EngineCell:
    async def inside() -> EngineCell:
        engine = compose(loaded, EngineConfig(owned_cores(), ranker=options))
        try:
            engine.wait_ready(_START_S)
            return await cell(engine, sizes)
        finally:
            await engine.close()

    return asyncio.run(inside())


async def _cached(engine: Engine, sizes: Sizes) -> EngineCell:
    await engine.append_events("user", Append(_events(sizes.long), 0))
    await engine.rank(_request("user", sizes.m), None)
    return await _ranked("cached", engine, sizes, ["user"] * sizes.rounds)


async def _appended(engine: Engine, sizes: Sizes) -> EngineCell:
    await engine.append_events("user", Append(_events(sizes.long), 0))
    await engine.rank(_request("user", sizes.m), None)

    last_ms = _NOW_MS

    async def append() -> None:
        nonlocal last_ms
        last_ms += 16
        await engine.append_events("user", Append(_events(16, last_ms)))

    return await _ranked("16 new events", engine, sizes, ["user"] * sizes.rounds, append)


async def _promoted(engine: Engine, sizes: Sizes) -> EngineCell:
    users = [f"user-{number}" for number in range(sizes.few)]
    for user in users:
        await engine.append_events(user, Append(_events(sizes.long), 0))
        await engine.rank(_request(user, sizes.m), None)
    return await _ranked(
        "from the host", engine, sizes, users * -(-sizes.rounds // sizes.few), lambda: asyncio.sleep(0.05)
    )


async def _at_once(engine: Engine, sizes: Sizes) -> EngineCell:
    users = [f"user-{number}" for number in range(sizes.many)]
    for user in users:
        await engine.append_events(user, Append(_events(sizes.short), 0))
        await engine.rank(_request(user, sizes.m), None)
    taken, results = [], []
    for _ in range(sizes.rounds):
        begun = time.perf_counter()
        results = list(await asyncio.gather(*(engine.rank(_request(user, sizes.m), None) for user in users)))
        taken.append(time.perf_counter() - begun)
    return _cell("at once", sizes.m, sizes.short, sizes.many, taken, results)


async def _ranked(
    name: str,
    engine: Engine,
    sizes: Sizes,
    users: Sequence[str],
    before: Callable[[], Awaitable[None]] | None = None,
) -> EngineCell:
    """One rank after the other. before: what is done, off the clock, before each."""
    taken, results = [], []
    for user in users:
        if before is not None:
            await before()
        begun = time.perf_counter()
        results.append(await engine.rank(_request(user, sizes.m), None))
        taken.append(time.perf_counter() - begun)
    return _cell(name, sizes.m, sizes.long, 1, taken, results)


def _cell(name: str, m: int, n: int, users: int, taken: Sequence[float], results: Sequence[RankResult]) -> EngineCell:
    return EngineCell(
        name=name,
        m=m,
        n=n,
        users=users,
        p50_ms=statistics.median(taken) * 1e3,
        least_ms=min(taken) * 1e3,
        most_ms=max(taken) * 1e3,
        per_second=users / statistics.median(taken),
        sources=tuple(sorted({result.cache.source.name.lower() for result in results})),
    )


def _events(num: int, until_ms: int = _NOW_MS) -> Events:
    """One a millisecond."""
    rng = np.random.default_rng(num)
    events = np.zeros(num, dtype=EVENT_DTYPE)
    events["item_id"] = rng.integers(1, NUM_ITEMS + 1, num)
    events["actions"] = 1
    events["time_ms"] = until_ms - num + np.arange(num)
    return events


def _request(user: str, m: int) -> RankRequest:
    candidates = np.random.default_rng(m).integers(1, NUM_ITEMS + 1, m)
    return RankRequest(user, candidates, 0, _NOW_MS + 10**9, no_events(), {})


def main() -> None:
    """A rehearsal asks something tiny, on the CPU."""
    given = asked(__doc__)
    sizes = REHEARSAL if given.rehearse else REAL
    measure(sizes, backend_of(given), Record(given.record, "engine"), given.time_is_up)


if __name__ == "__main__":
    main()
