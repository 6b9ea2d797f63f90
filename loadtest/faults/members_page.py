"""The faults of an ensemble's members as a result, and as a page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.faults.members import Effort, MemberRow, MemberScene, measure
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, bar_table, headline
from loadtest.report.table import Part, Table

_MOST_LATE_MS = 10.0


@dataclass(frozen=True, slots=True)
class MemberFaultResult:
    """soak: many ranks while a member is frozen. grown: descriptors, threads and KiB of the server over them. back_s:
    until the member was back.
    """

    benchmark: str
    machine: Machine
    commit: str | None
    effort: Effort
    rows: tuple[MemberRow, ...]
    soak: MemberRow
    grown: tuple[int, int, int]
    back_s: float
    bars: tuple[Bar, ...]


def run(paths: Sequence[Path], effort: Effort, progress: Callable[[str], None]) -> MemberFaultResult:
    """Break every member in turn. Raises TimeoutError if one does not come back by itself."""
    with MemberScene(paths, effort) as scene:
        rows = []
        for row in measure(scene):
            progress(f"{row.fault}: {row.ranks} ranks")
            rows.append(row)
        with scene.frozen(scene.b):
            scene.observe("before", "b", ranks=5)
            before = scene.held()
            soak = scene.observe("frozen for long", "b", ranks=effort.soak)
            progress(f"{soak.fault}: {soak.ranks} ranks")
            after = scene.held()
        back_s = scene.whole_again()
    grown = (after[0] - before[0], after[1] - before[1], after[2] - before[2])
    bars = (
        Bar.most("answers that are not the offline merge of those that arrived", sum(row.wrong for row in rows), 0),
        Bar.most("longest wait beyond the budget, ms", max(row.late_ms for row in rows), _MOST_LATE_MS),
    )
    return MemberFaultResult("member-faults", this_machine(), commit(), effort, tuple(rows), soak, grown, back_s, bars)


def page(result: MemberFaultResult) -> Iterator[Part]:
    """What was measured where, the faults and the bars."""
    yield headline(result.machine, result.commit)
    effort = result.effort
    title = f"Budget {effort.budget_ms} ms, {effort.candidates} candidates, {effort.events} events"
    columns = ("fault", "ranks", "the member", "partial", "wrong", "errors", "worst ms", "over budget ms")
    rows = [
        (
            row.fault,
            str(row.ranks),
            _counts(row.outcomes),
            str(row.partial),
            str(row.wrong),
            _counts(row.errors),
            f"{row.worst_ms:.1f}",
            f"{row.late_ms:.1f}",
        )
        for row in (*result.rows, result.soak)
    ]
    yield Table(title, columns, rows)
    descriptors, threads, kib = result.grown
    yield (
        f"Over {result.soak.ranks:,} ranks beside a frozen member the server grew by {descriptors} descriptors, "
        f"{threads} threads and {kib} KiB; the member was back {result.back_s:.2f} s after it went on."
    )
    yield bar_table(result.bars)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{word} {number}" for word, number in sorted(counts.items())) or "-"
