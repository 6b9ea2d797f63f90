"""`mfalcon bench counting`: what it costs an append that its events are counted for items."""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench.counting import CountingOptions, page, run
from mfalcon.cli.bench_output import progress, show
from mfalcon.cli.output import JsonOption

_DEFAULTS = CountingOptions()


def bench_counting(
    counted: Annotated[Path, typer.Argument(help="A checkpoint whose model reads item counters.")],
    plain: Annotated[Path, typer.Argument(help="One whose model reads none.")],
    events: Annotated[list[int] | None, typer.Option(min=1, help="Events of an append; repeatable.")] = None,
    appends: Annotated[int, typer.Option(min=3, help="Of each server and size.")] = _DEFAULTS.appends,
    ranks: Annotated[
        list[float] | None, typer.Option(min=0, help="Ranks a second beside, of each server; repeatable.")
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Users whose histories grow.")] = _DEFAULTS.users,
    json_output: JsonOption = False,
) -> None:
    """Time appends with item counters in Redis and without, in turns, while both servers rank; it needs Redis."""
    options = CountingOptions(
        tuple(events or _DEFAULTS.events), appends, tuple(_DEFAULTS.ranks if ranks is None else ranks), users
    )
    show(run(counted, plain, options, progress), page, json_output)
