"""Scoring candidates against a cached state: every backend side by side, the counted floor, and what it replaces."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from loadtest.bench.busy import Neighbour, neighbour
from loadtest.bench.floor import prefill_work, score_work, sum_work
from loadtest.bench.peaks import Peaks, faster, probe
from loadtest.bench.peer import dense_forward, refusal
from loadtest.bench.shapes import (
    REQUEST_TIME_MS,
    Shape,
    dtype_named,
    random_events,
    random_model,
    random_targets,
    shape_named,
)
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.timing import Cell, Samples, Spread, always, measured, spread, take_turns
from mfalcon.algorithm import prefill, score
from mfalcon.backends.choice import REFERENCE, runnable
from mfalcon.backends.select import ServedModel, serve
from mfalcon.models.base import Ranker, Targets

UNBATCHED, PEER = "unbatched", "peer"
"""Beside the backends: the reference with all candidates in one microbatch, and the dense forward of the peer."""

NOTES = (
    "ms: scoring all m candidates against a state of n events that is cached, at the microbatch that was fastest for "
    "this backend and n in the same run; median, and fastest and slowest run (ms_spread)",
    "floor_ms: counted FLOPs and SiLUs of scoring at the best peaks probed in this run, with the same threads; "
    "fraction = floor_ms / ms; in tables also over the fastest run, which neighbours on the machine disturb less",
    "peaks: of torch's and oneDNN's products, and of SiLU in the fused kernel's code; where no compiler is found, of "
    "torch's SiLU (silus_by), which is slower, so that fractions of a fused kernel may exceed 1",
    "unbatched: the reference backend with all candidates in one microbatch",
    "peer: one dense forward over [history, candidates] in plain torch, as public implementations do it; it encodes "
    "the history each time, and its fraction is of the same floor",
    "instead_ms: one forward over [history, candidate] for each candidate in the same backend (prefill, then score "
    "one), measured a few times and multiplied by m: scaled, not measured; speedup = instead_ms / ms, and work_ratio "
    "is the same in counted FLOPs",
    "busy_ms: the same beside a process that keeps one core busy, in turns with the quiet runs; busy_ratio = "
    "busy_ms / ms",
    "competitors take turns, so that neighbours slow all alike: each finds the caches as the one before it left them",
    "worst_difference: of the scores from those of the reference backend",
)

TORCH_MICROBATCHES, FUSED_MICROBATCHES = (64, 128, 256, 512), (48, 96, 192)
PEAK_SECONDS = 1.0
_SWEEP_TARGETS = 512
"""Most candidates of a microbatch's trial."""
_MIN_ROUNDS, _MAX_ROUNDS = 3, 100


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What to measure.

    backends: names of mfalcon.backends.choice or UNBATCHED; none: all that run here, without the portable ones.
    microbatches: to try with every backend; none: those that suit it. seconds: to spend on repeating each cell. busy:
    also beside a busy process. peer: also loadtest.bench.peer, where it needs at most masked_gib.
    """

    shapes: tuple[str, ...] = ("S", "B")
    histories: tuple[int, ...] = (256, 1024, 4096)
    candidates: tuple[int, ...] = (64, 512, 2048)
    backends: tuple[str, ...] = ()
    microbatches: tuple[int, ...] = ()
    dtype: str = "float32"
    seconds: float = 2.0
    busy: bool = False
    peer: bool = False
    masked_gib: float = 1.0
    seed: int = 0


QUICK = ScoreOptions(("S",), (1024,), (64, 512), seconds=1.0)
"""Less than a minute."""


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """Scoring at one microbatch."""

    microbatch: int
    ms: Spread


@dataclass(frozen=True, slots=True)
class Sweep:
    """Microbatches of one backend at one history length, in turns with the other backends'."""

    shape: str
    n: int
    m: int
    backend: str
    points: tuple[SweepPoint, ...]

    @property
    def best(self) -> int:
        """Microbatch of the fastest median."""
        return min(self.points, key=lambda point: point.ms.median_ms).microbatch


@dataclass(frozen=True, slots=True)
class Skipped:
    """A cell that was not measured, and why."""

    shape: str
    n: int
    m: int
    backend: str
    reason: str


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Everything that `mfalcon bench score` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    dtype: str
    notes: tuple[str, ...]
    peaks: Peaks
    sweeps: tuple[Sweep, ...]
    cells: tuple[Cell, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class _Timed:
    """A cell before the peaks of the whole run are known."""

    n: int
    m: int
    backend: str
    microbatch: int | None
    samples: Samples
    forward: Samples | None
    worst_difference: float


def run(options: ScoreOptions, progress: Callable[[str], None]) -> ScoreResult:
    """Measure every cell. `progress` is told what comes next.

    Raises ConfigError for an unknown shape or dtype, and for a backend that cannot run here.
    """
    shapes, dtype = [shape_named(name) for name in options.shapes], dtype_named(options.dtype)
    machine, backends = this_machine(), backends_here(options.backends, dtype)
    if not options.backends:
        backends.append(UNBATCHED)
    progress(f"backends: {', '.join(backends)}")
    progress(f"peaks with {machine.threads} threads")
    peaks = probe(2 * PEAK_SECONDS)
    progress(peaks.described)
    sweeps: list[Sweep] = []
    skipped: list[Skipped] = []
    timed: list[tuple[Shape, _Timed]] = []
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        busy = stack.enter_context(neighbour()) if options.busy else None
        for shape in shapes:
            model = random_model(shape, dtype, options.seed)
            for n in options.histories:
                bench = _AtLength(shape, model, n, backends, options, busy)
                progress(f"{shape.name} n={n}: microbatches")
                sweeps += bench.sweep()
                progress(f"{shape.name} n={n}: one forward per candidate")
                bench.time_forwards()
                for m in options.candidates:
                    progress(f"{shape.name} n={n} m={m}")
                    timed += [(shape, cell) for cell in bench.cells(m)]
                    skipped += bench.refused(m)
                # A shared machine shows its peak only now and then: the floor divides by the best that was seen.
                peaks = faster(peaks, probe(PEAK_SECONDS))
    cells = tuple(_cell(shape, cell, peaks, options) for shape, cell in timed)
    return ScoreResult("score", machine, commit(), options.dtype, NOTES, peaks, tuple(sweeps), cells, tuple(skipped))


def backends_here(asked: Sequence[str], dtype: torch.dtype) -> list[str]:
    """The backends that were asked for, or all that run here without the portable ones, which are for tests."""
    if asked:
        return list(dict.fromkeys(asked))
    return [choice.name for choice in runnable(torch.device("cpu"), dtype) if not choice.name.startswith("portable")]


def worst_difference(scores: Tensor, expected: Tensor) -> float:
    """Largest absolute difference."""
    return float((scores.double() - expected.double()).abs().max())


class _AtLength:
    """One shape and history length: a state of every backend, and what is timed on them."""

    def __init__(
        self,
        shape: Shape,
        model: Ranker,
        n: int,
        backends: Sequence[str],
        options: ScoreOptions,
        busy: Neighbour | None,
    ) -> None:
        self._shape, self._model, self._n, self._options, self._busy = shape, model, n, options, busy
        self._events = random_events(n, options.seed + 1)
        served = [serve(model, name) for name in backends if name != UNBATCHED]
        self._unbatched = UNBATCHED in backends
        self._served = {each.stack.name: each for each in served}
        self._reference = self._served.get(REFERENCE) or serve(model, REFERENCE)
        self._states = {name: prefill(each, self._events) for name, each in self._served.items()}
        self._reference_state = self._states.get(REFERENCE) or prefill(self._reference, self._events)
        self._best: dict[str, int] = {}
        self._forwards: dict[str, Samples] = {}

    def sweep(self) -> list[Sweep]:
        """Try the microbatches of every backend."""
        m = min(max(self._options.candidates), _SWEEP_TARGETS)
        targets = self._targets(m)
        sizes = {name: self._sizes(served, m) for name, served in self._served.items()}
        actions = {(name, size): always(self._scoring(name, targets, size)) for name in sizes for size in sizes[name]}
        for action in actions.values():
            action()()
        samples = take_turns(actions, self._options.seconds / 2, _MIN_ROUNDS, _MAX_ROUNDS)
        found = []
        for name, of_backend in sizes.items():
            points = tuple(SweepPoint(size, spread(samples[name, size].quiet)) for size in of_backend)
            found.append(Sweep(self._shape.name, self._n, m, name, points))
            self._best[name] = found[-1].best
        return found

    def time_forwards(self) -> None:
        """Time a prefill and the score of one candidate."""

        def forward(served: ServedModel, targets: Targets) -> Tensor:
            return score(served, prefill(served, self._events), targets, REQUEST_TIME_MS, 1)

        one = self._targets(1)
        actions = {name: always(partial(forward, served, one)) for name, served in self._served.items()}
        self._forwards = take_turns(actions, self._options.seconds / 2, _MIN_ROUNDS, _MAX_ROUNDS)

    def cells(self, m: int) -> Iterator[_Timed]:
        """Time every competitor at a number of candidates."""
        targets = self._targets(m)
        runs = {name: self._scoring(name, targets, self._best[name]) for name in self._served}
        expected = self._of_reference(targets, m)
        if self._unbatched:
            runs[UNBATCHED] = partial(self._of_reference, targets, m)
        if self._options.peer and not self.refused(m):
            runs[PEER] = partial(dense_forward, self._model, self._events, targets, REQUEST_TIME_MS)
        worst = {name: worst_difference(run(), expected) for name, run in runs.items()}  # also the warm-up
        actions = {name: always(run) for name, run in runs.items()}
        samples = take_turns(actions, self._options.seconds, _MIN_ROUNDS, _MAX_ROUNDS, self._busy)
        microbatches = {**self._best, UNBATCHED: m}
        for name in runs:
            forward = self._forwards.get(REFERENCE if name == UNBATCHED else name)
            yield _Timed(self._n, m, name, microbatches.get(name), samples[name], forward, worst[name])

    def refused(self, m: int) -> list[Skipped]:
        """The peer, where it needs too much memory."""
        reason = refusal(self._shape, self._n, m, self._options.masked_gib) if self._options.peer else None
        return [Skipped(self._shape.name, self._n, m, PEER, reason)] if reason else []

    def _targets(self, m: int) -> Targets:
        return random_targets(m, self._options.seed + 2)

    def _sizes(self, served: ServedModel, m: int) -> list[int]:
        suited = TORCH_MICROBATCHES if served.stack.name == REFERENCE else FUSED_MICROBATCHES
        return sorted({min(size, m) for size in self._options.microbatches or suited})

    def _scoring(self, name: str, targets: Targets, microbatch: int) -> Callable[[], Tensor]:
        return partial(score, self._served[name], self._states[name], targets, REQUEST_TIME_MS, microbatch)

    def _of_reference(self, targets: Targets, microbatch: int) -> Tensor:
        return score(self._reference, self._reference_state, targets, REQUEST_TIME_MS, microbatch)


def _cell(shape: Shape, timed: _Timed, peaks: Peaks, options: ScoreOptions) -> Cell:
    n, m = timed.n, timed.m
    work = score_work(shape, n, m)
    alone = sum_work(prefill_work(shape, n), score_work(shape, n, 1))
    return measured(
        "score",
        shape.name,
        n,
        timed.samples,
        work.seconds(peaks.flops(dtype_named(options.dtype)), peaks.silus) * 1e3,
        m=m,
        dtype=options.dtype,
        backend=timed.backend,
        microbatch=timed.microbatch,
        instead_ms=None if timed.forward is None else spread(timed.forward.quiet).median_ms * m,
        work_ratio=None if timed.forward is None else m * alone.flops / work.flops,
        worst_difference=timed.worst_difference,
    )
