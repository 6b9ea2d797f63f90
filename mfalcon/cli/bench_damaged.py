"""`mfalcon bench damaged`: what all others see of one user's damaged log, and of a killed master."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from loadtest.bench.damaged import DamagedOptions, page, run
from loadtest.report.table import as_markdown
from mfalcon.cli.bench_output import progress, result_file, show
from mfalcon.cli.output import JsonOption

_DEFAULTS = DamagedOptions()


def bench_damaged(
    path: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="DIR", help="Served meanwhile; the demo's if not given.")
    ] = None,
    others: Annotated[int, typer.Option(min=1, help="Users whose logs are whole.")] = _DEFAULTS.others,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests of theirs a second.")] = _DEFAULTS.rate,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each turn.")] = _DEFAULTS.seconds,
    rounds: Annotated[int, typer.Option(min=1, help="Turns with each fault, and as many without.")] = _DEFAULTS.rounds,
    damaged_log: Annotated[Literal["refuse", "start-empty"], typer.Option(help="Of the server.")] = "refuse",
    write: Annotated[
        Path | None, typer.Option(help="Also write the page here, as Markdown.", callback=result_file)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """The p99 and the failed requests of all other users while the log of one is damaged, or a master is dead."""
    options = DamagedOptions(path, others, rate, seconds=seconds, rounds=rounds, damaged_log=damaged_log)
    result = run(options, progress)
    if write is not None:
        write.write_text(as_markdown(page(result)) + "\n", encoding="utf-8")
    show(result, page, json_output)
    if any(bar.holds is False for bar in result.bars):
        raise typer.Exit(1)
