"""Every fault of the server itself, measured one at a time, and the page that tells of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from loadtest.faults import bad_starts, server_table
from loadtest.faults.server_faults import FAULTS
from loadtest.faults.server_scene import Effort
from loadtest.faults.server_table import ServerRow
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import headline
from loadtest.report.table import Part, Table

_MADE = """\
`mfalcon bench faults --of server --write docs/results/server-faults.md` writes this page. Every score was checked
against a cold forward over the acknowledged history. Measured on:"""
_READ = """\
Each row is a real process with a small random model and one thread. A neighbour ranks users whose states are cached all
the while, on a connection of its own: right, refused (by a status after which another server or a later attempt
helps), failed (anything else), and its longest time without scores. Health is each change of the answers, in order.
"Known after" is the time until the first sign: an error as the answer, or health that changes. A refusal while the
process ends is right; so is an exit code that tells a supervisor to start it again."""


@dataclass(frozen=True, slots=True)
class ServerFaultResult:
    """All rows, and where they were measured."""

    benchmark: str
    machine: Machine
    commit: str | None
    effort: Effort
    rows: tuple[ServerRow, ...]

    @property
    def complaints(self) -> list[str]:
        """Everything that must not be."""
        return [f"{row.fault}: {text}" for row in self.rows for text in row.complaints]


def names() -> list[str]:
    """Of everything that can be measured."""
    return [*(fault.name for fault in FAULTS), bad_starts.NAME]


def run(effort: Effort, progress: Callable[[str], None], only: str | None = None) -> ServerFaultResult:
    """Measure every fault; only: those that have this in their name."""
    machine, rows = this_machine(), []
    works: dict[str, Callable[[], ServerRow]] = {
        fault.name: partial(server_table.measure, fault, effort) for fault in FAULTS
    }
    works[bad_starts.NAME] = partial(bad_starts.measure, effort.checkpoints)
    for name, work in works.items():
        if only is None or only in name:
            progress(name)
            rows.append(work())
    return ServerFaultResult("server faults", machine, commit(), effort, tuple(rows))


def page(result: ServerFaultResult) -> Iterator[Part]:
    """Where it was measured, and a row for each fault."""
    yield "# Faults of the server"
    yield f"{_MADE}\n{headline(result.machine, result.commit)}."
    yield _READ
    columns = (
        *("fault", "injected by", "its request", "neighbour: right", "refused", "failed", "longest silence, s"),
        *("/livez", "/readyz", "gRPC health", "exit code", "known after, s", "besides"),
    )
    yield Table("", columns, [_cells(row) for row in result.rows])
    if result.complaints:
        yield "What must not be:"
        yield "\n".join(f"- {complaint}" for complaint in result.complaints)


def _cells(row: ServerRow) -> tuple[str, ...]:
    return (
        *(row.fault, row.how, ", ".join(f"{name} {count}" for name, count in row.requests.items())),
        *(str(row.right), str(row.refused), str(row.failed), f"{row.silence_s:.2f}"),
        *(row.livez, row.readyz, row.grpc, str(row.exit_code)),
        "-" if row.known_s is None else f"{row.known_s:.2f}",
        "; ".join(row.notes) or "-",
    )
