"""Runs of scenarios as one page: a row for each kind of request."""

from collections.abc import Iterator, Sequence

from loadtest.report.result import as_number, headline
from loadtest.report.table import Part, Table
from loadtest.scenarios.result import Row, ScenarioResult

NOTES = (
    "requests/s: answered, over the length of the scenario; p50, p95, p99: milliseconds, of answers",
    "hit: answers of ranks that encoded nothing; from: the tiers in which states were found, NONE where there was none",
    "errors by status; WRONG: an answer that is malformed or not finite; LATE: scores after the deadline",
    "clients wait for their answers (a closed loop), so a slow server is asked less: `mfalcon loadtest --rate` is the "
    "open loop; server, Redis, balancer and clients share the cores of one machine",
)


def page(results: Sequence[ScenarioResult]) -> Iterator[Part]:
    """All of one machine and commit."""
    yield headline(results[0].machine, results[0].commit)
    columns = ("scenario", "clients", "what", "requests", "requests/s", "p50", "p95", "p99", "hit", "from", "errors")
    rows = [_cells(result, row) for result in results for row in result.rows]
    yield Table(f"Scenarios, {results[0].seconds:.0f} s each", columns, rows)
    yield "\n".join(f"- {note}" for note in NOTES)


def _cells(result: ScenarioResult, row: Row) -> tuple[str, ...]:
    found = sum(row.sources.values())
    return (
        *(result.scenario, str(result.clients), row.name, f"{row.answered:,}", f"{row.per_second:.1f}"),
        *map(as_number, (row.p50_ms, row.p95_ms, row.p99_ms)),
        f"{1 - row.encoded / found:.1%}" if found else "-",
        ", ".join(f"{source} {number:,}" for source, number in row.sources.items()) or "-",
        ", ".join(f"{code} {number:,}" for code, number in row.errors.items()) or "none",
    )
