"""`mfalcon bench saturation`: the highest rate within a p99, beside a server that keeps nothing, as the page
docs/results/saturation.md.
"""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench.saturation import SaturationOptions, page, run
from loadtest.report.table import as_markdown
from mfalcon.cli.bench_output import progress, result_file, show
from mfalcon.cli.output import JsonOption

_DEFAULTS = SaturationOptions(())
_INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended."""


def bench_saturation(
    paths: Annotated[list[Path], typer.Argument(metavar="CHECKPOINT...", help="Checkpoints to serve, one by one.")],
    m: Annotated[int, typer.Option("--m", min=1, help="Number of candidates.")] = _DEFAULTS.candidates,
    history: Annotated[
        int, typer.Option(min=0, help="Events of each user, at most the model's window.")
    ] = _DEFAULTS.history,
    p99_ms: Annotated[float, typer.Option(min=1, help="The bound.")] = _DEFAULTS.p99_ms,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each rate.")] = _DEFAULTS.seconds,
    rate: Annotated[
        float, typer.Option(min=0.01, help="Requests a second that a search begins with.")
    ] = _DEFAULTS.rate,
    write: Annotated[
        Path | None, typer.Option(help="Also write the page here, as Markdown.", callback=result_file)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """The highest rate of cached, mixed and cold ranks, beside one masked forward a request without a cache."""
    options = SaturationOptions(tuple(paths), m, history, p99_ms, seconds, rate)
    try:
        result = run(options, progress)
    except asyncio.CancelledError:
        raise typer.Exit(_INTERRUPTED) from None
    if write is not None:
        write.write_text(as_markdown(page(result)) + "\n", encoding="utf-8")
    show(result, page, json_output)
    for complaint in result.complaints:
        typer.echo(complaint, err=True)
    if result.complaints:
        raise typer.Exit(1)
