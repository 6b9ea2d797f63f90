"""Cached scoring against its competitors: one forward per candidate, one masked forward, and the counted floor."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from loadtest.floor import masked_work, prefill_work, score_work, sum_work
from loadtest.machine import Machine, commit, this_machine
from loadtest.peaks import Peaks, faster, probe
from loadtest.shapes import (
    REQUEST_TIME_MS,
    Shape,
    dtype_named,
    random_events,
    random_model,
    random_targets,
    shape_named,
)
from loadtest.timing import Spread, spread, take_turns
from mfalcon.algorithm import prefill, score
from mfalcon.kv import KVState
from mfalcon.laws import masked_forward
from mfalcon.models.base import EventTokens, Ranker, Targets

NOTES = (
    "prefill_ms: encode the history; a request whose state is cached does not pay it",
    "cached_ms: score all m candidates against the cached state, at the best microbatch of this n",
    "per_candidate_ms: one forward over [history, candidate] in the same kernels (prefill, then score one candidate), "
    "measured on a few candidates; per_candidate_total_ms is its median times m: scaled, not measured",
    "masked_ms: one dense forward over [history, candidates] under a mask (mfalcon.laws.masked_forward)",
    "work ratios: how many times the FLOPs of cached scoring the competitor does, counted from the shapes",
    "floor_ms: counted FLOPs and SiLUs of cached scoring at the best peaks probed in this run; floor_fraction = "
    "floor_ms / median cached_ms; in tables also / its minimum, which neighbours on the machine disturb less",
)

_SWEEP_TARGETS, _CHOICE_TARGETS = 1024, 256
"""Targets of the sweep that is published (one history length for each shape), and of a choice for another length."""
_PEAK_SECONDS = 1.0
_MIN_ROUNDS, _MAX_ROUNDS = 3, 15


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What to measure.

    `seconds` is the time to spend on repeating a cell. A masked forward that needs more than `masked_gib` of memory is
    skipped, one that takes more than `masked_seconds` runs once.
    """

    shapes: tuple[str, ...] = ("S", "B")
    histories: tuple[int, ...] = (256, 1024, 4096)
    candidates: tuple[int, ...] = (64, 512, 2048)
    microbatches: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    dtype: str = "float32"
    seconds: float = 5.0
    masked_gib: float = 1.0
    masked_seconds: float = 30.0
    seed: int = 0


QUICK = ScoreOptions(("S",), (1024,), (64, 512), (64, 128, 256, 512), seconds=2.0)
"""Less than a minute."""


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """Cached scoring at one microbatch."""

    microbatch: int
    cached_ms: Spread


@dataclass(frozen=True, slots=True)
class Sweep:
    """Microbatches at one history length, in turns; the fastest median is used for its cells."""

    shape: str
    n: int
    m: int
    points: tuple[SweepPoint, ...]

    @property
    def best(self) -> int:
        """Microbatch of the fastest median."""
        return min(self.points, key=lambda point: point.cached_ms.median_ms).microbatch


@dataclass(frozen=True, slots=True)
class ScoreCell:
    """One shape, history length n and number of candidates m; see NOTES. Masked figures are None where skipped."""

    shape: str
    n: int
    m: int
    microbatch: int
    prefill_ms: Spread
    cached_ms: Spread
    per_candidate_ms: Spread
    per_candidate_total_ms: float
    masked_ms: Spread | None
    masked_skipped: str | None
    floor_ms: float
    floor_fraction: float
    speedup_per_candidate: float
    work_ratio_per_candidate: float
    speedup_masked: float | None
    speedup_masked_with_prefill: float | None
    work_ratio_masked: float
    worst_difference: float


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
    cells: tuple[ScoreCell, ...]


@dataclass(frozen=True, slots=True)
class _Timed:
    """A cell before the peaks of the whole run are known."""

    shape: Shape
    n: int
    m: int
    microbatch: int
    samples: dict[str, list[float]]
    masked: list[float]
    masked_skipped: str | None
    worst_difference: float


def run(options: ScoreOptions, progress: Callable[[str], None]) -> ScoreResult:
    """Measure every cell. `progress` is told what comes next. Raises ConfigError for an unknown shape or dtype."""
    shapes, dtype = [shape_named(name) for name in options.shapes], dtype_named(options.dtype)
    machine = this_machine()
    progress(f"peaks with {machine.threads} threads")
    peaks = probe(2 * _PEAK_SECONDS)
    sweeps: list[Sweep] = []
    timed: list[_Timed] = []
    with torch.inference_mode():
        for shape in shapes:
            model = random_model(shape, dtype, options.seed)
            for n in options.histories:
                events = random_events(n, options.seed + 1)
                state = prefill(model, events)
                progress(f"{shape.name} n={n}: microbatches")
                most = _SWEEP_TARGETS if n == _middle(options.histories) else _CHOICE_TARGETS
                sweeps.append(_sweep(shape, model, state, min(max(options.candidates), most), options))
                for m in options.candidates:
                    progress(f"{shape.name} n={n} m={m}")
                    timed.append(_time(shape, model, events, state, m, sweeps[-1].best, options))
                # A shared machine shows its peak only now and then: the floor divides by the best that was seen.
                peaks = faster(peaks, probe(_PEAK_SECONDS))
    cells = tuple(_cell(cell, peaks, dtype) for cell in timed)
    return ScoreResult("score", machine, commit(), options.dtype, NOTES, peaks, tuple(sweeps), cells)


def _middle(histories: tuple[int, ...]) -> int:
    return sorted(histories)[len(histories) // 2]


def _sweep(shape: Shape, model: Ranker, state: KVState, m: int, options: ScoreOptions) -> Sweep:
    sizes = sorted({min(size, m) for size in options.microbatches})
    targets = random_targets(m, options.seed + 2)
    actions = {str(size): _scoring(model, state, targets, size) for size in sizes}
    for action in actions.values():
        action(0)
    samples = take_turns(actions, options.seconds, _MIN_ROUNDS, _MAX_ROUNDS)
    points = tuple(SweepPoint(size, spread(samples[str(size)])) for size in sizes)
    return Sweep(shape.name, state.num_tokens, m, points)


def _time(
    shape: Shape, model: Ranker, events: EventTokens, state: KVState, m: int, microbatch: int, options: ScoreOptions
) -> _Timed:
    n = state.num_tokens
    targets = random_targets(m, options.seed + 2)
    cached = score(model, state, targets, REQUEST_TIME_MS, microbatch)  # also the warm-up
    worst = _difference(cached[:1], score(model, prefill(model, events), _only(targets, 0), REQUEST_TIME_MS, 1))

    actions: dict[str, Callable[[int], object]] = {
        "prefill": lambda _: prefill(model, events),
        "cached": _scoring(model, state, targets, microbatch),
        "one": lambda index: score(model, state, _only(targets, index % m), REQUEST_TIME_MS, 1),
    }
    skipped, first = _refusal(shape, n, m, options.masked_gib), 0.0
    if skipped is None:
        start = time.perf_counter()
        worst = max(worst, _difference(cached, masked_forward(model, events, targets, REQUEST_TIME_MS)))
        first = time.perf_counter() - start
        if first <= options.masked_seconds:
            actions["masked"] = lambda _: masked_forward(model, events, targets, REQUEST_TIME_MS)
    samples = take_turns(actions, options.seconds, _MIN_ROUNDS, _MAX_ROUNDS)
    # Where a repetition would take too long, the first run is the only sample, and says so by its number.
    masked = samples.get("masked", [] if skipped else [first])
    return _Timed(shape, n, m, microbatch, samples, masked, skipped, worst)


def _cell(timed: _Timed, peaks: Peaks, dtype: torch.dtype) -> ScoreCell:
    shape, n, m = timed.shape, timed.n, timed.m
    encode, cached = spread(timed.samples["prefill"]), spread(timed.samples["cached"])
    # A forward of its own is what a candidate costs without reuse: a prefill and a score, of the same round.
    per_candidate = spread([a + b for a, b in zip(timed.samples["prefill"], timed.samples["one"], strict=True)])
    masked = spread(timed.masked) if timed.masked else None
    work = score_work(shape, n, m)
    alone = sum_work(prefill_work(shape, n), score_work(shape, n, 1))
    floor_ms = work.seconds(peaks.flops(dtype), peaks.silus) * 1e3
    total_ms = per_candidate.median_ms * m
    return ScoreCell(
        shape=shape.name,
        n=n,
        m=m,
        microbatch=timed.microbatch,
        prefill_ms=encode,
        cached_ms=cached,
        per_candidate_ms=per_candidate,
        per_candidate_total_ms=total_ms,
        masked_ms=masked,
        masked_skipped=timed.masked_skipped,
        floor_ms=floor_ms,
        floor_fraction=floor_ms / cached.median_ms,
        speedup_per_candidate=total_ms / cached.median_ms,
        work_ratio_per_candidate=m * alone.flops / work.flops,
        speedup_masked=masked.median_ms / cached.median_ms if masked else None,
        speedup_masked_with_prefill=masked.median_ms / (encode.median_ms + cached.median_ms) if masked else None,
        work_ratio_masked=masked_work(shape, n, m).flops / work.flops,
        worst_difference=timed.worst_difference,
    )


def _scoring(model: Ranker, state: KVState, targets: Targets, microbatch: int) -> Callable[[int], object]:
    return lambda _: score(model, state, targets, REQUEST_TIME_MS, microbatch)


def _only(targets: Targets, index: int) -> Targets:
    return Targets(targets.rows[index : index + 1], targets.context)


def _refusal(shape: Shape, n: int, m: int, limit_gib: float) -> str | None:
    """Why a masked forward is not tried, None if it is."""
    # By head: scores, weights and two gathered biases of 4 bytes, and their sum; once: distance and bucket of 8 bytes.
    bytes_per_pair = shape.num_heads * 5 * 4 + 3 * 8
    gib = (n + m) ** 2 * bytes_per_pair / 2**30
    return f"its mask and scores would need {gib:.1f} GiB, the limit is {limit_gib:g}" if gib > limit_gib else None


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())
