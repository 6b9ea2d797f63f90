"""Online equals offline for an ensemble, through gRPC, by the file that `mfalcon merge fit` prints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mfalcon.cli.merge import toml
from mfalcon.cli.process import serving
from mfalcon.cli.replay import replay_merge
from mfalcon.cli.replay_ensemble import read_ensemble
from mfalcon.models import checkpoint
from mfalcon.models.registry import build
from mfalcon.train.merging import fit_merge, merge_of, score_members
from mfalcon.train.recipes import model_config
from mfalcon.train.splits import TEST, VALIDATION, split
from mfalcon.train.synthetic import synthetic
from mfalcon_client import Client


def test_online_equals_offline(tmp_path: Path) -> None:
    dataset = synthetic(num_users=60, num_items=60, events_per_user=60, seed=3)
    price = np.random.default_rng(0).normal(scale=1e3, size=len(dataset.events)).astype(np.float32)
    with_price = replace(dataset, dense={"price": price})
    paths = {}
    for seed, (name, architecture, data) in enumerate(
        (("one", "dfgr", dataset), ("two", "hstu", dataset), ("three", "dfgr", with_price))
    ):
        torch.manual_seed(seed)
        model = build(model_config(data, architecture, dim=16, max_history=24, window_chunk=12)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        model.items.load_items(dataset.items)
        paths[name] = tmp_path / name
        checkpoint.save(paths[name], model, dataset.items)
    members = {name: checkpoint.load(path) for name, path in paths.items()}
    plain = merge_of(members, "logit")
    parts = split(with_price, "A")
    fitted = fit_merge(score_members(members, with_price, parts == VALIDATION, "strict"), plain)
    fitted = replace(fitted, weights={"one": 0.5, "two": 0.2, "three": 0.3})  # random rankers are worth nothing
    file = tmp_path / "merged.toml"
    patient = 'merge = "logit"\nmerge_budget_ms = 60000'  # however busy the machine is
    file.write_text(toml("merged", "logit", paths, plain, fitted).replace('merge = "logit"', patient))
    merge = read_ensemble(file)
    assert (merge.name, merge.weights) == ("merged", (0.5, 0.2, 0.3))
    assert merge.merge.calibration == fitted.calibration
    with serving(None, "--config", str(file)) as served, Client(served.grpc) as client:
        assert client.get_model("merged").dense_features == ("price",)
        result = replay_merge(client, merge, with_price, parts == TEST, "strict")
    assert result.num_rows == np.count_nonzero(parts == TEST) > 300
    assert abs(result.online_auc - result.offline_auc) <= 1e-4
    assert result.worst_score_error <= 1e-5, result
