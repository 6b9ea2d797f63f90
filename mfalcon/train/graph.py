"""Training with a graph of items: its network learns with the ranker, end to end, and beside an auxiliary task.

Source: E2E-GRec (arXiv 2511.20564): joint training on sampled subgraphs, the graph feature auto-encoder (GFAE) and the
balance of both losses by GradNorm (arXiv 1711.02257, section 3), whose weight has a bound here: on MovieLens-100K it
grows for as long as it may.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mfalcon.errors import ConfigError
from mfalcon.features.counters import LikeRule
from mfalcon.graph.item_graph import ItemGraph, item_graph
from mfalcon.models.base import Ranker
from mfalcon.models.config import RankerConfig
from mfalcon.models.embedding import ItemEmbedding
from mfalcon.models.graph_network import GraphNetwork
from mfalcon.models.items import ItemTable
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import Report
from mfalcon.train.graph_features import with_graph
from mfalcon.train.graph_sampling import GraphTensors, export
from mfalcon.train.objective import TaskObjective, task_losses
from mfalcon.train.recipes import GraphTraining, TrainConfig
from mfalcon.train.sequences import Batch, Columns

_LEAST_WEIGHT = 0.01
_KEPT = 0.9
"""Of the weight of the auxiliary task when it is balanced anew."""
_BALANCED_EVERY = 4
"""Steps: it takes a backward pass of each loss."""
_REBUILT_AT_ONCE = 256
_LOG_SCALE = 3.0
"""Of the logarithm of how often an item was liked."""


def graph_of(
    dataset: Dataset, items: ItemTable, config: RankerConfig, chosen: NDArray[np.bool_], training: GraphTraining
) -> ItemGraph:
    """The graph of the likes among the chosen events, bool [num_events], and of no other event. items: its nodes."""
    chosen = chosen & LikeRule.of_task(config.graph_task, dataset.actions)(dataset.events)
    rows = items.rows(np.ascontiguousarray(dataset.events["item_id"][chosen]))
    return item_graph(dataset.user[chosen], rows, items.num_rows, items.side, most=training.neighbours)


class GraphObjective(TaskObjective):
    """The tasks, and the auto-encoder beside them."""

    def __init__(
        self, model: Ranker, dataset: Dataset, columns: Columns, config: TrainConfig, is_training: NDArray[np.bool_]
    ) -> None:
        super().__init__(dataset, columns, config)
        self._training = config.graph or GraphTraining()
        self._graph = GraphTensors.of(graph_of(dataset, dataset.items, model.config, is_training, self._training))

    def loss(self, model: Ranker, batch: Batch) -> Tensor:
        """See `Objective`."""
        network = network_of(model)
        batch = self._hide(batch, is_open=False)
        keys = torch.cat([batch.targets.rows.flatten(), batch.events.rows.flatten()])
        rows, places = keys.unique(return_inverse=True)
        around = self._graph.around(rows, self._training.fan_out)
        vectors = network(model.items(around.nodes), around)
        num = batch.targets.rows.numel()
        of_targets = vectors[places[:num]].unflatten(0, batch.targets.rows.shape)
        of_events = vectors[places[num:]].unflatten(0, batch.events.rows.shape)
        targets = with_graph(batch.targets, batch.events, batch.visible, of_targets, of_events, model.config)
        ranking = task_losses(model, self._columns, replace(batch, targets=targets))
        rebuilding = rebuild_loss(network, model.items, self._graph, rows, self._training.fan_out)
        if not int(network.balance[3]) % _BALANCED_EVERY:
            balance(network, ranking, rebuilding, self._training.most_weight)
        network.balance[3] += 1
        return torch.add(ranking, rebuilding, alpha=float(network.balance[0]))

    def validate(self, model: Ranker, is_target: NDArray[np.bool_]) -> Report:
        """See `Objective`."""
        self._export(model)
        return super().validate(model, is_target)

    def _export(self, model: Ranker) -> None:
        network = network_of(model)
        model.eval()
        network.vectors.data.copy_(export(network, model.items, self._graph))


def rebuild_loss(
    network: GraphNetwork, items: ItemEmbedding, graph: GraphTensors, rows: Tensor, fan_out: int
) -> Tensor:
    """GFAE: half of the nodes lose what they are, and the side features of some of these item rows [n], and how often
    they are liked, are told from their neighbours.
    """
    some = rows[rows > 0]
    some = some[torch.randperm(len(some))[:_REBUILT_AT_ONCE]]
    around = graph.around(some, fan_out)
    seen = torch.rand(len(around.nodes)) < 0.5
    vectors: Tensor = network(items(around.nodes), around, seen)
    outer, inner = around.hops
    is_hidden = ~seen[outer.own[inner.own]]
    told, some = network.decoder(vectors[is_hidden]), some[is_hidden]
    if not len(some):
        return vectors.sum() * 0
    liked = torch.log1p(graph.num_liked[some].float()) / _LOG_SCALE
    loss = functional.mse_loss(told[:, -1], liked)
    has = network.rebuilt(items, some)
    if has.shape[1]:
        loss = loss + functional.binary_cross_entropy_with_logits(told[:, :-1], has)
    return loss


def balance(network: GraphNetwork, ranking: Tensor, auxiliary: Tensor, most: float) -> None:
    """GradNorm with alpha = 1, on the last layer of the graph's network: the gradient of the auxiliary task shall be as
    large as the mean of both, times how slowly it learns beside the other. most: that its weight may become.
    """
    state = network.balance
    norms = []
    for loss in (ranking, auxiliary):
        [gradient] = torch.autograd.grad(loss, network.second.weight, retain_graph=True)
        norms.append(float(gradient.norm()))
    values = float(ranking.detach()), float(auxiliary.detach())
    if not float(state[1]):
        state[1:3] = torch.tensor(values)
    left = [value / max(float(first), 1e-9) for value, first in zip(values, state[1:3], strict=True)]
    mean = max(sum(left) / 2, 1e-9)
    goal = (norms[0] + float(state[0]) * norms[1]) / 2 * left[1] / mean
    weight = _KEPT * float(state[0]) + (1 - _KEPT) * goal / max(norms[1], 1e-9)
    state[0] = min(max(weight, _LEAST_WEIGHT), most)


def network_of(model: Ranker) -> GraphNetwork:
    """Raises ConfigError for a model that has no graph."""
    if model.graph is None:
        raise ConfigError(f"{model.config.name}: reads no graph; train it with --graph")
    return model.graph
