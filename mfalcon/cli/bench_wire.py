"""`mfalcon bench wire`: ids that are text, answers with the top alone, and several ranks in one call."""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench.some_checkpoint import some_checkpoint
from loadtest.bench.wire import WireOptions, page, run
from mfalcon.cli.bench_output import progress, show
from mfalcon.cli.output import JsonOption

_DEFAULTS = WireOptions()


def bench_wire(
    path: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT", help="The demo's if not given, or one of random weights.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of each comparison.")] = _DEFAULTS.rounds,
    candidates: Annotated[int, typer.Option(min=1, help="Of the answers.")] = _DEFAULTS.candidates,
    users: Annotated[int, typer.Option(min=1, help="Of a batch.")] = _DEFAULTS.users,
    ranked: Annotated[int, typer.Option(min=1, help="Candidates of each of its ranks.")] = _DEFAULTS.ranked,
    json_output: JsonOption = False,
) -> None:
    """Compare each with what it is instead of, in turns; exit code 1 if a bar falls."""
    options = WireOptions(rounds=rounds, candidates=candidates, users=users, ranked=ranked)
    with some_checkpoint(path) as found:
        result = run(found, options, progress)
    show(result, page, json_output)
    if any(bar.holds is False for bar in result.bars):
        raise typer.Exit(1)
