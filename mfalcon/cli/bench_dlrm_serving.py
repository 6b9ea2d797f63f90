"""`mfalcon bench dlrm-serving`: a DLRM and a generative ranker of 285 times its FLOPs behind one server."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench.dlrm import DLRMS
from loadtest.bench.dlrm_pairs import RANKERS
from loadtest.bench.dlrm_serving import ServingOptions, page, run
from loadtest.report.table import as_markdown
from mfalcon.cli.bench_output import progress, result_file, show
from mfalcon.cli.output import JsonOption

_DEFAULTS = ServingOptions()
_INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended."""


def bench_dlrm_serving(
    ratio: Annotated[float, typer.Option(help="Of the ranker's FLOPs to the DLRM's.")] = _DEFAULTS.ratio,
    dlrm: Annotated[str, typer.Option(help=f"DLRM to serve: {', '.join(DLRMS)}.")] = _DEFAULTS.dlrm,
    shape: Annotated[str, typer.Option(help=f"Ranker to serve: {', '.join(RANKERS)}.")] = _DEFAULTS.shape,
    m: Annotated[int, typer.Option("--m", min=1, max=16_384, help="Number of candidates.")] = _DEFAULTS.candidates,
    p99_ms: Annotated[float, typer.Option(min=1, max=60_000, help="The bound.")] = _DEFAULTS.p99_ms,
    seconds: Annotated[float, typer.Option(min=0.1, max=3_600, help="Of each rate.")] = _DEFAULTS.seconds,
    rate: Annotated[
        float, typer.Option(min=0.01, help="Requests a second that a search begins with.")
    ] = _DEFAULTS.rate,
    write: Annotated[
        Path | None, typer.Option(help="Also write the page here, as Markdown.", callback=result_file)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """The highest rate of each within a p99 over gRPC, and the p99 of both at the DLRM's highest rate."""
    try:
        result = run(ServingOptions(ratio, dlrm, shape, m, p99_ms, seconds, rate), progress)
    except asyncio.CancelledError:
        raise typer.Exit(_INTERRUPTED) from None
    if write is not None:
        write.write_text(as_markdown(page(result)) + "\n", encoding="utf-8")
    show(result, page, json_output)
    if result.complaints:
        raise typer.Exit(1)
