"""`mfalcon interests`: ask a running server what a user would take next under conditions."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mfalcon.cli.calling import TlsCaOption, TlsCertOption, TlsKeyOption, TokenOption, calling, tls_of
from mfalcon.cli.item_names import item_names
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cli.rank import DEFAULT_TARGET, TargetOption
from mfalcon.models.items import ItemTable
from mfalcon.models.manifest import load_items
from mfalcon_client import Interests

_console = Console(highlight=False)


def interests(
    user: Annotated[str, typer.Option(help="User id.")],
    conditions: Annotated[
        str, typer.Option(help="Conditions of the model, comma-separated; all of them if not given.")
    ] = "",
    top: Annotated[int, typer.Option(help="How many of the nearest items to tell of each.", min=0)] = 5,
    path: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="DIR", help="The served checkpoint, for titles.")
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the model; the first that has conditions if not given.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.", min=0.001)] = 10.0,
    target: TargetOption = DEFAULT_TARGET,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show a user's interests under conditions: the nearest items, and with --json the vectors."""
    items = load_items(path) if path else None
    asked = tuple(part for part in conditions.split(",") if part)
    with calling(target, timeout, tls_of(tls_ca, tls_cert, tls_key), token_file) as client:
        found = client.interests(user, asked, top_items=top, model=model)
    if json_output:
        print_json({"user": user} | as_json(found, items))
        return
    _console.print(interests_table(found, items))
    cache = "computed ahead" if found.computed_ahead else f"cache {found.cache.source.name}"
    _console.print(
        f"history {found.history_len} events; {cache}: {found.cache.reused_tokens} tokens reused, "
        f"{found.cache.encoded_tokens} encoded; conditions {found.timings.score_us / 1000:.2f} ms, "
        f"in all {found.timings.total_us / 1000:.2f} ms"
    )


def interests_table(found: Interests, items: ItemTable | None) -> Table:
    """Conditions with their nearest items."""
    table = Table()
    for name, justify in (("condition", "left"), ("item", "right"), ("score", "right"), ("title", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    nearest = found.nearest or (None,) * len(found.conditions)
    for condition, each in zip(found.conditions, nearest, strict=True):
        if each is None or not len(each.item_ids):
            table.add_row(Text(condition), "", "", "")
            continue
        names = map(str, item_names(each.item_ids, each.texts))
        told = zip(each.item_ids.tolist(), names, each.scores.tolist(), strict=True)
        for place, (item, name, score) in enumerate(told):
            title = items.title(item) if items else ""
            table.add_row(Text("" if place else condition), Text(name), f"{score:.3f}", Text(title))
    return table


def as_json(found: Interests, items: ItemTable | None) -> dict[str, object]:
    """Everything that the server said."""
    nearest = [
        [
            {"item_id": name, "title": items.title(item) if items else "", "score": score}
            for item, name, score in zip(
                each.item_ids.tolist(), item_names(each.item_ids, each.texts), each.scores.tolist(), strict=True
            )
        ]
        for each in found.nearest
    ]
    return {
        "conditions": list(found.conditions),
        "vectors": found.vectors.tolist(),
        "nearest": nearest,
        "model_version": found.model_version,
        "history_len": found.history_len,
        "history_version": found.history_version.hex(),
        "stale": found.stale,
        "computed_ahead": found.computed_ahead,
        "cache": dataclasses.asdict(found.cache) | {"source": found.cache.source.name},
        "timings": dataclasses.asdict(found.timings),
    }
