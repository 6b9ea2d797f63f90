"""`mfalcon bench capture`: what capturing costs a request, and whether its replay gives the same scores to the bit."""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench.capture import CaptureBenchOptions, page, run
from loadtest.bench.some_checkpoint import some_checkpoint
from mfalcon.cli.bench_output import ThreadsOption, progress, show
from mfalcon.cli.output import JsonOption

_DEFAULTS = CaptureBenchOptions()


def bench_capture(
    path: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT", help="The demo's if not given, or one of random weights.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Another checkpoint to replay against.")] = None,
    requests: Annotated[int, typer.Option(min=10, help="Requests to capture.")] = _DEFAULTS.requests,
    candidates: Annotated[int, typer.Option(min=1, help="Of each.")] = _DEFAULTS.candidates,
    users: Annotated[int, typer.Option(min=1, help="Users, whose histories grow.")] = _DEFAULTS.users,
    events: Annotated[int, typer.Option(min=1, help="Of a history at the start, on average.")] = _DEFAULTS.events,
    threads: ThreadsOption = 0,
    json_output: JsonOption = False,
) -> None:
    """Capture requests of an engine in this process, and replay them; exit code 1 unless the same scores come out."""
    options = CaptureBenchOptions(requests, candidates, users, events, threads=threads)
    with some_checkpoint(path) as found:
        result = run(found, against, options, progress)
    show(result, page, json_output)
    if not result.same["holds"] or result.costs.dropped:
        raise typer.Exit(1)
