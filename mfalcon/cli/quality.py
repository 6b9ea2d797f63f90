"""`mfalcon quality`: ranking quality over seeds on MovieLens-100K, beside the baselines of the same run."""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from mfalcon.cli.datasets import open_dataset
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cores import owned_cores
from mfalcon.models import checkpoint
from mfalcon.train.baselines import item_mean, logistic_user_item
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import evaluate
from mfalcon.train.metrics import auc, normalized_entropy
from mfalcon.train.sequences import Visibility, labels
from mfalcon.train.splits import TEST, TRAIN, split

_VISIBILITIES: tuple[Visibility, ...] = ("strict", "order")
OVER_LOGISTIC = 0.045
"""How far every median strict AUC must be above the logistic baseline of the same run."""


@dataclass(frozen=True, slots=True)
class Bars:
    """What the medians of an architecture must reach on split A."""

    strict_auc: float
    strict_ne: float = 1.0
    order_auc: float = 0.0


BARS = {"dfgr": Bars(strict_auc=0.767, strict_ne=0.838, order_auc=0.780), "hstu": Bars(strict_auc=0.755)}


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
    seeds: Annotated[int, typer.Option(help="Seeds per architecture.", min=1)] = 3,
    directory: Annotated[Path, typer.Option(help="Where the checkpoints go.")] = Path("checkpoints/quality"),
    json_output: JsonOption = False,
) -> None:
    """Train every architecture with several seeds (split A), evaluate, and hold the medians against their bars."""
    dataset = open_dataset("ml-100k", "", None, "", None)
    rows = baselines(dataset)
    # A training run is too small for two threads: as many runs side by side as there are cores.
    with ThreadPoolExecutor(owned_cores()) as pool:
        runs = [(model, seed) for model in BARS for seed in range(seeds)]
        rows += pool.map(lambda run: _trained(dataset, run[0], run[1], directory), runs)
    missed = check(rows)
    if json_output:
        print_json({"rows": [asdict(row) for row in rows], "missed": missed})
    else:
        Console(highlight=False).print(_table(rows))
        for line in missed:
            typer.echo(f"missed: {line}")
    if missed:
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


def check(rows: Sequence[Row]) -> list[str]:
    """The bars that medians miss."""
    logistic = next(row.strict_auc for row in rows if row.model == "logistic")
    missed = []
    for model, bars in BARS.items():
        mine = [row for row in rows if row.model == model]
        area, ne, order = (
            statistics.median(getattr(row, name) for row in mine) for name in ("strict_auc", "strict_ne", "order_auc")
        )
        held = (
            ("strict AUC", area, bars.strict_auc, area >= bars.strict_auc),
            ("strict NE", ne, bars.strict_ne, ne <= bars.strict_ne),
            ("by order AUC", order, bars.order_auc, order >= bars.order_auc),
            ("strict AUC over logistic", area - logistic, OVER_LOGISTIC, area - logistic >= OVER_LOGISTIC),
        )
        missed += [f"{model}: median {what} {value:.4f}, bar {bar}" for what, value, bar, holds in held if not holds]
    return missed


def _trained(dataset: Dataset, model: str, seed: int, directory: Path) -> Row:
    out = directory / f"{model}-{seed}"
    command = [sys.executable, "-m", "mfalcon.cli", "train", "--model", model, "--seed", str(seed)]
    command += ["--threads", "1", "--out", str(out)]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    ranker = checkpoint.load(out).model
    test = split(dataset, "A") == TEST
    strict, order = (evaluate(ranker, dataset, test, visibility)[0] for visibility in _VISIBILITIES)
    typer.echo(f"{out}: strict AUC {strict.auc:.4f}, by order {order.auc:.4f}, {seconds:.0f} s", err=True)
    return Row(model, seed, strict.auc, strict.ne, order.auc, seconds)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="MovieLens-100K, split A, 10,000 test events", title_justify="left")
    for name in ("model", "seed", "strict AUC", "strict NE", "by order AUC", "training s"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in rows:
        figures = (f"{value:.4f}" for value in (row.strict_auc, row.strict_ne, row.order_auc))
        seed = "" if row.seed is None else str(row.seed)
        table.add_row(row.model, seed, *figures, f"{row.train_seconds:.0f}" if row.train_seconds else "")
    return table
