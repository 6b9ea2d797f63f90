"""`mfalcon bench graph` and `bench graph-quality`: graph vectors refreshed beside ranks, and what a graph is worth."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

from loadtest.bench import graph_quality
from loadtest.bench.graph import GraphOptions, GraphResult, measure, result_of
from loadtest.bench.graph_quality import GraphQualityOptions
from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import Shape
from loadtest.report.result import bar_table, headline
from loadtest.report.table import Part, Table, as_markdown
from mfalcon.cli.bench_output import progress, result_file, show
from mfalcon.cli.datasets import open_dataset
from mfalcon.cli.output import JsonOption
from mfalcon.cli.process import serving
from mfalcon.models import checkpoint

_DEFAULTS, _QUALITY = GraphOptions(), GraphQualityOptions()
_SHAPE = Shape("graph", num_layers=2, dim=64, num_heads=2)
_FRONTENDS = (0, 2)


def bench_graph(
    refreshes: Annotated[int, typer.Option(min=4, help="Of each server.")] = _DEFAULTS.refreshes,
    items: Annotated[int, typer.Option(min=1, help="Items of the table.")] = _DEFAULTS.num_items,
    users: Annotated[int, typer.Option(min=1, help="Users.")] = _DEFAULTS.num_users,
    events: Annotated[int, typer.Option(min=1, help="Events of a user.")] = _DEFAULTS.num_events,
    m: Annotated[int, typer.Option("--m", min=2, help="Number of candidates.")] = _DEFAULTS.num_candidates,
    per_second: Annotated[float, typer.Option(min=0.1, help="Ranks a second.")] = _DEFAULTS.per_second,
    json_output: JsonOption = False,
) -> None:
    """Ranks beside refreshes of graph vectors, each held against its version; exit code 1 if a bar is missed."""
    torch.set_num_threads(1)
    options = GraphOptions(refreshes, items, users, events, m, per_second)
    rows = []
    with tempfile.TemporaryDirectory(prefix="mfalcon-") as parent:
        path = Path(parent) / "checkpoint"
        made = random_checkpoint(_SHAPE, items, max_history=max(64, 2 * events), with_graph=True)
        checkpoint.save(path, made.model, made.items)
        for frontends in _FRONTENDS:
            progress(f"{refreshes} refreshes, {frontends} front-ends")
            folder = Path(parent) / f"vectors-{frontends}"
            folder.mkdir()
            flags = ("--graph-dir", str(folder), "--items-watch-seconds", "0.02", "--frontends", str(frontends))
            with serving(path, *flags) as server:
                rows.append(measure(options, frontends, server.grpc, folder, checkpoint.load(path)))
    result = result_of(options, rows)
    show(result, _page, json_output)
    if any(bar.holds is False for bar in result.bars):
        raise typer.Exit(1)


def _page(result: GraphResult) -> Iterator[Part]:
    yield headline(result.machine, result.commit)
    columns = (
        *("front-ends", "answers", "versions named", "failed", "wrong", "worst error", "until named, ms"),
        *("p50 without / beside", "p99 without / beside"),
    )
    rows = [
        (
            *(str(row.frontends), str(row.num_answers), str(row.num_versions), str(row.num_failed)),
            *(str(row.num_wrong), f"{row.worst_error:.1e}", f"{row.seen_ms:.0f}"),
            *(f"{one[0]:.1f} / {one[1]:.1f}" for one in (row.p50, row.p99)),
        )
        for row in result.rows
    ]
    yield Table("ranks beside refreshes of graph vectors", columns, rows)
    yield bar_table(result.bars)


def bench_graph_quality(
    model: Annotated[str, typer.Option(help="Architecture of all.")] = _QUALITY.architecture,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = _QUALITY.seeds,
    processes: Annotated[int, typer.Option(min=1, help="Trainings side by side.")] = 1,
    runs: Annotated[
        Path, typer.Option(help="Where checkpoints are kept; those that are there are not trained again.")
    ] = Path("build/graph-quality"),
    write: Annotated[
        Path | None, typer.Option(help="Also write the page here, as Markdown.", callback=result_file)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """A ranker without a graph, with one of two stages, and end to end, on MovieLens-100K; exit code 1 as above."""
    options = GraphQualityOptions(model, seeds, processes)
    found = graph_quality.run(open_dataset("ml-100k", "", None, "", None), options, runs, progress)
    if write is not None:
        write.write_text(as_markdown(graph_quality.page(found)) + "\n", encoding="utf-8")
    show(found, graph_quality.page, json_output)
    if any(bar.holds is False for bar in found.bars):
        raise typer.Exit(1)
