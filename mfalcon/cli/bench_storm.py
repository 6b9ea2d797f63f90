"""`mfalcon bench storm`: clients of several replicas that append to one user at once."""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench.storm import StormOptions, page, run
from loadtest.report.table import as_markdown
from mfalcon.cli.bench_output import progress, result_file, show
from mfalcon.cli.output import JsonOption

_DEFAULTS = StormOptions()


def bench_storm(
    path: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="DIR", help="Served meanwhile; the demo's if not given.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, max=16, help="Servers on one Redis.")] = _DEFAULTS.replicas,
    writers: Annotated[int, typer.Option(min=1, max=512, help="Clients of each.")] = _DEFAULTS.writers,
    history: Annotated[int, typer.Option(min=0, help="Events of each user before.")] = _DEFAULTS.history,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load.")] = _DEFAULTS.seconds,
    rounds: Annotated[int, typer.Option(min=1, help="Times that both loads come in turns.")] = _DEFAULTS.rounds,
    without_ids: Annotated[bool, typer.Option("--without-ids", help="Appends bear no append_id.")] = False,
    durability: Annotated[str, typer.Option(help="--append-durability of the servers; empty for theirs.")] = "",
    write: Annotated[
        Path | None, typer.Option(help="Also write the page here, as Markdown.", callback=result_file)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Appends a second to one user by many clients, beside as many users with a client each."""
    flags = ("--append-durability", durability) if durability else ()
    options = StormOptions(path, replicas, writers, history, seconds, rounds, not without_ids, flags=flags)
    result = run(options, progress)
    if write is not None:
        write.write_text(as_markdown(page(result)) + "\n", encoding="utf-8")
    show(result, page, json_output)
    if any(bar.holds is False for bar in result.bars):
        raise typer.Exit(1)
