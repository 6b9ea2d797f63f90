"""`mfalcon bench backend-quality`: what each backend's rounding does to the rankings of a trained checkpoint."""

import dataclasses
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from loadtest.bench.backend_quality import BackendQuality, measure
from mfalcon.cli.datasets import ColumnsOption, DataOption, ItemColumnsOption, ItemsOption, LikeOption, open_dataset
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cores import owned_cores
from mfalcon.models import checkpoint
from mfalcon.train.splits import TEST, Split, split
from mfalcon.train.vocabulary import fit_to


def bench_backend_quality(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint directory.")],
    data: DataOption = "ml-100k",
    columns: ColumnsOption = "",
    items: ItemsOption = None,
    item_columns: ItemColumnsOption = "",
    like_at_least: LikeOption = None,
    part: Annotated[Split, typer.Option("--split", help="A: the last tenth by time; B: of every user.")] = "A",
    users: Annotated[int, typer.Option(min=1, help="Users whose whole rankings are compared.")] = 50,
    json_output: JsonOption = False,
) -> None:
    """AUC, rank correlation and the best ten of every backend against float64."""
    torch.set_num_threads(owned_cores())
    dataset = fit_to(open_dataset(data, columns, items, item_columns, like_at_least), checkpoint.load(path))
    progress = Console(stderr=True, highlight=False, style="dim")
    is_target = split(dataset, part) == TEST
    result = measure(path, dataset, is_target, users, lambda text: progress.print(text, markup=False))
    if json_output:
        print_json(dataclasses.asdict(result))
    else:
        Console(highlight=False).print(_table(result))


def _table(result: BackendQuality) -> Table:
    title = f"{result.model}: {result.num_rows:,} test events; {result.num_users} users x {result.num_items:,} items"
    table = Table(title=title, title_justify="left")
    for name in ("dtype", "backend", "AUC", "change", "worst score", "Spearman least, mean", "top 10 least, mean"):
        table.add_column(name, justify="left" if name in ("dtype", "backend") else "right")
    for row in result.rows:
        table.add_row(
            row.dtype,
            row.backend,
            f"{row.auc:.6f}",
            f"{row.auc_change:+.1e}",
            f"{row.worst_difference:.1e}",
            f"{row.spearman_least:.7f}, {row.spearman_mean:.7f}",
            f"{row.top_10_least:.2f}, {row.top_10_mean:.3f}",
        )
    return table
