"""Every fault of Redis, measured one at a time and, for a frozen one, under load; and the page that tells of it."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from loadtest.faults import counter_faults, table, under_load
from loadtest.faults.counter_faults import CounterRow
from loadtest.faults.redis_faults import FROZEN, cases
from loadtest.faults.table import Row
from loadtest.faults.under_load import CASES, LoadCase, LoadOptions
from loadtest.faults.world import DEADLINE_S, SETUPS, Setup, fault_checkpoint
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, bar_table, headline
from loadtest.report.table import Part, Table

UNDER_LOAD = f"{FROZEN.name} under load"
"""The name of the measurement of several clients at once."""
ITEM_COUNTERS = "item counters"
"""In the names of the faults that are measured on two replicas of a model that reads them."""
FIRST_SECOND_BAR_MS, OPEN_BAR_MS = 50.0, 2.0

_IN_REDIS: dict[Setup, str] = {"states": "states", "refuse": "log, refuse", "stale": "log, stale"}
_MADE = """\
`mfalcon bench faults --write docs/results/faults.md` writes this page. Every score was checked against a cold forward.
Measured on:"""
_READ = """\
Each fault is injected into real servers, under an engine with a small random model: {ranks} ranks of users whose state
is on the host and {ranks} whose state is only in Redis, three appends, a deadline of {deadline_ms:.0f} ms. "Added" is
against the same ranks while Redis was well: negative where a refusal or recomputing took less. The wait before the
device is what Redis itself costs. `states`: the log is embedded, the states are also in Redis; `log, refuse` and
`log, stale`: the log is in Redis too. Counters are without their `mfalcon_` and `_total`."""
_KINDS = ("redis_errors", "chunks_rejected", "breaker_opened", "log_reads{stale}", "write_behind_dropped")
"""Counters that a row shows besides the fault's own."""


@dataclass(frozen=True, slots=True)
class FaultResult:
    """All rows, what a frozen Redis adds under load, and where they were measured."""

    benchmark: str
    machine: Machine
    commit: str | None
    deadline_ms: float
    num_ranks: int
    rows: tuple[Row, ...]
    load: LoadOptions
    under_load: tuple[LoadCase, ...]
    item_counters: tuple[CounterRow, ...]
    bars: tuple[Bar, ...]

    @property
    def complaints(self) -> list[str]:
        """Every rank that was not answered rightly or with an explicit error, in time, and every fault not counted."""
        of_ranks = [f"{row.fault} ({row.setup}): {text}" for row in self.rows for text in row.complaints]
        of_counters = (f"{_of_counters(row.fault)}: {text}" for row in self.item_counters for text in row.complaints)
        return [*of_ranks, *of_counters]


def names() -> list[str]:
    """Of everything that can be measured."""
    of_counters = (_of_counters(fault.name) for fault in counter_faults.FAULTS)
    return [*dict.fromkeys(fault.name for fault, _ in cases()), UNDER_LOAD, *of_counters]


def run(num_ranks: int, load: LoadOptions, progress: Callable[[str], None], only: str | None = None) -> FaultResult:
    """Measure every case; only: those that have this in their name."""
    checkpoint, rows, loaded, machine = fault_checkpoint(), [], [], this_machine()
    for fault, setup in cases():
        if only is None or only in fault.name:
            progress(f"{fault.name}: {SETUPS[setup]}")
            rows.append(asyncio.run(table.measure(fault, setup, checkpoint, num_ranks)))
    for setup, where in CASES if only is None or only in UNDER_LOAD else ():
        progress(f"{UNDER_LOAD}: {SETUPS[setup]}, states {_where(where)}")
        loaded.append(asyncio.run(under_load.measure(FROZEN, setup, where, checkpoint, load)))
    counting, counted = counter_faults.counting_checkpoint(), []
    for fault_of_counters in counter_faults.FAULTS:
        name = _of_counters(fault_of_counters.name)
        if only is None or only in name:
            progress(name)
            counted.append(asyncio.run(counter_faults.measure(fault_of_counters, counting)))
    bars = tuple(bar for case in loaded for bar in _bars(case))
    where_at = (machine, commit(), DEADLINE_S * 1e3, num_ranks)
    return FaultResult("faults", *where_at, tuple(rows), load, tuple(loaded), tuple(counted), bars)


def page(result: FaultResult) -> Iterator[Part]:
    """Where it was measured, a row for each fault and setup, and the phases under load."""
    yield "# Faults of Redis"
    yield f"{_MADE}\n{headline(result.machine, result.commit)}."
    if result.rows:
        yield _READ.format(ranks=result.num_ranks, deadline_ms=result.deadline_ms)
        yield _rows(result)
    if result.under_load:
        yield f"## {UNDER_LOAD.capitalize()}"
        yield (
            f"{result.load.rounds} times, {result.load.clients} clients. The baseline is an engine without Redis under "
            "the same load."
        )
        yield _phases(result)
        yield bar_table(result.bars)
        yield "\n".join(
            f"- {_named(case)}: the breaker opened after {min(case.opened_after_ms):.0f} to "
            f"{max(case.opened_after_ms):.0f} ms; the baseline's p99 was {case.baseline_p99_spread_ms[0]:.1f} to "
            f"{case.baseline_p99_spread_ms[1]:.1f} ms in its rounds"
            for case in result.under_load
        )
    if result.item_counters:
        yield f"## {ITEM_COUNTERS.capitalize()}"
        yield (
            "Two replicas of a model that reads them, log and counters in Redis, ranking stale. Under each fault every "
            "user's log grows by an append and is ranked by both. Afterwards users are ranked as before, and all "
            "counters must be equal to a recount of the logs."
        )
        yield _item_counters(result)


def _item_counters(result: FaultResult) -> Table:
    columns = ("fault", "injected by", "append", "longest, ms", "ranks", "of them stale counters", "equal after, s")
    rows = [
        (
            *(row.fault, row.how, ", ".join(f"{name} {count}" for name, count in sorted(row.append.items()))),
            *(f"{row.append_max_ms:.0f}", f"{row.ranks}" + "".join(f", {e} {n}" for e, n in row.errors.items())),
            *(str(row.stale), "NEVER" if row.healed_s is None else f"{row.healed_s:.1f}"),
        )
        for row in result.item_counters
    ]
    return Table("", columns, rows)


def _of_counters(fault: str) -> str:
    return f"{ITEM_COUNTERS}, {fault}"


def _rows(result: FaultResult) -> Table:
    columns = (
        *("fault", "injected by", "in Redis", "state on host", "state only in Redis", "append"),
        *("added ms, on host: p50 (max)", "only in Redis: p50 (max)", "wait before the device: p50 (max)", "counters"),
    )
    rows = [
        (
            *(row.fault, row.how, _IN_REDIS[row.setup], row.on_host.text, row.only_in_redis.text),
            ", ".join(row.append),
            *(f"{each.added_p50_ms:+.1f} ({each.added_max_ms:+.0f})" for each in (row.on_host, row.only_in_redis)),
            f"{row.only_in_redis.waited_p50_ms:.1f} ({row.only_in_redis.waited_max_ms:.0f})",
            ", ".join(f"`{name}` +{count:.0f}" for name, count in _told(row).items()),
        )
        for row in result.rows
    ]
    return Table("", columns, rows)


def _phases(result: FaultResult) -> Table:
    columns = ("in Redis", "states", "phase", "ranks", "answers", "p50 ms", "p99 ms", "max ms", "waited, p99 ms")
    rows = [
        (
            *(_IN_REDIS[case.setup], _where(case.where), phase.name, str(phase.num_ranks)),
            ", ".join(f"{name} {count}" for name, count in sorted(phase.outcomes.items())),
            *(f"{ms:.1f}" for ms in (phase.p50_ms, phase.p99_ms, phase.max_ms, phase.waited_p99_ms)),
        )
        for case in result.under_load
        for phase in case.phases
    ]
    return Table("", columns, rows)


def _bars(case: LoadCase) -> Iterator[Bar]:
    for what, added, waited, limit in (
        ("first second", case.added_first_second_p99_ms, case.waited_first_second_p99_ms, FIRST_SECOND_BAR_MS),
        ("breaker open", case.added_open_p99_ms, case.waited_open_p99_ms, OPEN_BAR_MS),
    ):
        by = f"by waiting alone {waited:+.1f}"
        yield Bar.most(f"{_named(case)}, {what}: ms added to p99", added, limit, by)


def _named(case: LoadCase) -> str:
    return f"{_IN_REDIS[case.setup]}, states {_where(case.where)}"


def _where(where: str) -> str:
    return "on host" if where == "host" else "only in Redis"


def _told(row: Row) -> dict[str, float]:
    """The counters of the fault, and those of its kind."""
    return {
        name: count for name, count in row.counters.items() if row.tells in name or any(kind in name for kind in _KINDS)
    }
