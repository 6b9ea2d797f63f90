"""Subgraphs of some items, sampled for a training step or whole for what is exported."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mfalcon.graph.item_graph import ItemGraph
from mfalcon.models.embedding import ItemEmbedding
from mfalcon.models.graph_network import GraphNetwork, Hop, Subgraph

_ROWS_AT_ONCE = 4_096


@dataclass(frozen=True, slots=True)
class GraphTensors:
    """An `ItemGraph` for sampling."""

    neighbours: Tensor
    weights: Tensor
    num_liked: Tensor

    @staticmethod
    def of(graph: ItemGraph) -> "GraphTensors":
        """Shares its memory."""
        return GraphTensors(*(torch.from_numpy(one) for one in (graph.neighbours, graph.weights, graph.num_liked)))

    def around(self, rows: Tensor, fan_out: int | None = None) -> Subgraph:
        """What the vectors of different items [n] depend on. fan_out: neighbours of each that are drawn, alike, in each
        hop (E2E-GRec's subgraph sampling); all of them without.
        """
        level, inner = self._outwards(rows, fan_out)
        nodes, outer = self._outwards(level, fan_out)
        return Subgraph(nodes, (outer, inner))

    def _outwards(self, rows: Tensor, fan_out: int | None) -> tuple[Tensor, Hop]:
        """One level further out: its nodes, and the hop back."""
        neighbours, weights = self.neighbours[rows], self.weights[rows]
        if fan_out is not None and fan_out < weights.shape[1]:
            chance = torch.rand(weights.shape).masked_fill_(weights == 0, -1.0)
            drawn = chance.topk(fan_out, dim=1).indices
            neighbours, weights = neighbours.gather(1, drawn), weights.gather(1, drawn)
        shares = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
        nodes, places = torch.cat([rows, neighbours.flatten()]).unique(return_inverse=True)
        return nodes, Hop(places[: len(rows)], places[len(rows) :].view_as(neighbours), shares)


def export(network: GraphNetwork, items: ItemEmbedding, graph: GraphTensors) -> Tensor:
    """The vectors of all items by their whole neighbourhoods: float32 [num_rows, dim]."""
    with torch.no_grad():
        parts = torch.arange(len(graph.neighbours)).split(_ROWS_AT_ONCE)
        around = (graph.around(rows) for rows in parts)
        return torch.cat([network(items(of.nodes), of).float() for of in around])
