"""Online equals offline for a model that reads dense features, through gRPC."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mfalcon.cli.process import serving
from mfalcon.cli.replay import replay_online
from mfalcon.models import checkpoint
from mfalcon.models.dfgr import DFGR
from mfalcon.models.registry import build
from mfalcon.train.dataset import Dataset
from mfalcon.train.recipes import model_config
from mfalcon.train.splits import TEST, split
from mfalcon.train.synthetic import synthetic
from mfalcon_client import Client


@pytest.mark.parametrize("architecture", ["dfgr", "din"])
def test_online_equals_offline(tmp_path: Path, architecture: str) -> None:
    dataset = synthetic(num_users=30, num_items=60, events_per_user=20, seed=3)
    rng = np.random.default_rng(0)
    price, place = (rng.normal(scale=scale, size=len(dataset.events)).astype(np.float32) for scale in (1e3, 1.0))
    price[::7] = np.nan
    dataset = replace(dataset, dense={"price": price, "place": place})
    torch.manual_seed(0)
    model = build(model_config(dataset, architecture, dim=16, max_history=100))
    last = model.dense.last if isinstance(model, DFGR) else model.get_submodule("network.towers.last")
    torch.nn.init.normal_(last.get_parameter("weight"), std=0.1 if isinstance(model, DFGR) else 3.0)
    checkpoint.save(tmp_path / "checkpoint", model, dataset.items)
    loaded = checkpoint.load(tmp_path / "checkpoint")
    chosen = split(dataset, "A") == TEST
    with serving(tmp_path / "checkpoint") as served, Client(served.grpc) as client:
        assert client.get_model().dense_features == ("price", "place")
        result = replay_online(client, loaded.model, dataset, chosen, "strict")
        moved = moves_scores(client, dataset, chosen)
    assert result.holds, result
    assert result.num_rows == np.count_nonzero(chosen)
    assert moved


def moves_scores(client: Client, dataset: Dataset, chosen: NDArray[np.bool_]) -> bool:
    """Whether scores of some items are others without one of their features."""
    at = np.flatnonzero(chosen)[:8]
    items, features = dataset.events["item_id"][at], {"place": dataset.dense["place"][at]}
    given, none = client.rank("nobody", items, features=features), client.rank("nobody", items)
    return bool(np.abs(given.scores - none.scores).max() > 1e-2)
