"""Prefill of a history and append of a few events to its state, on every backend, against the counted floor."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from loadtest.bench.busy import Neighbour, neighbour
from loadtest.bench.floor import append_work, prefill_work
from loadtest.bench.peaks import Peaks, faster, probe
from loadtest.bench.score import PEAK_SECONDS, backends_here, worst_difference
from loadtest.bench.shapes import (
    REQUEST_TIME_MS,
    Shape,
    dtype_named,
    events_between,
    random_events,
    random_model,
    random_targets,
    shape_named,
)
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.timing import Action, Cell, Samples, measured, spread, take_turns
from mfalcon.algorithm import append, prefill, score
from mfalcon.backends.choice import REFERENCE
from mfalcon.backends.select import ServedModel, serve
from mfalcon.kvcache.state import KVState
from mfalcon.models.base import EventTokens, Ranker

NOTES = (
    "prefill: ms of encoding n events into a new state (k = n)",
    "append: ms of appending k events to a state of n that is the newest of its lineage, the usual case in serving; "
    "the events of its last page that is not full are appended anew before each run, outside the clock",
    "fork_ms: the same append where the state is not the newest of its lineage, so that its last page is copied "
    "first; to a state of n - 1 where n fills its pages and there would be nothing to copy",
    "instead_ms: the prefill of n in the same run and backend, what an append replaces (its own k events left out); "
    "speedup = instead_ms / ms, and work_ratio is the same in counted FLOPs",
    "floor_ms: counted FLOPs and SiLUs at the best peaks probed in this run, with the same threads; fraction = "
    "floor_ms / ms; in tables also over the fastest run, which neighbours on the machine disturb less",
    "peaks: of torch's and oneDNN's products, and of SiLU in the fused kernel's code; where no compiler is found, of "
    "torch's SiLU (silus_by), which is slower, so that fractions of a fused kernel may exceed 1",
    "busy_ms: the same beside a process that keeps one core busy, in turns with the quiet runs; busy_ratio = "
    "busy_ms / ms",
    "competitors take turns, so that neighbours slow all alike: each finds the caches as the one before it left them",
    "worst_difference: of the scores against this state from those of the reference backend against its own",
    "m: no candidates are scored",
)

_NUM_TARGETS = 8
_MIN_ROUNDS, _MAX_ROUNDS = 3, 100


@dataclass(frozen=True, slots=True)
class AppendOptions:
    """What to measure; see ScoreOptions."""

    shapes: tuple[str, ...] = ("S", "B")
    histories: tuple[int, ...] = (256, 1024, 4096)
    events: tuple[int, ...] = (1, 10, 100)
    backends: tuple[str, ...] = ()
    dtype: str = "float32"
    seconds: float = 2.0
    busy: bool = False
    seed: int = 0


QUICK = AppendOptions(("S",), (1024,), seconds=1.0)
"""Less than a minute."""


@dataclass(frozen=True, slots=True)
class AppendResult:
    """Everything that `mfalcon bench append` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    dtype: str
    notes: tuple[str, ...]
    peaks: Peaks
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class _What:
    """What is timed: a prefill (k = n), an append of k events to the newest state, or a fork."""

    backend: str
    phase: str
    k: int


@dataclass(frozen=True, slots=True)
class _Timed:
    """One history length before the peaks of the whole run are known."""

    shape: Shape
    n: int
    samples: dict[_What, Samples]
    worst: dict[_What, float]


class _Lineage:
    """A history in one backend: its states, and the ways to make them longer."""

    def __init__(self, served: ServedModel, events: EventTokens, n: int) -> None:
        """events: at least one more than n."""
        self.served = served
        self._events = events
        self._n = n
        full = n - n % served.pool.layout.page_tokens
        self._full_pages = self._prefill(full)
        self._fork_at = n if n > full else n - 1
        self._older = self._prefill(self._fork_at)
        self._newer = self._append(self._older, self._fork_at, 1)  # so that its last page is no longer its to write on

    def run(self, what: _What) -> Callable[[], KVState]:
        """Prepare one run."""
        if what.phase == "prefill":
            return partial(self._prefill, self._n)
        if what.phase == "append":
            return partial(self._append, self._newest(), self._n, what.k)
        return partial(self._append, self._older, self._fork_at, what.k)

    def _newest(self) -> KVState:
        """A state of n that nobody has made longer."""
        return self._append(self._full_pages, self._full_pages.num_tokens, self._n - self._full_pages.num_tokens)

    def _prefill(self, n: int) -> KVState:
        return prefill(self.served, events_between(self._events, 0, n))

    def _append(self, state: KVState, n: int, k: int) -> KVState:
        return append(self.served, state, events_between(self._events, n, n + k)) if k else state


def run(options: AppendOptions, progress: Callable[[str], None]) -> AppendResult:
    """Measure every cell. `progress` is told what comes next.

    Raises ConfigError for an unknown shape or dtype, and for a backend that cannot run here.
    """
    shapes, dtype = [shape_named(name) for name in options.shapes], dtype_named(options.dtype)
    machine, backends = this_machine(), backends_here(options.backends, dtype)
    progress(f"backends: {', '.join(backends)}")
    progress(f"peaks with {machine.threads} threads")
    peaks = probe(2 * PEAK_SECONDS)
    progress(peaks.described)
    timed: list[_Timed] = []
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        busy = stack.enter_context(neighbour()) if options.busy else None
        for shape in shapes:
            model = random_model(shape, dtype, options.seed)
            for n in options.histories:
                progress(f"{shape.name} n={n}")
                timed.append(_time(shape, model, n, backends, options, busy))
                peaks = faster(peaks, probe(PEAK_SECONDS))
    cells = tuple(cell for at in timed for cell in _cells(at, peaks, options))
    return AppendResult("append", machine, commit(), options.dtype, NOTES, peaks, cells)


def _time(
    shape: Shape, model: Ranker, n: int, backends: Sequence[str], options: AppendOptions, busy: Neighbour | None
) -> _Timed:
    events = random_events(n + max(options.events), options.seed + 1)
    served = [serve(model, name) for name in backends]
    lineages = {each.stack.name: _Lineage(each, events, n) for each in served}
    expected = lineages.get(REFERENCE) or _Lineage(serve(model, REFERENCE), events, n)
    ways = [("prefill", n), *((phase, k) for k in options.events for phase in ("append", "fork"))]
    truth = {way: _scores(expected, _What(REFERENCE, *way)) for way in ways}
    actions: dict[_What, Action] = {}
    worst: dict[_What, float] = {}
    for name, lineage in lineages.items():
        for way in ways:
            what = _What(name, *way)
            actions[what] = partial(lineage.run, what)
            worst[what] = worst_difference(_scores(lineage, what), truth[way])  # also the warm-up
    return _Timed(shape, n, take_turns(actions, options.seconds, _MIN_ROUNDS, _MAX_ROUNDS, busy), worst)


def _scores(lineage: _Lineage, what: _What) -> Tensor:
    state, targets = lineage.run(what)(), random_targets(_NUM_TARGETS, 0)
    return score(lineage.served, state, targets, REQUEST_TIME_MS, _NUM_TARGETS)


def _cells(timed: _Timed, peaks: Peaks, options: AppendOptions) -> Iterator[Cell]:
    shape, n = timed.shape, timed.n
    rates = (peaks.flops(dtype_named(options.dtype)), peaks.silus)
    whole = prefill_work(shape, n)
    for what, samples in timed.samples.items():
        if what.phase == "fork":
            continue
        instead_ms = work_ratio = fork_ms = None
        work, worst = whole, timed.worst[what]
        if what.phase == "append":
            fork = _What(what.backend, "fork", what.k)
            work = append_work(shape, n, what.k)
            instead_ms = spread(timed.samples[_What(what.backend, "prefill", n)].quiet).median_ms
            work_ratio = whole.flops / work.flops
            fork_ms = spread(timed.samples[fork].quiet).median_ms
            worst = max(worst, timed.worst[fork])
        yield measured(
            what.phase,
            shape.name,
            n,
            samples,
            work.seconds(*rates) * 1e3,
            k=what.k,
            dtype=options.dtype,
            backend=what.backend,
            instead_ms=instead_ms,
            work_ratio=work_ratio,
            fork_ms=fork_ms,
            worst_difference=worst,
        )
