"""Append against prefill: what a few new events cost when the state is kept, and when it is not."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from loadtest.floor import append_work, prefill_work
from loadtest.machine import Machine, commit, this_machine
from loadtest.peaks import Peaks, faster, probe
from loadtest.shapes import (
    REQUEST_TIME_MS,
    Shape,
    dtype_named,
    events_between,
    random_events,
    random_model,
    random_targets,
    shape_named,
)
from loadtest.timing import Spread, spread, take_turns
from mfalcon.algorithm import append, prefill, score
from mfalcon.kv import KVState
from mfalcon.models.base import EventTokens, Ranker

NOTES = (
    "append_ms: the usual case in serving: the state is the tip of its buffer, and the new events are written behind "
    "it in the same memory",
    "copying_ms: the same append where the state must be copied first: its buffer is full (once in 32 events) or "
    "somebody else has already appended to it",
    "prefill_ms: encoding the whole history, the new events included, from nothing",
    "speedup = prefill_ms / append_ms; work_ratio is the same in counted FLOPs",
    "floor_ms: counted FLOPs and SiLUs of the append at the best peaks probed in this run; floor_fraction = "
    "floor_ms / median append_ms; in tables also / its minimum, which neighbours on the machine disturb less",
)

_PEAK_SECONDS = 1.0
_MIN_ROUNDS, _MAX_ROUNDS = 3, 25


@dataclass(frozen=True, slots=True)
class AppendOptions:
    """What to measure. `seconds` is the time to spend on repeating a cell."""

    shapes: tuple[str, ...] = ("S", "B")
    histories: tuple[int, ...] = (256, 1024, 4096)
    events: tuple[int, ...] = (1, 10, 100)
    dtype: str = "float32"
    seconds: float = 5.0
    seed: int = 0


QUICK = AppendOptions(("S",), (1024,), seconds=2.0)
"""Less than a minute."""


@dataclass(frozen=True, slots=True)
class AppendCell:
    """One shape, history length n and number of new events k; see NOTES."""

    shape: str
    n: int
    k: int
    append_ms: Spread
    copying_ms: Spread
    prefill_ms: Spread
    floor_ms: float
    floor_fraction: float
    speedup: float
    work_ratio: float
    worst_difference: float


@dataclass(frozen=True, slots=True)
class AppendResult:
    """Everything that `mfalcon bench append` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    dtype: str
    notes: tuple[str, ...]
    peaks: Peaks
    cells: tuple[AppendCell, ...]


@dataclass(frozen=True, slots=True)
class _Timed:
    """A cell before the peaks of the whole run are known."""

    shape: Shape
    n: int
    k: int
    samples: dict[str, list[float]]
    worst_difference: float


def run(options: AppendOptions, progress: Callable[[str], None]) -> AppendResult:
    """Measure every cell. `progress` is told what comes next. Raises ConfigError for an unknown shape or dtype."""
    shapes, dtype = [shape_named(name) for name in options.shapes], dtype_named(options.dtype)
    machine = this_machine()
    progress(f"peaks with {machine.threads} threads")
    peaks = probe(2 * _PEAK_SECONDS)
    timed: list[_Timed] = []
    with torch.inference_mode():
        for shape in shapes:
            model = random_model(shape, dtype, options.seed)
            for n in options.histories:
                for k in options.events:
                    progress(f"{shape.name} n={n} k={k}")
                    events = random_events(n + k, options.seed + 1)
                    timed.append(_time(shape, model, events, n, options.seconds))
                peaks = faster(peaks, probe(_PEAK_SECONDS))
    cells = tuple(_cell(cell, peaks, dtype) for cell in timed)
    return AppendResult("append", machine, commit(), options.dtype, NOTES, peaks, cells)


def _time(shape: Shape, model: Ranker, events: EventTokens, n: int, seconds: float) -> _Timed:
    k = len(events.rows) - n
    delta = events_between(events, n, n + k)
    whole = prefill(model, events)  # its buffer has room for the appended events
    buffer = prefill(model, events).buffer

    def append_to_tip(_: int) -> KVState:
        # Nobody holds a longer state of this buffer, so its tip may go back to n for the next round.
        buffer.filled = n
        return append(model, KVState(buffer, n), delta)

    def append_to_older(_: int) -> KVState:
        buffer.filled = n + k
        return append(model, KVState(buffer, n), delta)

    longer = append_to_tip(0)
    assert longer.buffer is buffer
    copied = append_to_older(0)
    assert copied.buffer is not buffer
    targets = random_targets(8, 0)
    scores = [score(model, state, targets, REQUEST_TIME_MS, 8).double() for state in (whole, longer, copied)]
    worst = max(float((scores[0] - other).abs().max()) for other in scores[1:])
    actions: dict[str, Callable[[int], object]] = {
        "prefill": lambda _: prefill(model, events),
        "append": append_to_tip,
        "copying": append_to_older,
    }
    return _Timed(shape, n, k, take_turns(actions, seconds, _MIN_ROUNDS, _MAX_ROUNDS), worst)


def _cell(timed: _Timed, peaks: Peaks, dtype: torch.dtype) -> AppendCell:
    shape, n, k = timed.shape, timed.n, timed.k
    work = append_work(shape, n, k)
    appended, encoded = spread(timed.samples["append"]), spread(timed.samples["prefill"])
    floor_ms = work.seconds(peaks.flops(dtype), peaks.silus) * 1e3
    return AppendCell(
        shape=shape.name,
        n=n,
        k=k,
        append_ms=appended,
        copying_ms=spread(timed.samples["copying"]),
        prefill_ms=encoded,
        floor_ms=floor_ms,
        floor_fraction=floor_ms / appended.median_ms,
        speedup=encoded.median_ms / appended.median_ms,
        work_ratio=prefill_work(shape, n + k).flops / work.flops,
        worst_difference=timed.worst_difference,
    )
