"""Checkpoints that read graph vectors, refreshes of them, and what each makes of a checkpoint."""

import copy
from dataclasses import replace

import numpy as np
import torch

from mfalcon.graph.vectors import GraphRefresh
from mfalcon.models.checkpoint import Checkpoint
from tests.small import small_checkpoint, small_config

DIM = 4


def graph_checkpoint(architecture: str = "dfgr", seed: int = 0) -> Checkpoint:
    config = small_config(architecture, with_graph=True)
    return replace(small_checkpoint(architecture, seed=seed, config=config), fingerprint=f"{seed + 3}" * 64)


def refresh_of(checkpoint: Checkpoint, number: int, seed: int | None = None) -> GraphRefresh:
    rng = np.random.default_rng(number if seed is None else seed)
    ids = rng.permutation(checkpoint.items.item_id)[: -(number % 5) or None]
    vectors = rng.normal(size=(len(ids), DIM)).astype(np.float32)
    return GraphRefresh(number, checkpoint.fingerprint, ids, vectors)


def refreshed(checkpoint: Checkpoint, refresh: GraphRefresh) -> Checkpoint:
    """The checkpoint as it would be if it had been written with these vectors."""
    model = copy.deepcopy(checkpoint.model)
    assert model.graph is not None
    with torch.no_grad():
        model.graph.vectors.zero_()
        model.graph.vectors[torch.from_numpy(checkpoint.items.rows(refresh.item_id))] = torch.from_numpy(
            refresh.vector
        ).to(model.graph.vectors.dtype)
    return replace(checkpoint, model=model)
