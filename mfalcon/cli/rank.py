"""`mfalcon rank`: ask a running server, and print what it answers in words."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from mfalcon.cli.output import JsonOption, print_json
from mfalcon.client import Client
from mfalcon.errors import ConfigError
from mfalcon.models import checkpoint
from mfalcon.models.items import ItemTable
from mfalcon.types import Ids, RankResult

_console = Console(highlight=False)

TargetOption = Annotated[str, typer.Option(help="gRPC address of the server.", metavar="HOST:PORT")]
DEFAULT_TARGET = "127.0.0.1:50051"


def rank(
    user: Annotated[str, typer.Option(help="User id.")],
    candidates: Annotated[
        str, typer.Option(help="Item ids, comma-separated; 'all' for every item of --checkpoint.")
    ] = "all",
    path: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="DIR", help="The served checkpoint: titles, and 'all' items.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many to print.", min=1)] = 10,
    context: Annotated[list[str] | None, typer.Option(help="A context feature, name=code; repeatable.")] = None,
    target: TargetOption = DEFAULT_TARGET,
    json_output: JsonOption = False,
) -> None:
    """Rank candidates for a user on a running server."""
    items = checkpoint.load_items(path) if path else None
    ids = _candidates(candidates, items)
    with Client(target) as client:
        result = client.rank(user, ids, top_k=top, context=_context(context or []))
    if json_output:
        best = [{"item_id": int(ids[i]), "score": float(result.scores[i])} for i in result.top]
        print_json({"user": user, "top": best, "cache": result.cache.source.name, "timings": _timings(result)})
        return
    _console.print(top_table(result, ids, items))
    _console.print(cost_line(result))


def top_table(result: RankResult, ids: Ids, items: ItemTable | None) -> Table:
    """The best candidates with titles and scores."""
    table = Table()
    for name in ("#", "item", "score", *result.tasks):
        table.add_column(name, justify="right")
    table.add_column("title")
    for place, position in enumerate(result.top, start=1):
        item = int(ids[position])
        scores = (f"{value:.4f}" for value in (result.scores[position], *result.task_scores[:, position]))
        table.add_row(str(place), str(item), *scores, items.title(item) if items else "")
    return table


def cost_line(result: RankResult) -> str:
    """Where the answer came from and what it cost."""
    cache, times = result.cache, result.timings
    return (
        f"history {result.history_len} events; cache {cache.source.name}: "
        f"{cache.reused_tokens} tokens reused, {cache.encoded_tokens} encoded; "
        f"encode {times.encode_us / 1000:.2f} ms, score {times.score_us / 1000:.2f} ms, "
        f"in all {times.total_us / 1000:.2f} ms"
    )


def _candidates(text: str, items: ItemTable | None) -> Ids:
    if text == "all":
        if items is None:
            raise ConfigError("--candidates all needs --checkpoint, whose items they are")
        return items.item_id
    try:
        return np.array([int(part) for part in text.split(",")], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"--candidates: got {text!r}, must be item ids (64-bit integers) separated by commas"
        ) from error


def _context(pairs: list[str]) -> dict[str, int]:
    try:
        return {name: int(code) for name, _, code in (pair.partition("=") for pair in pairs)}
    except ValueError as error:
        raise ConfigError(f"--context: got {pairs}, each must be name=integer") from error


def _timings(result: RankResult) -> dict[str, int]:
    times = result.timings
    return {name: getattr(times, name) for name in times.__slots__}
