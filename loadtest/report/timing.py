"""How the benchmarks take time: competitors take turns, so that a noisy neighbour slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from loadtest.bench.busy import Neighbour

Action = Callable[[], Callable[[], object]]
"""Prepares one run, untimed, and returns what is timed."""
Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class Spread:
    """Samples of one duration, in milliseconds."""

    median_ms: float
    min_ms: float
    max_ms: float
    num_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measured phase of one backend, and its counted floor.

    phase: score (m candidates against n events), prefill (k = n events onto nothing) or append (k events behind n).
    ms: median; ms_spread: fastest and slowest; ms_quartiles: first and third. busy_*: beside a busy process.
    instead_ms: what the cell replaces, for the same backend in the same run: m forwards of their own (scaled) or a
    prefill of n. fork_ms: see bench_append.NOTES. worst_difference: of scores, from the reference backend's.
    """

    phase: str
    shape: str
    n: int
    m: int
    k: int
    dtype: str
    backend: str
    microbatch: int | None
    ms: float
    ms_spread: tuple[float, float]
    ms_quartiles: tuple[float, float]
    num_samples: int
    floor_ms: float
    fraction: float
    busy_ms: float | None
    busy_ms_spread: tuple[float, float] | None
    busy_ratio: float | None
    instead_ms: float | None
    speedup: float | None
    work_ratio: float | None
    fork_ms: float | None
    worst_difference: float


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds of every run, alone and beside the busy process."""

    quiet: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)


def spread(seconds: Sequence[float]) -> Spread:
    """Median and range of samples in seconds."""
    return Spread(
        median_ms=statistics.median(seconds) * 1e3,
        min_ms=min(seconds) * 1e3,
        max_ms=max(seconds) * 1e3,
        num_samples=len(seconds),
    )


def measured(
    phase: str,
    shape: str,
    n: int,
    samples: Samples,
    floor_ms: float,
    *,
    dtype: str,
    backend: str,
    m: int = 0,
    k: int = 0,
    microbatch: int | None = None,
    instead_ms: float | None = None,
    work_ratio: float | None = None,
    fork_ms: float | None = None,
    worst_difference: float,
) -> Cell:
    """A cell of its samples."""
    quiet = spread(samples.quiet)
    busy = spread(samples.busy) if samples.busy else None
    return Cell(
        phase=phase,
        shape=shape,
        n=n,
        m=m,
        k=k,
        dtype=dtype,
        backend=backend,
        microbatch=microbatch,
        ms=quiet.median_ms,
        ms_spread=(quiet.min_ms, quiet.max_ms),
        ms_quartiles=_quartiles_ms(samples.quiet),
        num_samples=quiet.num_samples,
        floor_ms=floor_ms,
        fraction=floor_ms / quiet.median_ms,
        busy_ms=None if busy is None else busy.median_ms,
        busy_ms_spread=None if busy is None else (busy.min_ms, busy.max_ms),
        busy_ratio=None if busy is None else busy.median_ms / quiet.median_ms,
        instead_ms=instead_ms,
        speedup=None if instead_ms is None else instead_ms / quiet.median_ms,
        work_ratio=work_ratio,
        fork_ms=fork_ms,
        worst_difference=worst_difference,
    )


def take_turns(
    actions: Mapping[Name, Action], seconds: float, min_rounds: int, max_rounds: int, busy: Neighbour | None = None
) -> dict[Name, Samples]:
    """Run every action once a round until each has had its seconds; beside a neighbour, once more in every round.

    One that has had its seconds, and its rounds, sits out the rest. The caller has warmed them up.
    """
    samples = {name: Samples() for name in actions}
    for index in range(max_rounds):
        due = [name for name in actions if index < min_rounds or sum(samples[name].quiet) < seconds]
        if not due:
            break
        for name in due:
            samples[name].quiet.append(_timed(actions[name]))
        if busy is None:
            continue
        with busy.working():
            for name in due:
                samples[name].busy.append(_timed(actions[name]))
    return samples


def always(run: Callable[[], object]) -> Action:
    """An action that needs no preparation."""
    return lambda: run


def best_seconds(run: Callable[[], object], seconds: float) -> float:
    """The fastest of the runs that fit into the time, at least two after a warm-up."""
    run()
    return min(take_turns({"run": always(run)}, seconds, min_rounds=2, max_rounds=1_000)["run"].quiet)


def _timed(action: Action) -> float:
    run = action()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _quartiles_ms(seconds: Sequence[float]) -> tuple[float, float]:
    first, _, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return first * 1e3, third * 1e3
