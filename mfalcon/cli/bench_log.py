"""`mfalcon bench log`: the event logs of one machine, in memory and in a file."""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench.event_log import LogOptions, page, run
from loadtest.report.table import as_markdown
from mfalcon.cli.bench_output import progress, result_file, show
from mfalcon.cli.output import JsonOption

_DEFAULTS = LogOptions()


def bench_log(
    users: Annotated[int, typer.Option(min=100, help="Of the logs.")] = _DEFAULTS.users,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load.")] = _DEFAULTS.seconds,
    rounds: Annotated[int, typer.Option(min=1, help="Times that all loads come in turns.")] = _DEFAULTS.rounds,
    bounded_users: Annotated[
        int, typer.Option(min=0, help="Users who come to a log within bounds; 0 leaves that out.")
    ] = _DEFAULTS.bounded_users,
    bounded_mb: Annotated[int, typer.Option(min=1, help="Memory of that log, in MiB.")] = _DEFAULTS.bounded_mb,
    directory: Annotated[
        Path | None, typer.Option(help="Where files go, on the disk to be measured; else where temporary files do.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Also write the page here, as Markdown.", callback=result_file)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Appends a second by durability, bytes a user in memory and on disk, the start, and memory within bounds."""
    options = LogOptions(
        users=users, seconds=seconds, rounds=rounds, bounded_users=bounded_users, bounded_mb=bounded_mb
    )
    result = run(options, directory, progress)
    if write is not None:
        write.write_text(as_markdown(page(result)) + "\n", encoding="utf-8")
    show(result, page, json_output)
    if any(bar.holds is False for bar in result.bars):
        raise typer.Exit(1)
