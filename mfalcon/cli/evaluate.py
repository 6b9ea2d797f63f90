"""`mfalcon evaluate`: offline quality of a checkpoint."""

import dataclasses
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from mfalcon.cli.datasets import (
    ColumnsOption,
    DataOption,
    ItemColumnsOption,
    ItemsOption,
    LikeOption,
    open_dataset,
)
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cores import owned_cores
from mfalcon.models import checkpoint
from mfalcon.train.evaluate import Report
from mfalcon.train.evaluate import evaluate as measure
from mfalcon.train.sequences import Visibility
from mfalcon.train.splits import TEST, Split, split
from mfalcon.train.vocabulary import fit_to

_VISIBILITIES: tuple[Visibility, ...] = ("strict", "order")


def evaluate(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint directory.")],
    data: DataOption = "ml-100k",
    columns: ColumnsOption = "",
    items: ItemsOption = None,
    item_columns: ItemColumnsOption = "",
    like_at_least: LikeOption = None,
    part: Annotated[Split, typer.Option("--split", help="A: the last tenth by time; B: of every user.")] = "A",
    json_output: JsonOption = False,
) -> None:
    """AUC, NE, GAUC and NDCG@10 on the test events: hiding events of the target's own time, and by order."""
    torch.set_num_threads(owned_cores())
    loaded = checkpoint.load(path)
    dataset = fit_to(open_dataset(data, columns, items, item_columns, like_at_least), loaded)
    chosen = split(dataset, part) == TEST
    reports = [measure(loaded.model, dataset, chosen, visibility)[0] for visibility in _VISIBILITIES]
    if json_output:
        print_json(
            {"checkpoint": loaded.fingerprint, "split": part, "reports": [dataclasses.asdict(r) for r in reports]}
        )
        return
    Console(highlight=False).print(report_table(f"{loaded.model.config.name}, split {part}", reports))


def report_table(title: str, reports: list[Report]) -> Table:
    """Reports as rows."""
    table = Table(title=title, title_justify="left")
    for name in ("task", "visibility", "rows", "AUC", "NE", "GAUC", "NDCG@10"):
        table.add_column(name, justify="left" if name in ("task", "visibility") else "right")
    for r in reports:
        figures = (f"{value:.4f}" for value in (r.auc, r.ne, r.gauc, r.ndcg_at_10))
        table.add_row(r.task, r.visibility, f"{r.num_rows:,}", *figures)
    return table
