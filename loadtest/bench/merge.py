"""What an ensemble costs: its members alone and merged, in turns, on engines of one core and of all."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, as_ms, bar_table, headline
from loadtest.report.table import Part, Table
from loadtest.report.timing import Spread, spread
from mfalcon.cores import owned_cores
from mfalcon.engine.compose import EngineConfig, compose_all
from mfalcon.engine.engine import Engine
from mfalcon.engine.ensemble import EnsembleOptions, MemberOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import EVENT_DTYPE, Append, RankRequest, no_events

_USER, _MERGED = "ann", "merged"
_NOW_MS = 1_700_000_000_000
_MOST = 1.15
_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """candidates, events: of each rank, whose state is cached. rounds: how often each is timed, in turns."""

    candidates: tuple[int, ...] = (1_000,)
    events: int = 200
    rounds: int = 200


@dataclass(frozen=True, slots=True)
class MergeCell:
    """A rank by one member or by all, on an engine of so many cores."""

    asked: str
    cores: int
    candidates: int
    took: Spread


@dataclass(frozen=True, slots=True)
class MergeResult:
    """Everything that `mfalcon bench merge` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    options: MergeOptions
    members: tuple[str, ...]
    cells: tuple[MergeCell, ...]
    bars: tuple[Bar, ...]


def run(paths: Sequence[Path], options: MergeOptions, progress: Callable[[str], None]) -> MergeResult:
    """Time every rank in turns. The bar: all members on as many cores take no longer than the slowest of them alone on
    one, and a little.
    """
    names = tuple(path.resolve().name for path in paths)
    loaded = {name: checkpoint.load(path, torch.float32, "cpu") for name, path in zip(names, paths, strict=True)}
    cells = asyncio.run(_measure(loaded, options, progress))
    bars = []
    for num in options.candidates:
        alone = [c.took.median_ms for c in cells if c.asked != _MERGED and c.cores == 1 and c.candidates == num]
        merged = [c.took.median_ms for c in cells if c.asked == _MERGED and c.candidates == num]
        name = f"{len(names)} members merged, {num:,} candidates: times the slowest alone on one core"
        bars.append(Bar.most(name, merged[0] / max(alone), _MOST))
    return MergeResult("merge", this_machine(), commit(), options, names, tuple(cells), tuple(bars))


async def _measure(
    loaded: dict[str, Checkpoint], options: MergeOptions, progress: Callable[[str], None]
) -> list[MergeCell]:
    num_cores = min(owned_cores(), len(loaded))
    rng, known = np.random.default_rng(0), next(iter(loaded.values())).items.item_id
    items, events = rng.choice(known, max(options.candidates)), np.zeros(options.events, dtype=EVENT_DTYPE)
    events["item_id"], events["actions"], events["value"] = rng.choice(known, options.events), 1, 4.0
    events["time_ms"] = _NOW_MS - 10**9 + np.arange(options.events) * 10**6
    engines = {cores: await _started(loaded, cores) for cores in sorted({1, num_cores})}
    for engine in engines.values():
        await engine.append_events(_USER, Append(events, 0))
    asked = [(name, cores, num) for num in options.candidates for cores in engines for name in loaded]
    asked += [(_MERGED, num_cores, num) for num in options.candidates]
    seconds: dict[tuple[str, int, int], list[float]] = {key: [] for key in asked}
    progress(f"{len(asked)} cells, {options.rounds} rounds")
    for turn in range(options.rounds + 5):
        for name, cores, num in asked:
            request = RankRequest(_USER, items[:num], 10, _NOW_MS, no_events(), {})
            began = time.perf_counter()
            result = await engines[cores].rank(request, None, name)
            took = time.perf_counter() - began
            assert not result.partial_merge
            if turn >= 5:
                seconds[name, cores, num].append(took)
    for engine in engines.values():
        await engine.close()
    return [MergeCell(*key, spread(times)) for key, times in seconds.items()]


async def _started(loaded: dict[str, Checkpoint], cores: int) -> Engine:
    models = [(member, RankerOptions(name=name, kv_budget_bytes=64 << 20)) for name, member in loaded.items()]
    members = tuple(MemberOptions(name, 1.0) for name in loaded)
    ensemble = EnsembleOptions(_MERGED, members, budget_s=_WAIT_S, min_members=len(members))
    engine = compose_all(models, EngineConfig(threads=cores), None, [ensemble])
    await asyncio.to_thread(engine.wait_ready, _WAIT_S)
    return engine


def page(result: MergeResult) -> Iterator[Part]:
    """What was measured where, the cells and the bars."""
    yield headline(result.machine, result.commit)
    options = result.options
    title = f"A rank whose state is cached, {options.events} events: ms, median (min-max) of {options.rounds}, in turns"
    rows = [(c.asked, str(c.cores), f"{c.candidates:,}", as_ms(c.took)) for c in result.cells]
    yield Table(title, ("asked", "cores", "candidates", "ms"), rows)
    yield bar_table(result.bars)
