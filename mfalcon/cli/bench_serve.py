"""`mfalcon bench serve`: requests a second and latency over gRPC, of several backends or servers side by side."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import torch
import typer

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.serve import ServeOptions, ServeResult, run
from loadtest.bench.shapes import SHAPES, shape_named
from loadtest.faults.fleet import Fleet
from loadtest.report.table import Part, Table
from mfalcon.cli.bench_output import progress, show
from mfalcon.cli.output import JsonOption
from mfalcon.errors import ConfigError
from mfalcon.models import checkpoint

_DEFAULTS = ServeOptions({})


def bench_serve(
    path: Annotated[
        Path | None, typer.Argument(metavar="[CHECKPOINT]", help="Checkpoint to serve; random weights if not given.")
    ] = None,
    shape: Annotated[str, typer.Option(help=f"Shape of random weights ({', '.join(SHAPES)}).")] = "S",
    backend: Annotated[
        list[str] | None, typer.Option(help="Start a server with this backend; repeatable (reference, auto).")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of each server; 0 for its default.")] = 0,
    target: Annotated[
        list[str] | None, typer.Option(metavar="NAME=HOST:PORT", help="A server that runs already; repeatable.")
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Clients in a closed loop.")] = _DEFAULTS.num_clients,
    m: Annotated[int, typer.Option("--m", min=1, help="Number of candidates.")] = _DEFAULTS.num_candidates,
    events: Annotated[int, typer.Option(min=0, help="Length of each user's history.")] = _DEFAULTS.num_events,
    items: Annotated[int, typer.Option(min=1, help="Draw item ids from 1 to this.")] = _DEFAULTS.num_items,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a round.")] = _DEFAULTS.seconds,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each server, in turns.")] = _DEFAULTS.rounds,
    json_output: JsonOption = False,
) -> None:
    """Requests a second and p50 and p99 over gRPC, state hit; servers take turns in one run."""
    targets = dict(map(_named, target or []))
    with ExitStack() as running:
        if not targets or backend:
            directory = path or _written(shape, items, events, running)
            for name in backend or ["reference", "auto"]:
                flags = ("--backend", name, *(("--threads", str(threads)) if threads else ()))
                (targets[name],) = running.enter_context(Fleet(directory, 1, flags)).targets
        options = ServeOptions(targets, clients, m, events, items, seconds, rounds)
        result = run(options, progress)
    show(result, _page, json_output)


def _named(given: str) -> tuple[str, str]:
    name, equals, address = given.partition("=")
    if not (name and equals and address):
        raise ConfigError(f"target: got {given!r}, must be NAME=HOST:PORT")
    return name, address


def _written(shape: str, items: int, events: int, running: ExitStack) -> Path:
    """A checkpoint with random weights, until the end of the run."""
    directory = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="mfalcon-"))) / "checkpoint"
    loaded = random_checkpoint(shape_named(shape), items, max_history=max(events, 8), dtype=torch.float32)
    checkpoint.save(directory, loaded.model, loaded.items)
    return directory


def _page(result: ServeResult) -> Iterator[Part]:
    title = f"{result.model}: {result.num_clients} clients, m={result.num_candidates:,}, n={result.num_events:,}"
    rows = [
        (
            *(
                row.name,
                row.backend,
                f"{row.per_second:.1f}",
                f"{row.per_second_least:.1f} to {row.per_second_most:.1f}",
            ),
            *(f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}", str(row.num_calls), str(row.misses)),
        )
        for row in result.rows
    ]
    yield Table(title, ("", "backend", "requests/s", "least to most", "p50 ms", "p99 ms", "calls", "misses"), rows)
