"""A graph whose network is learnt first, alone, and whose vectors are constants of the ranker then: what training end
to end is compared with (E2E-GRec, arXiv 2511.20564, section 1).
"""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mfalcon.models.base import Ranker
from mfalcon.models.embedding import ItemEmbedding
from mfalcon.models.graph_network import GraphNetwork
from mfalcon.train.dataset import Dataset
from mfalcon.train.graph import graph_of, network_of, rebuild_loss
from mfalcon.train.graph_sampling import GraphTensors, export
from mfalcon.train.objective import TaskObjective
from mfalcon.train.recipes import GraphTraining, TrainConfig
from mfalcon.train.sequences import Columns

_STEPS = 150
_EDGES = 4_096
_RATE = 5e-3
_SCALE = 0.1


class TwoStageObjective(TaskObjective):
    """The tasks, with the vectors of a network that has learnt which items are neighbours."""

    def __init__(
        self, model: Ranker, dataset: Dataset, columns: Columns, config: TrainConfig, is_training: NDArray[np.bool_]
    ) -> None:
        super().__init__(dataset, columns, config)
        training = config.graph or GraphTraining()
        graph = GraphTensors.of(graph_of(dataset, dataset.items, model.config, is_training, training))
        network, items = network_of(model), copy.deepcopy(model.items)
        _learn(network, items, graph, training.fan_out)
        vectors = export(network, items, graph)
        scaled = functional.layer_norm(vectors, vectors.shape[1:]) * _SCALE
        network.requires_grad_(False)
        network.vectors.copy_(scaled * vectors.any(1, keepdim=True))


def _learn(network: GraphNetwork, items: ItemEmbedding, graph: GraphTensors, fan_out: int) -> None:
    """Neighbours shall be nearer than items drawn by chance (BPR, arXiv 1205.2618), and the auto-encoder beside."""
    ends = graph.weights.nonzero()
    if not len(ends):
        return
    trained = [weight for weight in (*network.parameters(), *items.parameters()) if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=_RATE)
    num = min(_EDGES, len(ends))
    for _ in range(_STEPS):
        edge = ends[torch.randint(0, len(ends), (num,))]
        first, second = edge[:, 0], graph.neighbours[edge[:, 0], edge[:, 1]]
        other = torch.randint(1, len(graph.neighbours), (num,))
        rows, places = torch.cat([first, second, other]).unique(return_inverse=True)
        around = graph.around(rows, fan_out)
        a, b, c = network(items(around.nodes), around)[places].split(num)
        loss: Tensor = functional.softplus(((a * c) - (a * b)).sum(1)).mean()
        loss = loss + rebuild_loss(network, items, graph, rows, fan_out)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
