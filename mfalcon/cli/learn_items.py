"""`mfalcon learn-items`: rows of items from events that a checkpoint has not seen, as what `update-items` sends."""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mfalcon.cli.datasets import ColumnsOption, DataOption, ItemColumnsOption, ItemsOption, LikeOption, open_dataset
from mfalcon.errors import DataError
from mfalcon.models import checkpoint
from mfalcon.train.item_rows import LEARNING_RATE, ItemRows
from mfalcon.train.new_items import with_items_of
from mfalcon.train.recipes import TrainConfig


def learn_items(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="That is served.")],
    out: Annotated[Path, typer.Option(help="safetensors file for `mfalcon update-items`.", dir_okay=False)],
    since_ms: Annotated[
        int, typer.Option(help="Learn from events at or after this time, Unix ms; those before are their histories.")
    ],
    data: DataOption,
    columns: ColumnsOption = "",
    items: ItemsOption = None,
    item_columns: ItemColumnsOption = "",
    like_at_least: LikeOption = None,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of Adagrad.")] = LEARNING_RATE,
    passes: Annotated[int, typer.Option(min=1, help="Over these events.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of all chance in it.")] = 0,
) -> None:
    """Learn vectors and biases of items from later events, all other weights as they are; items may be new."""
    torch.set_num_threads(1)
    loaded = checkpoint.load(path, torch.float32)
    dataset = with_items_of(open_dataset(data, columns, items, item_columns, like_at_least), loaded)
    chosen = dataset.events["time_ms"] >= since_ms
    if not chosen.any():
        last = int(dataset.events["time_ms"].max()) if len(chosen) else None
        raise DataError(f"--since-ms: got {since_ms}, must be at most the time of the last event, {last}")
    began = time.monotonic()
    rows = ItemRows(loaded, dataset, TrainConfig(seed=seed, visibility="strict"), learning_rate)
    losses = [rows.learn(chosen) for _ in range(passes)]
    delta = rows.delta(1)
    columns_of: dict[str, NDArray[np.generic] | None] = {f"side.{name}": one for name, one in delta.side.items()}
    columns_of |= {"item_id": delta.item_id, "vector": delta.vector, "bias": delta.bias}
    save_file({name: np.ascontiguousarray(one) for name, one in columns_of.items() if one is not None}, out)
    num_new = int(np.count_nonzero(loaded.items.rows(delta.item_id) == 0))
    typer.echo(
        f"{out}: {delta.num_rows:,} rows, {num_new:,} of new items, from {np.count_nonzero(chosen):,} events in "
        f"{time.monotonic() - began:.0f} s; loss of each pass {', '.join(f'{loss:.4f}' for loss in losses)}"
    )
    typer.echo(f"mfalcon update-items {out} --version {loaded.fingerprint[:12]} --replaces --target HOST:ADMIN_PORT")
