"""The results of `mfalcon bench state` and `state-quality` as tables for people."""

from collections.abc import Iterator

from rich.console import RenderableType

from loadtest.bench.state import StateCell, StateResult
from loadtest.bench.state_quality import QualityResult
from loadtest.report.result import Bar
from loadtest.report.table import headline, ms, notes, plain_table


def state_tables(result: StateResult) -> Iterator[RenderableType]:
    """What was measured where, the cells, the crossovers, the sizes, the bars, and what each column means."""
    yield headline(result.machine, result.commit)
    yield f"\nWays to a KV state, computed in {result.dtype}, ms: median (min-max)"
    table = plain_table(
        (
            *("shape", "network", "payload", "tier", "n", "recompute", "predicted", "fetch", "predicted"),
            *("speed-up", "host", "acquire", "fetch chosen", "regret"),
        )
    )
    for cell in result.cells:
        table.add_row(*_row(cell))
    yield table
    yield "\nCrossover: events from which fetching wins"
    table = plain_table(("shape", "network", "payload", "measured", "predicted"))
    for at in result.crossovers:
        table.add_row(at.shape, at.network, at.payload, _events(at.measured), _events(at.predicted))
    yield table
    yield "\nBytes in Redis of the longest history, headers included"
    table = plain_table(("shape", "payload", "bytes an event", "events a chunk", "chunks", "bytes"))
    for size in result.sizes:
        figures = (f"{size.bytes_per_event:,.0f}", size.events_per_chunk, size.full_chunks, f"{size.full_bytes:,}")
        table.add_row(size.shape, size.payload, *map(str, figures))
    yield table
    if result.append:
        yield "\nOne event appended by one replica and read by another"
        table = plain_table(("n", "payload", "chunks written", "of", "bytes written", "chunks read", "log bytes", "of"))
        for at_n in result.append:
            counts = (at_n.chunks_written, at_n.chunks_of_state, at_n.chunk_bytes_written, at_n.chunks_read)
            log = (at_n.log_bytes_sent, at_n.log_bytes_full)
            table.add_row(str(at_n.n), at_n.dtype, *(f"{count:,}" for count in (*counts, *log)))
        yield table
    yield from _bars(result.bars)
    yield from notes(result.notes)


def quality_tables(result: QualityResult) -> Iterator[RenderableType]:
    """AUC by payload and visibility beside the exact states', and the bars."""
    yield headline(result.machine, result.commit)
    yield f"\n{result.model}, {result.num_rows:,} test events: scores from states that went through a payload"
    table = plain_table(("payload", "visibility", "states", "AUC", "exact", "moved", "worst score", "Spearman"))
    for row in result.rows:
        table.add_row(
            row.payload,
            row.visibility,
            row.how,
            f"{row.auc:.6f}",
            f"{row.exact_auc:.6f}",
            f"{row.auc - row.exact_auc:+.1e}",
            f"{row.worst_difference:.1e}",
            f"{row.spearman:.7f}",
        )
    yield table
    yield from _bars(result.bars)
    yield from notes(result.notes)


def _row(cell: StateCell) -> tuple[str, ...]:
    return (
        cell.shape,
        cell.network,
        cell.payload,
        cell.tier,
        str(cell.n),
        ms(cell.recompute_ms),
        _number(cell.predicted_recompute_ms),
        ms(cell.fetch_ms),
        _number(cell.predicted_fetch_ms),
        f"{cell.fetch_speedup:.2f}x",
        ms(cell.host_ms) if cell.host_ms is not None else "-",
        f"{cell.acquire_ms.median_ms:.3f}" if cell.acquire_ms is not None else "-",
        f"{cell.fetch_chosen:.0%}" if cell.fetch_chosen is not None else "-",
        f"{cell.regret:.2f}",
    )


def _bars(bars: tuple[Bar, ...]) -> Iterator[RenderableType]:
    if not bars:
        return
    yield "\nBars"
    table = plain_table(("", "value", "bar", "holds"))
    for bar in bars:
        table.add_row(bar.name, bar.measured, bar.asked, bar.verdict)
    yield table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def _events(value: float | None) -> str:
    return "never" if value is None else "always" if value <= 1 else f"{value:,.0f}"
