"""`mfalcon bench items`: deltas of item rows beside ranks, each answer held against the table that it names; or what
they and the policies of KV states are worth in quality.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

from loadtest.bench import items_quality
from loadtest.bench.items import ItemsOptions, ItemsResult, StreamResult, Where, new_items, result_of, stream
from loadtest.bench.items_quality import ItemsQualityOptions
from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import Shape
from loadtest.faults.redis_server import HOST, free_port
from loadtest.report.result import bar_table
from loadtest.report.table import Part, Table, as_markdown
from mfalcon.cli.bench_output import progress, result_file, show
from mfalcon.cli.datasets import open_dataset
from mfalcon.cli.output import JsonOption
from mfalcon.cli.process import serving
from mfalcon.models import checkpoint
from mfalcon.types import ItemsPolicy

_DEFAULTS, _QUALITY = ItemsOptions(), ItemsQualityOptions()
_SHAPE = Shape("items", num_layers=2, dim=64, num_heads=2)
_SERVERS: tuple[tuple[Where, ItemsPolicy], ...] = (("others", "exact"), ("anywhere", "exact"), ("anywhere", "frozen"))


def bench_items(
    rows: Annotated[int, typer.Option(min=1, help="Rows a second.")] = _DEFAULTS.rows_per_second,
    rows_per_delta: Annotated[int, typer.Option(min=1, help="Rows of a delta.")] = _DEFAULTS.rows_per_delta,
    seconds: Annotated[
        float, typer.Option(min=1, help="Seconds with deltas, and as many without.")
    ] = _DEFAULTS.seconds,
    turns: Annotated[int, typer.Option(min=1, help="Turns in which both are cut up.")] = _DEFAULTS.num_turns,
    items: Annotated[int, typer.Option(min=1_000, help="Items of the table.")] = _DEFAULTS.num_items,
    users: Annotated[int, typer.Option(min=1, help="Users.")] = _DEFAULTS.num_users,
    events: Annotated[int, typer.Option(min=1, help="Events of a user.")] = _DEFAULTS.num_events,
    m: Annotated[int, typer.Option("--m", min=2, help="Number of candidates.")] = _DEFAULTS.num_candidates,
    per_second: Annotated[float, typer.Option(min=0.1, help="Ranks a second.")] = _DEFAULTS.per_second,
    new: Annotated[int, typer.Option(min=1, help="Items of a delta that brings new ones.")] = 1_000,
    times: Annotated[int, typer.Option(min=1, help="Such deltas.")] = 10,
    quality: Annotated[
        bool,
        typer.Option(
            "--quality", help="Instead: AUC and hit rates of each policy on MovieLens-100K, while rows learn."
        ),
    ] = False,
    refreshes: Annotated[int, typer.Option(min=1, help="Of --quality: deltas.")] = _QUALITY.refreshes,
    keep_s: Annotated[
        float, typer.Option(min=0, help="Of --quality: seconds of the events' time that bounded keeps states for.")
    ] = _QUALITY.keep_s,
    seeds: Annotated[int, typer.Option(min=1, help="Of --quality: trainings.")] = _QUALITY.seeds,
    processes: Annotated[int, typer.Option(min=1, help="Of --quality: what runs side by side.")] = 1,
    runs: Annotated[
        Path, typer.Option(help="Of --quality: where checkpoints are kept; those that are there are not trained again.")
    ] = Path("build/items-quality"),
    write: Annotated[
        Path | None,
        typer.Option(help="Of --quality: also write the page here, as Markdown.", callback=result_file),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Ranks beside a stream of item deltas; exit code 1 if a bar is missed."""
    if quality:
        wanted = ItemsQualityOptions(refreshes=refreshes, keep_s=keep_s, seeds=seeds, processes=processes)
        found = items_quality.run(open_dataset("ml-100k", "", None, "", None), wanted, runs, progress)
        if write is not None:
            write.write_text(as_markdown(items_quality.page(found)) + "\n", encoding="utf-8")
        show(found, items_quality.page, json_output)
        return
    torch.set_num_threads(1)
    options = ItemsOptions(
        rows, rows_per_delta, seconds, turns, items, min(_DEFAULTS.num_known, items // 2), users, events, m, per_second
    )
    with tempfile.TemporaryDirectory(prefix="mfalcon-") as parent:
        path, folder = Path(parent) / "checkpoint", Path(parent) / "deltas"
        made = random_checkpoint(_SHAPE, items, max_history=max(64, 2 * events))
        checkpoint.save(path, made.model, made.items)
        streams: list[StreamResult] = []
        for where, policy in _SERVERS:
            progress(f"deltas of {where} items, {policy}")
            port = free_port()
            with serving(path, "--admin-port", str(port), "--items-policy", policy) as server:
                streams.append(stream(options, where, policy, server.grpc, f"{HOST}:{port}", checkpoint.load(path)))
        progress("new items")
        folder.mkdir()
        with serving(path, "--items-dir", str(folder)) as server:
            took = new_items(options, server.grpc, folder, checkpoint.load(path), new, times)
    result = result_of(streams, new, took, options)
    show(result, _page, json_output)
    if any(bar.holds is False for bar in result.bars):
        raise typer.Exit(1)


def _page(result: ItemsResult) -> Iterator[Part]:
    columns = ("deltas of", "policy", "turn", "calls", "p50 ms", "p99 ms", "encoded")
    rows = [
        (
            *(one.where, one.policy, "deltas" if row.is_patched else "none", str(row.num_calls)),
            *(f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}", f"{row.encoded_share:.1%}"),
        )
        for one in result.streams
        for row in one.turns
    ]
    yield Table(f"ranks beside deltas, {result.machine.cpu}", columns, rows)
    all_turns = (
        *("deltas of", "policy", "rows/s", "deltas", "median ms", "versions named", "failed", "checked", "wrong"),
        *("worst error", "p50 ratio", "p99 ratio"),
    )
    totals = [
        (
            *(one.where, one.policy, f"{one.rows_per_second:,.0f}", str(one.num_deltas), f"{one.delta_ms:.0f}"),
            *(str(one.num_versions), str(one.num_failed), str(one.num_checked), str(one.num_wrong)),
            *(f"{one.worst_error:.1e}", f"{one.p50_ratio:.2f}", f"{one.p99_ratio:.2f}"),
        )
        for one in result.streams
    ]
    yield Table("all turns; ratios are of medians", all_turns, totals)
    took = ", ".join(f"{seconds:.2f}" for seconds in result.new_items_s)
    yield Table(f"{result.num_new} new items, s until ranked", ("each time",), [(took,)])
    yield bar_table(result.bars)
