"""`mfalcon bench appends`: whether appends keep their promise while Redis is broken."""

import asyncio
import dataclasses
from typing import Annotated, get_args

import typer

from loadtest.faults.append_faults import HOMES, Home
from loadtest.faults.append_run import AppendReport, RunOptions, run
from loadtest.faults.append_writers import WriterOptions
from loadtest.report.machine import commit
from loadtest.report.table import Table, as_text
from mfalcon.cli.bench_output import progress
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.errors import ConfigError
from mfalcon.history.durability import Durability

_RUN, _WRITERS = RunOptions(), WriterOptions()
_SHOWN_WRONG = 20


def bench_appends(
    minutes: Annotated[float, typer.Option(min=0.01, max=600, help="How long to write, in each home.")] = 10.0,
    on: Annotated[
        list[str] | None, typer.Option(help=f"Where the log lives: {', '.join(HOMES)}; repeatable. All if not given.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, max=16, help="Of the event log.")] = _RUN.replicas,
    users: Annotated[int, typer.Option(min=1, help="At once.")] = _WRITERS.users,
    writers: Annotated[int, typer.Option(min=1, help="Of each user.")] = _WRITERS.writers,
    fault_gap: Annotated[float, typer.Option(min=0, help="Mean seconds between faults; 0 for none.")] = 6.0,
    durability: Annotated[
        str, typer.Option(help="Of what is acknowledged: memory, fsync or replica, which only sentinel can give.")
    ] = _RUN.durability,
    late_share: Annotated[float, typer.Option(min=0, max=1, help="Of the appends, inserted where they belong.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the traffic and of the faults.")] = 0,
    json_output: JsonOption = False,
) -> None:
    """Kill, freeze and cut off the Redis that keeps histories, and judge every append, read and deletion; exit code 1
    if one was lost, doubled or reported wrongly. A failover may lose events unless --durability is replica.
    """
    homes = [_home(name) for name in on or HOMES]
    options = RunOptions(
        seconds=60 * minutes,
        fault_gap_s=fault_gap,
        replicas=replicas,
        durability=_durability(durability),
        writers=dataclasses.replace(_WRITERS, users=users, writers=writers, late_share=late_share),
        seed=seed,
    )
    reports = []
    for home in homes:
        progress(f"{home}: {60 * minutes:g} s")
        reports.append(asyncio.run(run(home, options)))
    if json_output:
        print_json({"commit": commit(), "options": dataclasses.asdict(options), "runs": list(map(_asdict, reports))})
    else:
        typer.echo(as_text(page(reports)))
    for report in reports:
        for trouble in report.trouble:
            typer.echo(f"{report.home}: not at once: {trouble}", err=True)
        for wrong in report.wrong[:_SHOWN_WRONG]:
            typer.echo(f"{report.home}: {wrong}", err=True)
    if any(report.wrong for report in reports):
        raise typer.Exit(1)


def page(reports: list[AppendReport]) -> list[Table]:
    """A row for each home."""
    columns = (
        "home",
        "durability",
        "s",
        "faults",
        "appends",
        "unknown",
        "found by a retry",
        "lost",
        "told lost",
        "reads",
        "wrong",
    )
    rows = [
        (
            report.home,
            report.durability,
            f"{report.seconds:.0f}",
            ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in sorted(report.faults.items())),
            str(report.operations.get("append ok", 0)),
            str(report.operations.get("append unknown", 0)),
            str(report.found),
            str(report.lost),
            str(report.told_lost),
            str(report.operations.get("read ok", 0)),
            str(len(report.wrong)),
        )
        for report in reports
    ]
    return [Table("Appends under faults", columns, rows)]


def _durability(name: str) -> Durability:
    for durability in get_args(Durability):
        if name == durability:
            return name  # type: ignore[return-value]
    raise ConfigError(f"--durability: got {name!r}, must be one of: {', '.join(get_args(Durability))}")


def _home(name: str) -> Home:
    for home in HOMES:
        if name == home:
            return home
    raise ConfigError(f"--on: got {name!r}, must be one of: {', '.join(HOMES)}")


def _asdict(report: AppendReport) -> dict[str, object]:
    return dataclasses.asdict(report)
