"""The results of the CPU benchmarks as pages for people: text, and tables of text."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from loadtest.bench.append import AppendResult
from loadtest.bench.late_events import LateResult
from loadtest.bench.overhead import OverheadResult
from loadtest.bench.score import PEER, UNBATCHED, ScoreResult
from loadtest.bench.state import StateCell, StateResult
from loadtest.bench.state_quality import QualityResult
from loadtest.load.load_result import Found, LoadResult
from loadtest.load.slope import Slope
from loadtest.load.watched import Watched
from loadtest.report.result import as_ms, as_number, bar_table, headline
from loadtest.report.table import Part, Table
from loadtest.report.timing import Cell, Spread
from mfalcon.errors import ConfigError


def score_page(result: ScoreResult) -> Iterator[Part]:
    """What was measured where, the cells, the microbatch sweeps, what was skipped, and what each column means."""
    yield headline(result.machine, result.commit)
    yield f"{result.dtype}; peaks: {result.peaks.described}"
    columns = (
        *("shape", "n", "m", "backend", "b_m", "ms", "floor", "of floor (best)", "busy", "busy / quiet"),
        *("vs unbatched", "vs peer", "vs per candidate*", "(work)", "diff"),
    )
    of = {(cell.shape, cell.n, cell.m, cell.backend): cell for cell in result.cells}
    rows = [
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
    ]
    title = f"Scoring m candidates on a history of n, {result.dtype}, ms: median (min-max)"
    yield Table(f"{title}; * scaled, not measured", columns, rows)
    points = [
        (sweep.shape, str(sweep.n), str(sweep.m), sweep.backend, str(point.microbatch), as_ms(point.ms))
        for sweep in result.sweeps
        for point in sweep.points
    ]
    yield Table("Scoring by microbatch, ms", ("shape", "n", "m", "backend", "b_m", "ms"), points)
    if result.skipped:
        skipped = [(at.shape, str(at.n), str(at.m), at.backend, at.reason) for at in result.skipped]
        yield Table("Skipped", ("shape", "n", "m", "backend", ""), skipped)
    yield _notes(result.notes)


def append_page(result: AppendResult) -> Iterator[Part]:
    """What was measured where, the prefills, the appends, and what each column means."""
    yield headline(result.machine, result.commit)
    yield f"{result.dtype}; peaks: {result.peaks.described}"
    columns = ("shape", "n", "backend", "ms", "floor", "of floor (best)", "busy", "busy / quiet", "diff")
    prefills = [
        (cell.shape, str(cell.n), cell.backend, *_times(cell), f"{cell.worst_difference:.0e}")
        for cell in result.cells
        if cell.phase == "prefill"
    ]
    yield Table(f"Prefill of n events, {result.dtype}, ms: median (min-max)", columns, prefills)
    appends = [
        (
            *(cell.shape, str(cell.n), str(cell.k), cell.backend),
            *_times(cell),
            *(as_number(cell.fork_ms), _ratio(cell.speedup), _ratio(cell.work_ratio), f"{cell.worst_difference:.0e}"),
        )
        for cell in result.cells
        if cell.phase == "append"
    ]
    title = f"Append of k events to a state of n, {result.dtype}, ms: median (min-max)"
    yield Table(title, (*columns[:2], "k", *columns[2:-1], "fork", "vs prefill", "(work)", "diff"), appends)
    yield _notes(result.notes)


def overhead_page(result: OverheadResult) -> Iterator[Part]:
    """What was asked of whom, the percentiles, and what each row means."""
    yield headline(result.machine, result.commit)
    yield f"{result.target}: {result.model} {result.model_version}, {result.backend}"
    title = (
        f"{result.num_calls} calls, {result.num_candidates} candidates, {result.num_events} events, "
        f"{result.misses} misses: microseconds"
    )
    of = (("gRPC call", result.call_us), ("engine", result.engine_us), ("difference", result.overhead_us))
    rows = [(name, f"{row.p50:,.0f}", f"{row.p99:,.0f}", f"{row.mean:,.0f}") for name, row in of]
    yield Table(title, ("", "p50", "p99", "mean"), rows)
    yield _notes(result.notes)


def late_events_page(result: LateResult) -> Iterator[Part]:
    """The stream, what became of it by each policy, the bars, and what each column means."""
    yield headline(result.machine, result.commit)
    options = result.options
    yield (
        f"{options.num_events:,} events of {options.num_users} users in a day, {options.late_share:.1%} delayed by up "
        f"to {options.max_delay_s:g} s: {result.late:,} late; a rank for every {options.rank_every} events of a user; "
        f"shape {options.shape}, {result.backend}; in order {result.in_order:,} tokens are encoded"
    )
    columns = (
        *("late events", "inserted", "clamped", "lost", "tokens encoded", "again", "again for each"),
        *("a whole history each time", "histories", "scores"),
    )
    rows = [
        (
            *(row.late_events, f"{row.inserted:,}", f"{row.clamped:,}", f"{row.lost:,}", f"{row.encoded:,}"),
            *(f"{row.again:,}", f"{row.again / row.inserted:.1f}" if row.inserted else "-", f"{row.whole:,}"),
            *(f"{row.sorted_users} of {options.num_users}", "-" if row.difference is None else f"{row.difference:g}"),
        )
        for row in result.rows
    ]
    yield Table("What becomes of late events", columns, rows)
    yield bar_table(result.bars)
    yield _notes(result.notes)


def state_page(result: StateResult) -> Iterator[Part]:
    """What was measured where, the cells, the crossovers, the sizes, the bars, and what each column means."""
    yield headline(result.machine, result.commit)
    columns = (
        *("shape", "network", "payload", "tier", "n", "recompute", "predicted", "fetch", "predicted"),
        *("speed-up", "host", "acquire", "fetch chosen", "regret"),
    )
    title = f"Ways to a KV state, computed in {result.dtype}, ms: median (min-max)"
    yield Table(title, columns, [_state_row(cell) for cell in result.cells])
    crossovers = [
        (at.shape, at.network, at.payload, _events(at.measured), _events(at.predicted)) for at in result.crossovers
    ]
    of_crossover = ("shape", "network", "payload", "measured", "predicted")
    yield Table("Crossover: events from which fetching wins", of_crossover, crossovers)
    sizes = [
        (
            *(size.shape, size.payload, f"{size.bytes_per_event:,.0f}", str(size.events_per_chunk)),
            *(str(size.full_chunks), f"{size.full_bytes:,}"),
        )
        for size in result.sizes
    ]
    of_size = ("shape", "payload", "bytes an event", "events a chunk", "chunks", "bytes")
    yield Table("Bytes in Redis of the longest history, headers included", of_size, sizes)
    if result.memory:
        held = [
            (at.shape, str(at.n), f"{at.bytes_held:,}", f"{at.bytes_held / at.bytes_of_content:.2f}")
            for at in result.memory
        ]
        yield Table("Bytes of a state in the block pool", ("shape", "n", "bytes", "of its content"), held)
    if result.append:
        counted = [
            (
                *(str(at.n), at.dtype, f"{at.chunks_written:,}", f"{at.chunks_of_state:,}"),
                *(f"{at.chunk_bytes_written:,}", f"{at.chunks_read:,}"),
                *(f"{at.log_bytes_sent:,}", f"{at.log_bytes_full:,}"),
            )
            for at in result.append
        ]
        of_append = ("n", "payload", "chunks written", "of", "bytes written", "chunks read", "log bytes", "of")
        yield Table("One event appended by one replica and read by another", of_append, counted)
    if result.bars:
        yield bar_table(result.bars)
    yield _notes(result.notes)


def quality_page(result: QualityResult) -> Iterator[Part]:
    """AUC by payload and visibility beside the exact states', and the bars."""
    yield headline(result.machine, result.commit)
    rows = [
        (
            *(row.payload, row.visibility, row.how, f"{row.auc:.6f}", f"{row.exact_auc:.6f}"),
            *(f"{row.auc - row.exact_auc:+.1e}", f"{row.worst_difference:.1e}", f"{row.spearman:.7f}"),
        )
        for row in result.rows
    ]
    columns = ("payload", "visibility", "states", "AUC", "exact", "moved", "worst score", "Spearman")
    title = f"{result.model}, {result.num_rows:,} test events: scores from states that went through a payload"
    yield Table(title, columns, rows)
    yield bar_table(result.bars)
    yield _notes(result.notes)


def load_page(result: LoadResult) -> Iterator[Part]:
    """What was asked of whom, what became of the requests, their latencies, and what each word means."""
    yield headline(result.machine, result.commit)
    yield f"{result.target}: {result.model} {result.version}, {result.backend}; seed {result.seed}\n{result.command}"
    classes = [one for run in result.runs for one in run.classes]
    ledger = [
        (
            *(one.name, str(one.traffic.candidates), str(one.traffic.deadline_ms or "-"), f"{one.offered:,.1f}"),
            *(f"{one.goodput:,.1f}", str(one.sent), str(one.right), str(sum(one.errors.values())), str(one.late)),
            *map(str, (one.never, one.wrong, one.cancelled, one.unsent, one.checked, one.encoded)),
            "-" if one.latest_ms is None else f"{one.latest_ms:.0f}",
        )
        for one in classes
    ]
    columns = (
        *("class", "m", "deadline ms", "offered/s", "goodput/s", "sent", "right", "errors", "late", "never", "wrong"),
        *("cancelled", "unsent", "checked", "encoded", "latest"),
    )
    yield Table("The ledger: each request once", columns, ledger)
    latencies = [
        (one.name, what, str(of.num), *map(as_number, (of.p50_ms, of.p90_ms, of.p99_ms, of.p999_ms, of.max_ms)))
        for one in classes
        for what, of in (("answered", one.answered), *one.by_error.items())
        if of is not None
    ]
    of_latency = ("class", "what", "requests", "p50", "p90", "p99", "p99.9", "most")
    yield Table("Latency from the intended time, ms", of_latency, latencies)
    driver = [
        (run.main.name, f"{run.seconds:.1f}", as_number(run.lag_p99_ms), as_number(run.lag_max_ms), f"{run.cores:.2f}")
        for run in result.runs
    ]
    yield Table("The driver", ("run", "seconds", "lag p99 ms", "lag most ms", "cores"), driver)
    for run in result.runs:
        if run.watched is not None:
            yield _watched(run.main.name, run.watched)
    if result.found is not None:
        yield _found(result.found)
    yield _notes((*result.complaints, *result.warnings) or ("every request has one end, and none of them is wrong",))
    yield _notes(result.notes)


def _watched(run: str, watched: Watched) -> Table:
    """Figures of the server over time."""
    rows = [
        (
            *(one.figure.label, one.of, *map(as_number, (one.first, one.last, one.most))),
            *(_slope(one.slope) if one.slope else "---"),
            one.verdict,
        )
        for one in watched.series
    ]
    title = f"The server during {run}: {len(watched.seconds)} samples, {watched.missed} missed"
    return Table(title, ("figure", "of", "first", "last", "most", "slope/h", "from", "to", "verdict"), rows)


def _slope(slope: Slope) -> tuple[str, ...]:
    return tuple(f"{number:+,.2f}" for number in (slope.per_hour, slope.low, slope.high))


def _found(found: Found) -> str:
    """The bracket of a search in words."""
    asked = f"p99 at most {found.p99_ms:g} ms and nothing lost"
    holds = "no rate that was tried" if found.holds is None else f"{found.holds:,.1f} requests a second"
    fails = "no higher rate was seen to fail" if found.fails is None else f"{found.fails:,.1f} a second failed"
    return f"{asked}: {holds}; {fails}"


_PAGES: dict[str, tuple[type, Callable[[Any], Iterator[Part]]]] = {
    # name of the benchmark in its file: the result, and its page
    "score": (ScoreResult, score_page),
    "append": (AppendResult, append_page),
    "state": (StateResult, state_page),
    "state-quality": (QualityResult, quality_page),
    "late-events": (LateResult, late_events_page),
    "load": (LoadResult, load_page),
}


def read_page(path: Path) -> Iterator[Part]:
    """The page of a result that `mfalcon bench ... --json` wrote. Raises ConfigError for any other file."""
    content = path.read_bytes()
    try:
        result, page = _PAGES[_Kind.model_validate_json(content).benchmark]
    except (ValidationError, KeyError):
        raise ConfigError(f"{path}: got no result of {', '.join(_PAGES)}") from None
    return page(TypeAdapter(result).validate_json(content))


class _Kind(BaseModel):
    benchmark: str


def _notes(lines: Sequence[str]) -> str:
    """What the columns mean."""
    return "\n".join(f"- {note}" for note in lines)


def _state_row(cell: StateCell) -> tuple[str, ...]:
    return (
        *(cell.shape, cell.network, cell.payload, cell.tier, str(cell.n)),
        *(as_ms(cell.recompute_ms), as_number(cell.predicted_recompute_ms)),
        *(as_ms(cell.fetch_ms), as_number(cell.predicted_fetch_ms), f"{cell.fetch_speedup:.2f}x"),
        as_ms(cell.host_ms),
        f"{cell.acquire_ms.median_ms:.3f}" if cell.acquire_ms is not None else "-",
        f"{cell.fetch_chosen:.0%}" if cell.fetch_chosen is not None else "-",
        f"{cell.regret:.2f}",
    )


def _events(value: float | None) -> str:
    return "never" if value is None else "always" if value <= 1 else f"{value:,.0f}"


def _times(cell: Cell) -> tuple[str, ...]:
    """What every cell has: time, floor, fraction, and both beside the busy process."""
    best = cell.floor_ms / cell.ms_spread[0]
    return (
        as_ms(Spread(cell.ms, *cell.ms_spread, cell.num_samples)),
        f"{cell.floor_ms:.3g}" if cell.floor_ms < 100 else f"{cell.floor_ms:,.0f}",
        f"{_percent(cell.fraction)} ({_percent(best)})",
        as_number(cell.busy_ms),
        "-" if cell.busy_ratio is None else f"{cell.busy_ratio:.2f}",
    )


def _times_faster(cell: Cell, other: Cell | None) -> str:
    return "-" if other is None or other is cell else f"{other.ms / cell.ms:.2f}x"


def _percent(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}x" if value < 100 else f"{value:,.0f}x"
