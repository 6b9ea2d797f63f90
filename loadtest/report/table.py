"""The benchmarks' results as tables for people: `python -m loadtest.report.table RESULT.json` prints Markdown."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, TypeAdapter
from rich.console import RenderableType
from rich.table import Table

from loadtest.bench.append import AppendResult
from loadtest.bench.overhead import OverheadResult
from loadtest.bench.score import PEER, UNBATCHED, ScoreResult
from loadtest.report.machine import Machine
from loadtest.report.timing import Cell, Spread

_NAMES = ("", "shape", "network", "payload", "tier", "visibility", "states", "backend")


@dataclass(frozen=True, slots=True)
class Grid:
    """A titled table of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def score_tables(result: ScoreResult) -> Iterator[RenderableType]:
    """What was measured where, the cells, the microbatch sweeps, and what each column means."""
    yield from _shown(result, score_grids(result))


def append_tables(result: AppendResult) -> Iterator[RenderableType]:
    """What was measured where, the cells, and what each column means."""
    yield from _shown(result, append_grids(result))


def score_grids(result: ScoreResult) -> list[Grid]:
    """The cells, the microbatch sweeps, and what was skipped."""
    columns = (
        *("shape", "n", "m", "backend", "b_m", "ms", "floor", "of floor (best)", "busy", "busy / quiet"),
        *("vs unbatched", "vs peer", "vs per candidate*", "(work)", "diff"),
    )
    of = {(cell.shape, cell.n, cell.m, cell.backend): cell for cell in result.cells}
    rows = tuple(
        (
            *(cell.shape, str(cell.n), str(cell.m), cell.backend, str(cell.microbatch or "-")),
            *_times(cell),
            _times_faster(cell, of.get((cell.shape, cell.n, cell.m, UNBATCHED))),
            _times_faster(cell, of.get((cell.shape, cell.n, cell.m, PEER))),
            _ratio(cell.speedup),
            _ratio(cell.work_ratio),
            f"{cell.worst_difference:.0e}",
        )
        for cell in result.cells
    )
    title = f"Scoring m candidates on a history of n, {result.dtype}, ms: median (min-max)"
    grids = [Grid(f"{title}; * scaled, not measured", columns, rows)]
    points = tuple(
        (sweep.shape, str(sweep.n), str(sweep.m), sweep.backend, str(point.microbatch), ms(point.ms))
        for sweep in result.sweeps
        for point in sweep.points
    )
    grids.append(Grid("Scoring by microbatch, ms", ("shape", "n", "m", "backend", "b_m", "ms"), points))
    skipped = tuple((at.shape, str(at.n), str(at.m), at.backend, at.reason) for at in result.skipped)
    if skipped:
        grids.append(Grid("Skipped", ("shape", "n", "m", "backend", ""), skipped))
    return grids


def append_grids(result: AppendResult) -> list[Grid]:
    """The prefills, and the appends."""
    columns = ("shape", "n", "backend", "ms", "floor", "of floor (best)", "busy", "busy / quiet", "diff")
    prefills = tuple(
        (cell.shape, str(cell.n), cell.backend, *_times(cell), f"{cell.worst_difference:.0e}")
        for cell in result.cells
        if cell.phase == "prefill"
    )
    appends = tuple(
        (
            *(cell.shape, str(cell.n), str(cell.k), cell.backend),
            *_times(cell),
            *(_number(cell.fork_ms), _ratio(cell.speedup), _ratio(cell.work_ratio), f"{cell.worst_difference:.0e}"),
        )
        for cell in result.cells
        if cell.phase == "append"
    )
    return [
        Grid(f"Prefill of n events, {result.dtype}, ms: median (min-max)", columns, prefills),
        Grid(
            f"Append of k events to a state of n, {result.dtype}, ms: median (min-max)",
            (*columns[:2], "k", *columns[2:-1], "fork", "vs prefill", "(work)", "diff"),
            appends,
        ),
    ]


def markdown(result: ScoreResult | AppendResult) -> str:
    """Where it was measured, and every table, as GitHub renders them."""
    parts = [headline(result.machine, result.commit), f"{result.dtype}; peaks: {result.peaks.described}"]
    for grid in score_grids(result) if isinstance(result, ScoreResult) else append_grids(result):
        lines = [grid.columns, ("---",) * len(grid.columns), *grid.rows]
        parts += [grid.title, "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def load(path: Path) -> ScoreResult | AppendResult:
    """A result that `mfalcon bench score --json` or `bench append --json` wrote."""
    text = path.read_bytes()
    kind = _Kind.model_validate_json(text)
    if kind.benchmark == "score":
        return TypeAdapter(ScoreResult).validate_json(text)
    return TypeAdapter(AppendResult).validate_json(text)


def main() -> None:
    """Print Markdown tables of each result."""
    for name in sys.argv[1:]:
        print(markdown(load(Path(name))))


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


class _Kind(BaseModel):
    benchmark: Literal["score", "append"]


def _shown(result: ScoreResult | AppendResult, grids: Sequence[Grid]) -> Iterator[RenderableType]:
    yield headline(result.machine, result.commit)
    yield f"{result.dtype}; peaks: {result.peaks.described}"
    for grid in grids:
        yield f"\n{grid.title}"
        table = plain_table(grid.columns)
        for row in grid.rows:
            table.add_row(*row)
        yield table
    yield from notes(result.notes)


def _times(cell: Cell) -> tuple[str, ...]:
    """What every cell has: time, floor, fraction, and both beside the busy process."""
    quiet = Spread(cell.ms, *cell.ms_spread, cell.num_samples)
    best = cell.floor_ms / cell.ms_spread[0]
    return (
        ms(quiet),
        f"{cell.floor_ms:.3g}" if cell.floor_ms < 100 else f"{cell.floor_ms:,.0f}",
        f"{_percent(cell.fraction)} ({_percent(best)})",
        _number(cell.busy_ms),
        "-" if cell.busy_ratio is None else f"{cell.busy_ratio:.2f}",
    )


def _times_faster(cell: Cell, other: Cell | None) -> str:
    return "-" if other is None or other is cell else f"{other.ms / cell.ms:.2f}x"


def _percent(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}x" if value < 100 else f"{value:,.0f}x"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
