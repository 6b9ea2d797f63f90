"""The benchmarks' results as tables for people."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from loadtest.bench_append import AppendResult
from loadtest.bench_score import ScoreResult
from loadtest.machine import Machine
from loadtest.overhead import OverheadResult
from loadtest.timing import Spread

_SCORE_COLUMNS = (
    *("shape", "n", "m", "b_m", "prefill", "per candidate*", "masked", "cached", "floor", "of floor"),
    *("vs per cand.", "(work)", "vs masked", "(work)", "diff"),
)
_NAMES = ("", "shape", "network", "payload", "tier", "visibility", "states")


def score_tables(result: ScoreResult) -> Iterator[RenderableType]:
    """What was measured where, the cells, the microbatch sweeps, and what each column means."""
    yield headline(result.machine, result.commit)
    peaks = result.peaks
    yield (
        f"{result.dtype}; peaks: float32 {peaks.float32_flops / 1e9:.0f} GFLOP/s ({peaks.float32_by}), "
        f"bfloat16 {peaks.bfloat16_flops / 1e9:.0f} ({peaks.bfloat16_by}), SiLU {peaks.silus / 1e9:.2f} G/s"
    )
    yield "\nScoring m candidates on a history of n, ms: median (min-max)"
    cells = plain_table(_SCORE_COLUMNS)
    for cell in result.cells:
        cells.add_row(
            cell.shape,
            str(cell.n),
            str(cell.m),
            str(cell.microbatch),
            ms(cell.prefill_ms),
            f"{cell.per_candidate_total_ms:,.0f}",
            ms(cell.masked_ms) if cell.masked_ms else "skipped",
            ms(cell.cached_ms),
            f"{cell.floor_ms:.2f}",
            f"{cell.floor_fraction:.0%} ({cell.floor_ms / cell.cached_ms.min_ms:.0%})",
            f"{cell.speedup_per_candidate:.0f}x",
            f"{cell.work_ratio_per_candidate:.0f}x",
            f"{cell.speedup_masked:.1f}x" if cell.speedup_masked else "-",
            f"{cell.work_ratio_masked:.1f}x",
            f"{cell.worst_difference:.0e}",
        )
    yield cells
    yield "* one forward per candidate: measured on a few candidates, scaled by m"
    for cell in result.cells:
        if cell.masked_skipped:
            yield f"  masked forward of {cell.shape} n={cell.n} m={cell.m} skipped: {cell.masked_skipped}"
    for sweep in result.sweeps:
        yield f"\nMicrobatches of {sweep.shape}, n={sweep.n}, m={sweep.m}: cached scoring, ms"
        table = plain_table([str(point.microbatch) for point in sweep.points])
        table.add_row(*(ms(point.cached_ms) for point in sweep.points))
        yield table
    yield from notes(result.notes)


def append_tables(result: AppendResult) -> Iterator[RenderableType]:
    """What was measured where, the cells, and what each column means."""
    yield headline(result.machine, result.commit)
    yield f"\nAppending k events to a state of n, {result.dtype}, ms: median (min-max)"
    cells = plain_table(
        ("shape", "n", "k", "prefill", "append", "copying", "floor", "of floor", "vs prefill", "(work)", "diff"),
    )
    for cell in result.cells:
        cells.add_row(
            cell.shape,
            str(cell.n),
            str(cell.k),
            ms(cell.prefill_ms),
            ms(cell.append_ms),
            ms(cell.copying_ms),
            f"{cell.floor_ms:.2f}",
            f"{cell.floor_fraction:.0%} ({cell.floor_ms / cell.append_ms.min_ms:.0%})",
            f"{cell.speedup:.1f}x",
            f"{cell.work_ratio:.1f}x",
            f"{cell.worst_difference:.0e}",
        )
    yield cells
    yield from notes(result.notes)


def overhead_tables(result: OverheadResult) -> Iterator[RenderableType]:
    """What was asked of whom, the percentiles, and what each row means."""
    yield headline(result.machine, result.commit)
    yield f"{result.target}: {result.model} {result.model_version}, {result.backend}"
    yield (
        f"\n{result.num_calls} calls, {result.num_candidates} candidates, {result.num_events} events, "
        f"{result.misses} misses: microseconds"
    )
    table = plain_table(("", "p50", "p99", "mean"))
    rows = (("gRPC call", result.call_us), ("engine", result.engine_us), ("difference", result.overhead_us))
    for name, row in rows:
        table.add_row(name, f"{row.p50:,.0f}", f"{row.p99:,.0f}", f"{row.mean:,.0f}")
    yield table
    yield from notes(result.notes)


def headline(machine: Machine, commit: str | None) -> str:
    """Where it was measured."""
    return (
        f"{machine.cpu}, {machine.cores} cores ({machine.instruction_set}), load {machine.load}; "
        f"torch {machine.torch}, {machine.threads} threads; commit {commit or 'unknown'}"
    )


def plain_table(columns: Sequence[str]) -> Table:
    """Columns of numbers, and names to the left."""
    table = Table(pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in _NAMES else "right", overflow="fold")
    return table


def notes(lines: tuple[str, ...]) -> Iterator[str]:
    """What the columns mean."""
    for note in lines:
        yield f"- {note}"


def ms(value: Spread) -> str:
    """Median (min-max)."""
    digits = 2 if value.median_ms < 10 else 0
    once = " once" if value.num_samples == 1 else f" ({value.min_ms:,.{digits}f}-{value.max_ms:,.{digits}f})"
    return f"{value.median_ms:,.{digits}f}{once}"
