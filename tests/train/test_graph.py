"""Training with a graph: it learns, goes on after an interruption, and reads no event but those that train."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mfalcon.errors import ConfigError
from mfalcon.graph.item_graph import item_graph
from mfalcon.graph.vector_file import read_manifest, read_vectors, write_vectors
from mfalcon.models import checkpoint
from mfalcon.models.base import Ranker
from mfalcon.models.config import RankerConfig
from mfalcon.models.graph_network import GraphNetwork
from mfalcon.train.evaluate import evaluate
from mfalcon.train.graph import balance, graph_of, network_of
from mfalcon.train.graph_export import refresh_of
from mfalcon.train.graph_sampling import GraphTensors
from mfalcon.train.recipes import GraphTraining, TrainConfig, model_config
from mfalcon.train.splits import TRAIN, VALIDATION, split
from mfalcon.train.synthetic import synthetic
from mfalcon.train.trainer import Progress, train

DATASET = synthetic(40, 30, 20, seed=1)
PARTS = split(DATASET, "A")
GRAPH = GraphTraining(dim=6, neighbours=5, fan_out=3)
LEARN = TrainConfig(epochs=2, batch_size=128, seed=3, learning_rate=5e-3, graph=GRAPH)


def config(architecture: str = "din", *, joint: bool = True) -> RankerConfig:
    graph = GRAPH.model_copy(update={"joint": joint})
    if architecture == "din":
        return model_config(DATASET, "din", dim=8, max_history=8, graph=graph)
    return model_config(DATASET, architecture, dim=8, max_history=24, window_chunk=12, graph=graph)


def learned(directory: Path, *, joint: bool = True) -> Ranker:
    return train(DATASET, config(joint=joint), LEARN, directory, lambda _: None)


@pytest.mark.parametrize("joint", [True, False])
def test_it_learns_with_the_ranker_or_before_it(tmp_path: Path, joint: bool) -> None:
    model = learned(tmp_path, joint=joint)
    network = network_of(model)
    assert network.vectors[1:].abs().max() > 0 and not network.vectors[0].any()
    assert bool(network.balance[1]) == joint
    report, _, _ = evaluate(model, DATASET, PARTS == VALIDATION, "strict")
    network.vectors.data.zero_()
    without, _, _ = evaluate(model, DATASET, PARTS == VALIDATION, "strict")
    assert report.auc != without.auc  # it reads them


def test_an_interruption_changes_nothing(tmp_path: Path) -> None:
    whole = learned(tmp_path / "whole").state_dict()

    def stop(step: Progress) -> None:
        if step.epoch == 1 and step.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(DATASET, config(), LEARN, tmp_path / "parts", stop)
    resumed = learned(tmp_path / "parts").state_dict()
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_the_graph_is_of_training_events_alone() -> None:
    chosen = PARTS == TRAIN
    later = DATASET.events.copy()
    later["value"][~chosen] = 6 - later["value"][~chosen]
    graphs = [graph_of(one, one.items, config(), chosen, GRAPH) for one in (DATASET, replace(DATASET, events=later))]
    assert np.array_equal(graphs[0].neighbours, graphs[1].neighbours)
    assert np.array_equal(graphs[0].weights, graphs[1].weights)
    everything = graph_of(DATASET, DATASET.items, config(), np.ones_like(chosen), GRAPH)
    assert not np.array_equal(everything.weights, graphs[0].weights)


def test_a_checkpoint_makes_newer_vectors_of_its_own_network(tmp_path: Path) -> None:
    model = learned(tmp_path / "run")
    fingerprint = checkpoint.save(tmp_path / "made", model, DATASET.items)
    loaded = checkpoint.load(tmp_path / "made")
    same = refresh_of(loaded, DATASET, PARTS == TRAIN, 7, GRAPH)
    np.testing.assert_allclose(same.vector, network_of(model).vectors[1:].numpy(), atol=1e-6)
    newer = refresh_of(loaded, DATASET, np.ones_like(PARTS, dtype=np.bool_), 8, GRAPH)
    assert np.abs(newer.vector - same.vector).max() > 1e-4
    path = write_vectors(tmp_path / "vectors", newer)
    manifest = read_manifest(path)
    back = read_vectors(path, manifest)
    assert (manifest.checkpoint, back.number) == (fingerprint, 8)
    assert np.array_equal(back.vector, newer.vector) and np.array_equal(back.item_id, DATASET.items.item_id)


def test_no_newer_vectors_fit_a_model_of_two_stages(tmp_path: Path) -> None:
    model = learned(tmp_path / "run", joint=False)
    checkpoint.save(tmp_path / "made", model, DATASET.items)
    with pytest.raises(ConfigError, match="was learnt before it, alone"):
        refresh_of(checkpoint.load(tmp_path / "made"), DATASET, PARTS == TRAIN, 1, GRAPH)
    checkpoint.save(tmp_path / "plain", train(DATASET, plain(), LEARN, tmp_path / "p", lambda _: None), DATASET.items)
    with pytest.raises(ConfigError, match="reads no graph"):
        refresh_of(checkpoint.load(tmp_path / "plain"), DATASET, PARTS == TRAIN, 1, GRAPH)


def plain() -> RankerConfig:
    return model_config(DATASET, "din", dim=8, max_history=8)


@pytest.mark.parametrize(("ranking", "auxiliary", "ends_at"), [(100.0, 0.01, 1.0), (0.001, 1_000.0, 0.01)])
def test_the_weight_of_the_auxiliary_task_has_bounds(ranking: float, auxiliary: float, ends_at: float) -> None:
    graph = config().graph
    assert graph is not None
    network = GraphNetwork(graph, 5, 4, ())
    weight = network.second.weight
    for _ in range(300):
        balance(network, (weight * ranking).abs().sum(), (weight * auxiliary).abs().sum(), 1.0)
    assert float(network.balance[0]) == pytest.approx(ends_at)


def test_a_sampled_neighbourhood_is_a_part_of_the_whole_one() -> None:
    rng = np.random.default_rng(2)
    user, rows = np.sort(rng.integers(0, 20, 400)), rng.integers(1, 40, 400)
    graph = GraphTensors.of(item_graph(user, rows, 41, {}, most=8))
    asked = torch.tensor([5, 0, 40])
    whole, part = graph.around(asked), graph.around(asked, fan_out=3)
    assert set(part.nodes.tolist()) <= set(whole.nodes.tolist())
    for around in (whole, part):
        outer, inner = around.hops
        assert around.nodes[outer.own[inner.own]].tolist() == asked.tolist()
        sums = inner.shares.sum(1)
        assert torch.allclose(sums, (graph.weights[asked] > 0).any(1).float())
    assert part.hops[1].neighbours.shape == (3, 3)


def test_the_training_windows_of_a_prefix_ranker_have_the_events_that_count() -> None:
    made = config("dfgr")
    assert made.graph is not None and made.graph.max_events == 13  # 24 - 12 + 1
    with pytest.raises(ValueError, match="must be at most 13"):
        RankerConfig.model_validate(made.model_dump() | {"graph": made.graph.model_dump() | {"max_events": 14}})
