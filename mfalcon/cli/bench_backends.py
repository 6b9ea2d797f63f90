"""`mfalcon bench backend-quality`: what each backend's rounding does to the rankings of a trained checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

from loadtest.bench.backend_quality import BackendQuality, measure
from loadtest.report.table import Part, Table
from mfalcon.cli.bench_output import progress, show
from mfalcon.cli.datasets import ColumnsOption, DataOption, ItemColumnsOption, ItemsOption, LikeOption, open_dataset
from mfalcon.cli.output import JsonOption
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
    is_target = split(dataset, part) == TEST
    show(measure(path, dataset, is_target, users, progress), _page, json_output)


def _page(result: BackendQuality) -> Iterator[Part]:
    title = f"{result.model}: {result.num_rows:,} test events; {result.num_users} users x {result.num_items:,} items"
    rows = [
        (
            *(row.dtype, row.backend, f"{row.auc:.6f}", f"{row.auc_change:+.1e}", f"{row.worst_difference:.1e}"),
            f"{row.spearman_least:.7f}, {row.spearman_mean:.7f}",
            f"{row.top_10_least:.2f}, {row.top_10_mean:.3f}",
        )
        for row in result.rows
    ]
    columns = ("dtype", "backend", "AUC", "change", "worst score", "Spearman least, mean", "top 10 least, mean")
    yield Table(title, columns, rows)
