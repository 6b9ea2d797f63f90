"""`mfalcon graph`: newer graph vectors for a checkpoint that was trained with --graph."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from mfalcon.cli.datasets import ColumnsOption, DataOption, ItemColumnsOption, ItemsOption, LikeOption, open_dataset
from mfalcon.cores import owned_cores
from mfalcon.graph.vector_file import SUFFIX, VectorsManifest, read_manifest, write_vectors
from mfalcon.graph.vectors import GraphRefresh
from mfalcon.models import checkpoint
from mfalcon.train import splits
from mfalcon.train.graph_export import refresh_of
from mfalcon.train.recipes import GraphTraining


def graph(
    ranker: Annotated[Path, typer.Argument(help="Checkpoint that was trained with --graph.", metavar="CHECKPOINT")],
    directory: Annotated[Path, typer.Option(help="Write the vectors here: the --graph-dir of servers.")],
    data: DataOption = "ml-100k",
    columns: ColumnsOption = "",
    items: ItemsOption = None,
    item_columns: ItemColumnsOption = "",
    like_at_least: LikeOption = None,
    number: Annotated[
        int, typer.Option(min=0, help="Of the vectors; 0 for one more than the highest in the directory.")
    ] = 0,
    neighbours: Annotated[int, typer.Option(min=1, max=1_000, help="Most of an item.")] = 20,
    only_training: Annotated[
        bool, typer.Option("--only-training", help="Leave out what validates and tests under split A.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Torch threads; 0 for all cores.", min=0)] = 0,
) -> None:
    """Make newer graph vectors of a checkpoint by newer events, for servers to read while they serve."""
    torch.set_num_threads(threads or owned_cores())
    loaded = checkpoint.load(ranker)
    dataset = open_dataset(data, columns, items, item_columns, like_at_least, to_learn=False)
    chosen = np.ones(len(dataset.events), dtype=np.bool_)
    if only_training:
        chosen = splits.split(dataset, "A") == splits.TRAIN
    chosen_number = number or 1 + max((one.number for one in _there(directory)), default=0)
    refresh: GraphRefresh = refresh_of(loaded, dataset, chosen, chosen_number, GraphTraining(neighbours=neighbours))
    path = write_vectors(directory, refresh)
    typer.echo(f"{path}: {len(refresh.item_id)} vectors of {np.count_nonzero(chosen)} events, number {refresh.number}")


def _there(directory: Path) -> list[VectorsManifest]:
    """Raises InvalidInput for a manifest that cannot be read."""
    return [read_manifest(path) for path in directory.glob(f"*{SUFFIX}")] if directory.is_dir() else []
