"""`mfalcon bench state` and `state-quality`: the time that a tier in Redis saves, the quality it costs."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from loadtest.bench import state as bench_state
from loadtest.bench import state_quality
from loadtest.bench.shapes import DTYPES, SHAPES
from loadtest.bench.state import NETWORKS, StateOptions
from loadtest.report import plot as plots
from loadtest.report.pages import quality_page, state_page
from mfalcon.cli.bench_output import PlotOption, QuickOption, ThreadsOption, progress, show
from mfalcon.cli.datasets import ColumnsOption, DataOption, ItemColumnsOption, ItemsOption, LikeOption, open_dataset
from mfalcon.cli.output import JsonOption
from mfalcon.cores import owned_cores
from mfalcon.models import checkpoint
from mfalcon.train.splits import TEST, Split, split
from mfalcon.train.vocabulary import fit_to


def state(
    shape: Annotated[
        list[str] | None, typer.Option(help=f"Shape to measure ({', '.join(SHAPES)}); repeat for more.")
    ] = None,
    n: Annotated[list[int] | None, typer.Option("--n", min=4, max=8192, help="History length; repeatable.")] = None,
    payload: Annotated[
        list[str] | None, typer.Option(help="Type of the states in Redis: float32, bfloat16, int8; repeatable.")
    ] = None,
    network: Annotated[list[str] | None, typer.Option(help=f"To Redis: {', '.join(NETWORKS)}; repeatable.")] = None,
    dtype: Annotated[str, typer.Option(help=f"What to compute in: {', '.join(DTYPES)}.")] = "float32",
    learning: Annotated[int | None, typer.Option(min=0, help="Rounds in which the predictor only learns.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds that count.")] = None,
    redis_url: Annotated[
        str | None, typer.Option(help="A Redis that is there, in place of one of our own: no throttled networks.")
    ] = None,
    threads: ThreadsOption = 0,
    quick: QuickOption = False,
    json_output: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """A KV state from the host or from Redis against encoding it again, and how well the predictor chooses."""
    base = bench_state.QUICK if quick else StateOptions()
    options = replace(
        base,
        shapes=tuple(shape or base.shapes),
        histories=tuple(sorted(set(n or base.histories))),
        payloads=tuple(payload or base.payloads),
        networks=tuple(network or (base.networks if redis_url is None else ("loopback",))),
        dtype=dtype,
        learning=base.learning if learning is None else learning,
        rounds=base.rounds if rounds is None else rounds,
        threads=threads or owned_cores(),
        redis_url=redis_url,
    )
    result = bench_state.run(options, progress)
    if plot is not None:
        plots.plot_state(result, plot)
    show(result, state_page, json_output)


def quality(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint directory.")],
    data: DataOption = "ml-100k",
    columns: ColumnsOption = "",
    items: ItemsOption = None,
    item_columns: ItemColumnsOption = "",
    like_at_least: LikeOption = None,
    part: Annotated[Split, typer.Option("--split", help="A: the last tenth by time; B: of every user.")] = "A",
    json_output: JsonOption = False,
) -> None:
    """AUC of the test events scored from states that went through each payload; exit code 1 if it moves too far."""
    torch.set_num_threads(owned_cores())
    loaded = checkpoint.load(path)
    dataset = fit_to(open_dataset(data, columns, items, item_columns, like_at_least), loaded)
    result = state_quality.measure(loaded, dataset, split(dataset, part) == TEST, progress)
    show(result, quality_page, json_output)
    if not all(bar.holds for bar in result.bars):
        raise typer.Exit(1)
