"""`mfalcon history`: read a user's history back from a running server."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
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
from mfalcon_client import Client, HistoryPage, VersionConflict

_console = Console(highlight=False)
_TRIES = 5
"""A history that changes while its pages are read is read again from the first one."""
_END = 2**64 - 1


def history(
    user: Annotated[str, typer.Argument(help="User id.")],
    last: Annotated[int, typer.Option(help="How many of the newest events to show.", min=0)] = 20,
    first: Annotated[
        int | None, typer.Option(help="Show all events from this position on; 0 for all that are kept.", min=0)
    ] = None,
    states: Annotated[bool, typer.Option(help="Show which KV states of the user lie in which tier.")] = True,
    path: Annotated[Path | None, typer.Option("--checkpoint", metavar="DIR", help="Titles of the items.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each page.", min=0.001)] = 10.0,
    target: TargetOption = DEFAULT_TARGET,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show a user's events on a running server, the history's version, and where KV states of the user lie."""
    items = load_items(path) if path else None
    with calling(target, timeout, tls_of(tls_ca, tls_cert, tls_key), token_file) as client:
        actions = client.get_model().actions
        page = read(client, user, first, last, with_states=states)
    if json_output:
        print_json(as_json(user, page, actions))
        return
    if len(page.events):
        _console.print(events_table(page, actions, items))
    _console.print(in_words(user, page))
    if page.states:
        _console.print(states_table(page))


def read(client: Client, user: str, first: int | None, last: int, *, with_states: bool = False) -> HistoryPage:
    """The newest `last` events of a user, or all from position `first` on, as one page: all of one history, however
    many pages it took. Raises VersionConflict if the history changed each time before its last page was read.
    """
    for left in reversed(range(_TRIES)):
        told = client.get_history(user, _END, with_states=with_states)
        begin = max(0, told.history_len - last) if first is None else first
        try:
            return _pages(client, user, begin, told)
        except VersionConflict:
            if not left:
                raise
    raise AssertionError


def _pages(client: Client, user: str, first: int, told: HistoryPage) -> HistoryPage:
    """All events from a position on, with the rest of what was told of the history."""
    begin, parts = min(max(first, told.base), told.history_len), [told.events[:0]]
    texts = list[str]()
    at = begin
    while at < told.history_len:
        page = client.get_history(user, at, expected_version=told.version)
        parts.append(page.events)
        texts += page.texts or [""] * len(page.events)
        at = page.next_first
    return dataclasses.replace(told, events=np.concatenate(parts), first=begin, next_first=at, texts=tuple(texts))


def events_table(page: HistoryPage, actions: tuple[str, ...], items: ItemTable | None) -> Table:
    """The events with their positions, times in UTC, and the names of their actions."""
    table = Table()
    for name in ("#", "time", "item", "actions", "value", *(["title"] if items else [])):
        table.add_column(name, justify="right" if name in ("#", "item", "value") else "left", overflow="fold")
    names = item_names(page.events["item_id"], page.texts)
    for position, (item, bits, value, time_ms) in enumerate(page.events.tolist(), page.first):
        called = Text(str(names[position - page.first]))
        time = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")
        done = Text(", ".join(_names(bits, actions)))
        title = [Text(items.title(item))] if items else []
        table.add_row(str(position), time.removesuffix("+00:00"), called, done, f"{value:g}", *title)
    return table


def states_table(page: HistoryPage) -> Table:
    """Where states lie, and whether they are of this history."""
    table = Table(title="KV states", title_justify="left")
    for name in ("model", "tier", "events", "tokens", "MiB", "fits"):
        table.add_column(name, justify="right" if name in ("tokens", "MiB") else "left")
    for state in page.states:
        events = f"{state.first_event} to {state.first_event + state.num_events}"
        size = f"{state.num_bytes / 2**20:.2f}"
        fits = "yes" if state.fits else "no"
        table.add_row(Text(state.model), state.tier.name, events, str(state.num_tokens), size, fits)
    return table


def in_words(user: str, page: HistoryPage) -> str:
    """What the whole history is."""
    kept = f", of which the first {page.base} are trimmed" if page.base else ""
    stale = "; the event log could not be asked: newer events may exist" if page.stale else ""
    return f"{user}: {page.history_len} events{kept}; version {page.version.hex()}{stale}"


def as_json(user: str, page: HistoryPage, actions: tuple[str, ...]) -> dict[str, object]:
    """All of it."""
    names = item_names(page.events["item_id"], page.texts)
    events = [
        {"position": page.first + at, "item_id": name, "actions": _names(bits, actions), "value": value, "time_ms": ms}
        for at, (name, (_, bits, value, ms)) in enumerate(zip(names, page.events.tolist(), strict=True))
    ]
    return {
        "user": user,
        "history_len": page.history_len,
        "base": page.base,
        "version": page.version.hex(),
        "stale": page.stale,
        "events": events,
        "states": [dataclasses.asdict(state) | {"tier": state.tier.name} for state in page.states],
    }


def _names(bits: int, actions: tuple[str, ...]) -> list[str]:
    """Of the actions in a bitmask; a bit that the model does not know is its number."""
    return [actions[bit] if bit < len(actions) else str(bit) for bit in range(32) if bits >> bit & 1]
