"""`mfalcon bench everything`: what all that secures and observes a server costs a rank."""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench.everything import BAR, EverythingOptions, page, run
from loadtest.bench.some_checkpoint import some_checkpoint
from mfalcon.cli.bench_output import ThreadsOption, progress, show
from mfalcon.cli.output import JsonOption
from server.config import ServerConfig

_DEFAULTS = EverythingOptions()


def bench_everything(
    path: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT", help="The demo's if not given, or one of random weights.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Of each call.")] = _DEFAULTS.candidates,
    calls: Annotated[int, typer.Option(min=10, help="Of each server.")] = _DEFAULTS.calls,
    in_a_row: Annotated[
        int, typer.Option(min=1, help="Calls of a server before it is the other's turn.")
    ] = _DEFAULTS.in_a_row,
    trace_sample: Annotated[float, typer.Option(min=0, max=1, help="Part of the calls that is traced.")] = 1.0,
    capture_sample: Annotated[
        float, typer.Option(min=0, max=1, help="Part of the users that is captured; there is one.")
    ] = _DEFAULTS.capture_sample,
    without: Annotated[
        list[str] | None, typer.Option(help="A setting that stays off, as tls_cert_file; repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="With two new servers each.")] = _DEFAULTS.rounds,
    threads: ThreadsOption = 0,
    json_output: JsonOption = False,
) -> None:
    """Time ranks of a server with TLS, tokens, logs, traces and capture beside one without, in turns; exit code 1 if
    the median grows by more than 3%.
    """
    options = EverythingOptions(
        candidates,
        calls,
        in_a_row,
        threads=threads,
        trace_sample=trace_sample,
        capture_sample=capture_sample,
        without=tuple(without or ()),
        rounds=rounds,
    )
    with some_checkpoint(path) as found:
        result = run(found, options, ServerConfig.model_fields, progress)
    show(result, page, json_output)
    if result.growth > BAR:
        raise typer.Exit(1)
