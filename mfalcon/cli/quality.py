"""`mfalcon quality`: ranking quality over seeds on MovieLens-100K, beside the baselines of the same run."""

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from mfalcon.cli.datasets import open_dataset
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cli.train import train_checkpoint
from mfalcon.cores import owned_cores
from mfalcon.models import checkpoint
from mfalcon.train.baselines import item_mean, logistic_user_item
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import evaluate
from mfalcon.train.metrics import auc, normalized_entropy
from mfalcon.train.recipes import TrainConfig, model_config
from mfalcon.train.sequences import labels
from mfalcon.train.splits import TEST, TRAIN, split

STRICT_AUC = {"dfgr": 0.767, "hstu": 0.755}
"""Bars for the median strict AUC on split A."""
STRICT_NE = {"dfgr": 0.838}
ORDER_AUC = {"dfgr": 0.780}
OVER_LOGISTIC = 0.045


@dataclass(frozen=True, slots=True)
class Row:
    """One trained seed, or a baseline (seed None)."""

    model: str
    seed: int | None
    strict_auc: float
    strict_ne: float
    order_auc: float
    train_seconds: float


def quality(
    seeds: Annotated[int, typer.Option(help="Seeds per model.", min=1)] = 3,
    models: Annotated[str, typer.Option(help="Architectures, comma-separated.")] = "dfgr,hstu",
    directory: Annotated[Path, typer.Option(help="Where the checkpoints go.")] = Path("checkpoints/quality"),
    json_output: JsonOption = False,
) -> None:
    """Train every model with several seeds (split A, strict), evaluate, and hold the medians against their bars."""
    torch.set_num_threads(owned_cores())
    dataset = open_dataset("ml-100k", "", None, "", None)
    rows = baselines(dataset)
    for model in models.split(","):
        rows += [_trained(dataset, model, seed, directory) for seed in range(seeds)]
    complaints = check(rows)
    if json_output:
        print_json({"rows": [asdict(row) for row in rows], "missed": complaints})
    else:
        Console(highlight=False).print(_table(rows))
        for complaint in complaints:
            typer.echo(f"missed: {complaint}")
    if complaints:
        raise typer.Exit(1)


def baselines(dataset: Dataset) -> list[Row]:
    """Item mean and logistic regression on user and item, fitted on the training events of split A."""
    parts = split(dataset, "A")
    like = labels(dataset, dataset.tasks)[:, 0].astype(np.float64)
    item = dataset.items.rows(dataset.events["item_id"].copy())
    test = parts == TEST
    out = []
    for name, predicted in (
        ("item mean", item_mean(item, like, parts == TRAIN)),
        ("logistic", logistic_user_item(dataset.user, item, like, parts == TRAIN)),
    ):
        area, ne = auc(like[test], predicted[test]), normalized_entropy(like[test], predicted[test])
        out.append(Row(name, None, area, ne, area, 0.0))
    return out


def check(rows: list[Row]) -> list[str]:
    """The bars that the medians miss."""
    logistic = next(row.strict_auc for row in rows if row.model == "logistic")
    missed = []
    for model in {row.model for row in rows if row.seed is not None}:
        mine = [row for row in rows if row.model == model]
        area = statistics.median(row.strict_auc for row in mine)
        ne = statistics.median(row.strict_ne for row in mine)
        order = statistics.median(row.order_auc for row in mine)
        for what, value, low in (
            ("strict AUC", area, STRICT_AUC.get(model, 0.0)),
            ("by order AUC", order, ORDER_AUC.get(model, 0.0)),
            ("strict AUC over logistic", area - logistic, OVER_LOGISTIC),
        ):
            if value < low:
                missed.append(f"{model}: median {what} {value:.4f}, bar {low}")
        if ne > STRICT_NE.get(model, 1.0):
            missed.append(f"{model}: median strict NE {ne:.4f}, bar {STRICT_NE[model]}")
    return missed


def _trained(dataset: Dataset, model: str, seed: int, directory: Path) -> Row:
    out = directory / f"{model}-{seed}"
    began = time.monotonic()
    train_checkpoint(dataset, model_config(dataset, model), TrainConfig(seed=seed), out)
    seconds = time.monotonic() - began
    ranker = checkpoint.load(out).model
    test = split(dataset, "A") == TEST
    strict, order = (evaluate(ranker, dataset, test, visibility)[0] for visibility in ("strict", "order"))
    return Row(model, seed, strict.auc, strict.ne, order.auc, seconds)


def _table(rows: list[Row]) -> Table:
    table = Table(title="MovieLens-100K, split A, 10,000 test events", title_justify="left")
    for name in ("model", "seed", "strict AUC", "strict NE", "by order AUC", "training s"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in rows:
        figures = (f"{value:.4f}" for value in (row.strict_auc, row.strict_ne, row.order_auc))
        table.add_row(row.model, "" if row.seed is None else str(row.seed), *figures, f"{row.train_seconds:.0f}")
    return table
