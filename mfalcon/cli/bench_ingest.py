"""`mfalcon bench ingest`: events a second into a server, and that each is there once."""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench.ingest import LOGS, IngestBenchOptions, page, run
from loadtest.bench.some_checkpoint import some_checkpoint
from mfalcon.cli.bench_output import progress, show
from mfalcon.cli.output import JsonOption
from mfalcon.errors import ConfigError

_DEFAULTS = IngestBenchOptions()


def bench_ingest(
    path: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT", help="The demo's if not given, or one of random weights.")
    ] = None,
    events: Annotated[int, typer.Option(min=1, help="In all.")] = _DEFAULTS.events,
    users: Annotated[int, typer.Option(min=1, help="Who have them, by Zipf's law.")] = _DEFAULTS.users,
    window: Annotated[int, typer.Option(min=1, help="Events that are acknowledged together.")] = _DEFAULTS.window,
    log: Annotated[
        list[str] | None, typer.Option(help=f"Where histories are kept: {', '.join(LOGS)}; repeatable.")
    ] = None,
    kills: Annotated[
        int, typer.Option(min=0, help="Of ingest, and of the server where its log outlives it.")
    ] = _DEFAULTS.kills,
    seed: Annotated[int, typer.Option(min=0, help="Of the events and of the kills.")] = _DEFAULTS.seed,
    json_output: JsonOption = False,
) -> None:
    """Ingest a stream into a new server, and read all histories back; exit code 1 if one is not exactly its events."""
    logs = tuple(log or _DEFAULTS.logs)
    if unknown := [name for name in logs if name not in LOGS]:
        raise ConfigError(f"--log: got {unknown[0]!r}, must be one of {', '.join(LOGS)}")
    with some_checkpoint(path) as found:
        result = run(found, IngestBenchOptions(events, users, window, logs, kills, seed), progress)
    show(result, page, json_output)
    if any(row.wrong for row in result.rows):
        raise typer.Exit(1)
