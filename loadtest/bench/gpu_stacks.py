"""Whole stacks on a device, against states on real pages as the engine keeps them: uncached, cached, appended.

`mfalcon bench score --device cuda` runs it, and `loadtest.bench.gpu_all` where there is torch, triton, numpy and
pydantic. What is timed has been held against the reference in the same run; a scenario where that fails has no time.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from loadtest.bench.gpu_timing import Ceilings, Place, Run, name_of, place, probe
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
from loadtest.report.result import Bar, as_ms, bar_table, headline
from loadtest.report.table import Part, Table
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
SETUP, ENCODE, SCORE, RECORDING, REQUEST, MASKED = "setup", "encode", "score", "recording", "request", "masked"
UNCACHED_BAR_MS, CACHED_BAR_MS, REPLAY_BAR_MS = 6.0, 4.2, 0.25
RATIO_BARS = {2048: 2.5, 512: 7.0}
MASKED_BAR = 2.0
_NUM_CHECKED = 16
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to measure. stacks: by name, none for all. scenarios: instead of theirs. with_float32: whether each stack is
    compared in float32 first. seconds: on each clock of each cell. budget_s: no cell is begun later than that.
    limit_gib: of the masked forward's scores.
    """

    stacks: tuple[str, ...] = ()
    scenarios: tuple[Scenario, ...] = ()
    with_float32: bool = True
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
    """One timed path. n_min, n_max: lengths of the users' histories. graph: whether scoring was replayed. skipped,
    error: why there is no time.
    """

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
    error: str | None = None


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
        """Comparisons and cells that failed."""
        failed = [f"{cell.stack} {cell.scenario}: {cell.path}: {cell.error}" for cell in self.cells if cell.error]
        return failed + [
            f"{law.stack} {law.scenario}: {law.statement}: {law.worst:.1e}, the bound is {law.bound:g}"
            for law in self.laws
            if not law.holds
        ]


def run(
    options: StackOptions,
    progress: Callable[[str], None],
    save: Callable[[StackResult], None] = lambda _: None,
    where: Place | None = None,
    write: Callable[[Law | StackCell], None] = lambda _: None,
) -> StackResult:
    """Measure every scenario; one that is wrong, or that fails, ends there and takes no other with it. `save` is given
    what there is after each step, `write` each finding.

    Raises ConfigError for an unknown stack, and where nothing can run.
    """
    where = where or place(options.seconds, options.budget_s, quick=options.quick)
    dtype = getattr(torch, options.dtype)
    scenarios = options.scenarios or _chosen(options, where.device)
    of_commit = options.commit or commit()
    result = StackResult("stacks", this_machine(where.device), of_commit, name_of(dtype), NOTES, bars=bars(()))

    def add(found: Law | StackCell) -> None:
        nonlocal result
        write(found)
        if isinstance(found, Law):
            result = replace(result, laws=(*result.laws, found))
        else:
            cells = (*result.cells, found)
            result = replace(result, cells=cells, bars=bars(cells))
        save(result)

    with torch.inference_mode():
        ceilings = where.ceilings or probe(where.clock, where.device, dtype)
        result = replace(result, ceilings=ceilings)
        for spec in dict.fromkeys(scenario.spec for scenario in scenarios if options.with_float32):
            progress(f"{spec.name}: laws in float32")
            worst = float32_error(spec, where.device, min(257, 2 * max(scenarios[0].lens)))
            add(Law(spec.name, "float32", "prefill and score = reference", worst, BOUNDS[torch.float32]))
        for index, scenario in enumerate(scenarios):
            if where.time_is_up:
                result = replace(result, left=tuple(f"{left.spec.name} {left.name}" for left in scenarios[index:]))
                break
            progress(f"{index + 1}/{len(scenarios)} {scenario.spec.name} {scenario.name}")
            _Measuring(scenario, where, ceilings, options, add).run(progress)
            gc.collect()
    save(result)
    return result


class _Measuring:
    """The paths of one scenario. Whatever fails is a cell that says so."""

    def __init__(
        self,
        scenario: Scenario,
        where: Place,
        ceilings: Ceilings,
        options: StackOptions,
        add: Callable[[Law | StackCell], None],
    ) -> None:
        self._scenario, self._where, self._ceilings, self._options = scenario, where, ceilings, options
        self._add = add
        self._sound = True

    def run(self, progress: Callable[[str], None]) -> None:
        """All paths, each written as soon as it is timed; none where a law is broken."""
        scenario = self._scenario
        spec, lens, m = scenario.spec, scenario.lens, scenario.m
        if not self._where.begin(f"{scenario.name}: {SETUP}", needed=True):
            return
        world = self._tried(SETUP, self._world)
        if world is None or not self._sound:
            return
        scoring = score_work(spec, lens, m)
        microbatches = scenario.microbatches or (scenario.num_targets,)
        for cached in scenario.cached:
            encode = partial(_encode, world, cached)
            self._cell(ENCODE, cached, None, False, encode, encode_work(spec, lens, cached))
        for microbatch in microbatches:
            self._cell(SCORE, min(lens), microbatch, False, partial(_score, world, microbatch), scoring)
        progress(f"{spec.name} {scenario.name}: recording graphs")
        largest = max(microbatches)
        recording = self._where.begin(f"{scenario.name}: {RECORDING}", needed=True)
        if recording and self._tried(RECORDING, lambda: self._replayed(world, largest)):
            for microbatch in microbatches:
                self._cell(SCORE, min(lens), microbatch, True, partial(_score, world, microbatch), scoring)
        for cached in scenario.cached:
            request = partial(_request, world, cached, largest)
            self._cell(REQUEST, cached, largest, True, request, encode_work(spec, lens, cached) + scoring)
        progress(f"{spec.name} {scenario.name}: one masked forward")
        self._masked(world, encode_work(spec, lens, 0) + scoring)

    def _world(self) -> World:
        """The users, once their laws hold."""
        where, dtype = self._where, getattr(torch, self._options.dtype)
        world = World(self._scenario, where.device, dtype, self._options.seed, plain=where.plain)
        for statement, worst in world.checks(_NUM_CHECKED):
            self._law(statement, worst)
        return world

    def _replayed(self, world: World, microbatch: int) -> bool:
        return self._law("a replayed graph = its launches", world.replayed(microbatch))

    def _law(self, statement: str, worst: float) -> bool:
        bound = BOUNDS[getattr(torch, self._options.dtype)]
        law = Law(self._scenario.spec.name, self._scenario.name, statement, worst, bound)
        self._add(law)
        self._sound &= law.holds
        return law.holds

    def _tried(self, path: str, action: Callable[[], Result]) -> Result | None:
        """None, and a cell that says why, where it fails."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001 (whatever a device refuses ends a cell, not the run)
            self._written(path, 0, None, False, Least(0, 0), error=f"{type(error).__name__}: {error}"[:500])
            return None

    def _masked(self, world: World, least: Least) -> None:
        gib, reason = world.masked_gib(), None
        if len(set(self._scenario.lens)) > 1:
            reason = "users of different lengths: each would need a mask of its own"
        elif gib > self._options.limit_gib:
            reason = f"its scores would need {gib:.1f} GiB, the limit is {self._options.limit_gib:g}"
        if reason is not None:
            self._written(MASKED, 0, None, False, least, skipped=reason)
            return
        if not self._where.begin(f"{self._scenario.name}: compared with one {MASKED} forward"):
            return

        def compared() -> bool:
            worst = world.wrong(world.masked(), world.score(self._scenario.num_targets), world.targets)
            return self._law("one masked forward = cached scores", worst)

        if self._tried(MASKED, compared):
            self._cell(MASKED, 0, None, False, lambda _: world.masked(), least)

    def _cell(self, path: str, cached: int, microbatch: int | None, graph: bool, action: Run, least: Least) -> None:
        if not self._where.begin(f"{self._scenario.name}: {path}, {cached} cached, {microbatch}, graph {graph}"):
            return
        device_ms = request_ms = error = skipped = None
        if self._where.time_is_up:
            skipped = "the time is up"
        else:
            try:
                request_ms = self._where.clock.request(action)
                device_ms = self._where.clock.device(action) if self._where.device.type != "cpu" else None
            except Exception as raised:  # noqa: BLE001 (whatever a device refuses ends a cell, not the run)
                error = f"{type(raised).__name__}: {raised}"[:500]
        self._written(path, cached, microbatch, graph, least, device_ms, request_ms, skipped, error)

    def _written(
        self,
        path: str,
        cached: int,
        microbatch: int | None,
        graph: bool,
        least: Least,
        device_ms: Spread | None = None,
        request_ms: Spread | None = None,
        skipped: str | None = None,
        error: str | None = None,
    ) -> None:
        scenario = self._scenario
        floor = self._ceilings.seconds(least.flops, least.num_bytes) * 1e3
        self._add(
            StackCell(
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
                error=error,
            )
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
            *(f"{cell.num_bytes / 1e6:.4g}", cell.error or cell.skipped or "-"),
        )
        for cell in result.cells
    ]
    yield Table("Stacks, median (min-max)", columns, rows)
    yield bar_table(result.bars)
    yield from (f"left out, the time was up: {name}" for name in result.left)
    yield from (f"RED {text}" for text in result.broken)


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
