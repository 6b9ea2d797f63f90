"""Whole stacks on a device, against states on real pages as the engine keeps them: uncached, cached, appended.

`mfalcon bench score --device cuda` runs it, and `loadtest.bench.gpu_all` where there is torch, triton, numpy and
pydantic. What is timed has been held against the reference in the same run; where that fails, nothing is
timed.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from loadtest.bench.gpu_timing import Ceilings, DeviceTimer, Run, bench_device, name_of, probe
from loadtest.bench.gpu_worlds import (
    BOUNDS,
    DLRM_V3,
    NVIDIA,
    SCENARIOS,
    TINY,
    Least,
    Scenario,
    World,
    encode_work,
    float32_error,
    score_work,
)
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, as_ms, bar_table, headline, say, write_json
from loadtest.report.table import Part, Table, as_text
from loadtest.report.timing import Spread
from mfalcon.errors import ConfigError

NOTES = (
    "encode: tokens behind `cached` of every history onto pages. score: all candidates on states that are there (a "
    "cached request). request: both. masked: one forward over [history, candidates] in plain torch, eager",
    "device_ms: events around it, behind a kernel that spins until the host has queued it all; None in the "
    "interpreter. request_ms: the host's clock from an idle device to an idle device. Median, fastest, slowest",
    "graph: scoring by recorded CUDA graphs of a fixed shape, as the engine does; encoding is never recorded",
    "flops: of the products, from the shapes; bytes: weights, keys and values of every layer once, rows in and out; "
    "floor_ms: the larger over the ceilings measured in this run; fraction = floor_ms / device_ms",
    "masked's fraction is of the floor of the request that it answers, uncached",
    "Meta's generative-recommenders, issue 530, reports 9.30 ms for the DLRM-v3 layers at 32 users on an H100",
    "no embedding, heads or transport; states' pages are allocated before",
)
ENCODE, SCORE, REQUEST, MASKED = "encode", "score", "request", "masked"
UNCACHED_BAR_MS, CACHED_BAR_MS, REPLAY_BAR_MS = 6.5, 4.5, 0.6
RATIO_BARS = {2048: 2.5, 512: 7.0}
MASKED_BAR = 2.0
_NUM_CHECKED = 16


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to measure. stacks: by name, none for all. seconds: on each clock of each cell. budget_s: no scenario is
    begun later than that. limit_gib: of the masked forward's scores.
    """

    stacks: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    seconds: float = 0.15
    budget_s: float = 1e9
    limit_gib: float = 16.0
    quick: bool = False
    seed: int = 0
    commit: str | None = None


@dataclass(frozen=True, slots=True)
class Law:
    """One comparison before the clock."""

    stack: str
    scenario: str
    statement: str
    worst: float
    bound: float

    @property
    def holds(self) -> bool:
        """Never for what is not a number."""
        return self.worst <= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class StackCell:
    """One timed path. n_min, n_max: lengths of the users' histories. graph: whether scoring was replayed."""

    stack: str
    scenario: str
    users: int
    n_min: int
    n_max: int
    m: int
    path: str
    cached: int
    graph: bool
    microbatch: int | None
    device_ms: Spread | None
    request_ms: Spread | None
    flops: int
    num_bytes: int
    floor_ms: float
    fraction: float | None
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class StackResult:
    """Everything that `mfalcon bench score --device` knows. left: scenarios that the budget left out."""

    benchmark: str
    machine: Machine
    commit: str | None
    dtype: str
    notes: tuple[str, ...]
    ceilings: Ceilings | None = None
    laws: tuple[Law, ...] = ()
    cells: tuple[StackCell, ...] = ()
    bars: tuple[Bar, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def broken(self) -> list[str]:
        """Comparisons that failed."""
        return [
            f"{law.stack} {law.scenario}: {law.statement}: {law.worst:.1e}, the bound is {law.bound:g}"
            for law in self.laws
            if not law.holds
        ]


def run(
    options: StackOptions, progress: Callable[[str], None], save: Callable[[StackResult], None] = lambda _: None
) -> StackResult:
    """Measure every scenario, but stop at one that is wrong; `save` is given what there is after each step.

    Raises ConfigError for an unknown stack, and where nothing can run.
    """
    begun, device = time.monotonic(), bench_device(quick=options.quick)
    dtype = getattr(torch, options.dtype)
    timer = DeviceTimer(device, options.seconds if device.type == "cuda" else 0.0)
    scenarios = _chosen(options, device)
    of_commit = options.commit or commit()
    result = StackResult("stacks", this_machine(device), of_commit, name_of(dtype), NOTES, bars=bars(()))
    with torch.inference_mode():
        result = replace(result, ceilings=probe(timer, device, dtype))
        for spec in dict.fromkeys(scenario.spec for scenario in scenarios):
            progress(f"{spec.name}: laws in float32")
            worst = float32_error(spec, device, min(257, 2 * max(scenarios[0].lens)))
            law = Law(spec.name, "float32", "prefill and score = reference", worst, BOUNDS[torch.float32])
            result = replace(result, laws=(*result.laws, law))
        save(result)
        for index, scenario in enumerate(scenarios):
            if result.broken:
                break
            if time.monotonic() - begun > options.budget_s:
                return replace(result, left=tuple(f"{left.spec.name} {left.name}" for left in scenarios[index:]))
            name = f"{scenario.spec.name} {scenario.name}"
            progress(f"{index + 1}/{len(scenarios)} {name}: laws")
            world = World(scenario, device, dtype, options.seed)
            for statement, worst in world.checks(_NUM_CHECKED):
                law = Law(scenario.spec.name, scenario.name, statement, worst, BOUNDS[dtype])
                result = replace(result, laws=(*result.laws, law))
            if result.broken:
                break
            measuring = _Measuring(world, timer, result.ceilings, options)
            for cell in measuring.cells(progress):
                cells = (*result.cells, cell)
                result = replace(result, cells=cells, bars=bars(cells))
                save(result)
            result = replace(result, laws=(*result.laws, *measuring.laws))
            del world, measuring
            gc.collect()
    save(result)
    return result


class _Measuring:
    """The paths of one scenario."""

    def __init__(self, world: World, timer: DeviceTimer, ceilings: Ceilings | None, options: StackOptions) -> None:
        assert ceilings is not None
        self._world, self._timer, self._ceilings, self._options = world, timer, ceilings, options
        self.laws: list[Law] = []

    def cells(self, progress: Callable[[str], None]) -> Iterator[StackCell]:
        """Each as soon as it is timed."""
        world, scenario = self._world, self._world.scenario
        spec, lens, m = scenario.spec, scenario.lens, scenario.m
        scoring = score_work(spec, lens, m)
        microbatches = scenario.microbatches or (scenario.num_targets,)
        for cached in scenario.cached:
            encode = partial(_encode, world, cached)
            yield self._cell(ENCODE, cached, None, False, encode, encode_work(spec, lens, cached))
        for microbatch in microbatches:
            yield self._cell(SCORE, min(lens), microbatch, False, partial(_score, world, microbatch), scoring)
        largest = max(microbatches)
        progress(f"{spec.name} {scenario.name}: recording graphs")
        worst = world.replayed(largest)
        law = Law(spec.name, scenario.name, "a replayed graph = its launches", worst, BOUNDS[world.dtype])
        self.laws.append(law)
        if not law.holds:
            return
        for microbatch in microbatches:
            yield self._cell(SCORE, min(lens), microbatch, True, partial(_score, world, microbatch), scoring)
        for cached in scenario.cached:
            request = partial(_request, world, cached, largest)
            yield self._cell(REQUEST, cached, largest, True, request, encode_work(spec, lens, cached) + scoring)
        progress(f"{spec.name} {scenario.name}: one masked forward")
        yield self._masked(encode_work(spec, lens, 0) + scoring)

    def _masked(self, least: Least) -> StackCell:
        world = self._world
        gib, reason = world.masked_gib(), None
        if len(set(world.scenario.lens)) > 1:
            reason = "users of different lengths: each would need a mask of its own"
        elif gib > self._options.limit_gib:
            reason = f"its scores would need {gib:.1f} GiB, the limit is {self._options.limit_gib:g}"
        if reason is None:
            worst = world.wrong(world.masked(), world.score(world.scenario.num_targets), world.targets)
            spec, name = world.scenario.spec.name, world.scenario.name
            self.laws.append(Law(spec, name, "one masked forward = cached scores", worst, BOUNDS[world.dtype]))
        return self._cell(MASKED, 0, None, False, lambda _: world.masked(), least, reason)

    def _cell(
        self,
        path: str,
        cached: int,
        microbatch: int | None,
        graph: bool,
        action: Run,
        least: Least,
        skipped: str | None = None,
    ) -> StackCell:
        world, scenario = self._world, self._world.scenario
        device_ms = request_ms = None
        if skipped is None:
            request_ms = self._timer.request(action)
            device_ms = self._timer.device(action) if world.device.type == "cuda" else None
        floor = self._ceilings.seconds(least.flops, least.num_bytes) * 1e3
        return StackCell(
            stack=scenario.spec.name,
            scenario=scenario.name,
            users=len(scenario.lens),
            n_min=min(scenario.lens),
            n_max=max(scenario.lens),
            m=scenario.m,
            path=path,
            cached=cached,
            graph=graph,
            microbatch=microbatch,
            device_ms=device_ms,
            request_ms=request_ms,
            flops=least.flops,
            num_bytes=least.num_bytes,
            floor_ms=floor,
            fraction=None if device_ms is None else floor / device_ms.median_ms,
            skipped=skipped,
        )


def bars(cells: Sequence[StackCell]) -> tuple[Bar, ...]:
    """The figures that are asked of the stacks, by device_ms."""
    batch = [cell for cell in cells if cell.stack == DLRM_V3.name and cell.users == 32 and cell.n_min == cell.n_max]
    one = [cell for cell in cells if cell.stack == DLRM_V3.name and cell.users == 1]
    replayed = _fastest([cell for cell in one if cell.m == 256 and cell.graph], SCORE)
    uncached, cached = _fastest(batch, REQUEST), _fastest(batch, SCORE)
    found = [
        Bar.most("DLRM-v3, 32 users, n 1,024, m 2,048, uncached, ms", _ms(uncached), UNCACHED_BAR_MS, _by(uncached)),
        Bar.most("DLRM-v3, 32 users, n 1,024, m 2,048, cached, ms", _ms(cached), CACHED_BAR_MS, _by(cached)),
        Bar.most("DLRM-v3, n 6,673, m 256, cached by replay, ms", _ms(replayed), REPLAY_BAR_MS, _by(replayed)),
    ]
    for m, bar in RATIO_BARS.items():
        of_m = [cell for cell in one if cell.m == m]
        slow, fast = _ms(_fastest(of_m, REQUEST)), _ms(_fastest(of_m, SCORE))
        ratio = None if slow is None or fast is None else slow / fast
        found.append(Bar.least(f"DLRM-v3, n 6,673, m {m:,}: uncached / cached", ratio, bar, "request, score"))
    steps = _steps([cell for cell in cells if cell.stack == NVIDIA.name])
    worst = min(steps, key=steps.__getitem__, default=None)
    name = "NVIDIA's block: masked eager / request, the worst step"
    return (*found, Bar.least(name, None if worst is None else steps[worst], MASKED_BAR, worst or "-"))


def page(result: StackResult) -> Iterator[Part]:
    """For people."""
    yield headline(result.machine, result.commit)
    if result.ceilings is not None:
        yield f"{result.dtype}; ceilings: {result.ceilings.described}"
    laws = [
        (law.stack, law.scenario, law.statement, f"{law.worst:.1e}", f"{law.bound:g}", "holds" if law.holds else "RED")
        for law in result.laws
    ]
    yield Table("Before the clock", ("stack", "scenario", "law", "worst", "bound", ""), laws)
    columns = (
        *("stack", "scenario", "path", "cached", "b_m", "graph", "device ms", "request ms", "floor", "of floor"),
        *("GFLOP", "MB", "skipped"),
    )
    rows = [
        (
            *(cell.stack, cell.scenario, cell.path, str(cell.cached), str(cell.microbatch or "-")),
            *("yes" if cell.graph else "no", as_ms(cell.device_ms), as_ms(cell.request_ms), f"{cell.floor_ms:.4g}"),
            *("-" if cell.fraction is None else f"{cell.fraction:.1%}", f"{cell.flops / 1e9:.4g}"),
            *(f"{cell.num_bytes / 1e6:.4g}", cell.skipped or "-"),
        )
        for cell in result.cells
    ]
    yield Table("Stacks, median (min-max)", columns, rows)
    yield bar_table(result.bars)
    yield from (f"left out, the time was up: {name}" for name in result.left)
    yield from (f"RED {text}" for text in result.broken)


def step(file: Path, budget_s: float, commit: str | None) -> bool:
    """A step of `loadtest.bench.gpu_all`: the result is in the file after every cell. False if a stack is wrong."""
    result = run(StackOptions(budget_s=budget_s, commit=commit), say, partial(write_json, file))
    write_json(file, result)
    print(as_text(page(result)))
    return not result.broken


def _chosen(options: StackOptions, device: torch.device) -> list[Scenario]:
    known = SCENARIOS if device.type == "cuda" and not options.quick else TINY
    names = {scenario.spec.name for scenario in known}
    if unknown := set(options.stacks) - names:
        raise ConfigError(f"stack: got {', '.join(sorted(unknown))}, must be one of {', '.join(sorted(names))}")
    return [scenario for scenario in known if not options.stacks or scenario.spec.name in options.stacks]


def _encode(world: World, cached: int, _: int) -> None:
    world.encode(cached)


def _score(world: World, microbatch: int, _: int) -> None:
    world.score(microbatch)


def _request(world: World, cached: int, microbatch: int, _: int) -> None:
    world.encode(cached)
    world.score(microbatch)


def _fastest(cells: Sequence[StackCell], path: str) -> StackCell | None:
    timed = [cell for cell in cells if cell.path == path and cell.device_ms is not None]
    return min(timed, key=lambda cell: _ms(cell) or 0.0, default=None)


def _ms(cell: StackCell | None) -> float | None:
    return None if cell is None or cell.device_ms is None else cell.device_ms.median_ms


def _by(cell: StackCell | None) -> str:
    if cell is None:
        return "-"
    how = "graph" if cell.graph else "eager"
    return f"{cell.path}, {how}, microbatch {cell.microbatch}; request {as_ms(cell.request_ms)}"


def _steps(cells: Sequence[StackCell]) -> dict[str, float]:
    """How much slower the masked forward is than each request of the sweep."""
    masked = {cell.scenario: _ms(cell) for cell in cells if cell.path == MASKED}
    steps = {}
    for cell in cells:
        ours, theirs = _ms(cell), masked.get(cell.scenario)
        if cell.path == REQUEST and ours is not None and theirs is not None:
            steps[f"{cell.scenario}, {cell.cached} cached"] = theirs / ours
    return steps
