"""Vectors of items from their neighbourhood in a graph, two hops wide, and the auto-encoder that is their auxiliary
task.

Sources: E2E-GRec (arXiv 2511.20564), its sampled subgraphs, graph feature auto-encoder and two-level fusion; each hop
is that of GraphSAGE (arXiv 1706.02216, section 3.1) with a weighted mean. It learns with the ranker, and is done when
that is: what a server reads are its vectors alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfalcon.models.config_features import GraphConfig, SideFeature
from mfalcon.models.embedding import ItemEmbedding
from mfalcon.models.items import UNKNOWN_ROW
from mfalcon.types import Floats

_LARGEST_VOCABULARY = 256
"""Of a category that the auto-encoder gives back."""
_INIT_STD = 0.05


@dataclass(frozen=True, slots=True)
class Hop:
    """One step inwards. own: int64 [n], where each node stands one level out; neighbours: int64 [n, k], and its
    neighbours. shares: [n, k], of each in their mean; a row adds up to 1, or to 0 without neighbours.
    """

    own: Tensor
    neighbours: Tensor
    shares: Tensor


@dataclass(frozen=True, slots=True)
class Subgraph:
    """What the vectors of some items depend on. nodes: int64 [num_nodes], the item rows of the outermost level. hops:
    from there inwards.
    """

    nodes: Tensor
    hops: tuple[Hop, Hop]


class GraphNetwork(nn.Module):
    """Two hops over the ranker's own vectors of items, which each is beside a vector of its own as a node."""

    def __init__(self, config: GraphConfig, num_rows: int, width: int, side_features: Sequence[SideFeature]) -> None:
        """width: of an item's vector in the ranker."""
        super().__init__()
        self.dim = config.dim
        self.node = nn.Embedding(num_rows, width)
        nn.init.normal_(self.node.weight, std=_INIT_STD)
        self.first = nn.Linear(2 * width, config.dim)
        self.second = nn.Linear(2 * config.dim, config.dim)
        self._rebuilt = tuple(f for f in side_features if f.kind == "tags" or len(f.vocabulary) <= _LARGEST_VOCABULARY)
        sizes = [len(f.vocabulary) + (f.kind == "category") for f in self._rebuilt]
        self.decoder = nn.Sequential(nn.Linear(config.dim, 64), nn.ReLU(), nn.Linear(64, sum(sizes) + 1))
        self.vectors = nn.Parameter(torch.zeros(num_rows, config.dim), requires_grad=False)
        """Of every item, as they are served with this checkpoint; the unknown item's are zeros."""
        self.balance: Tensor
        self.register_buffer("balance", torch.tensor([1.0, 0.0, 0.0, 0.0]))
        """Of both losses, while it learns: the weight of the auxiliary one, what each was at first, and the steps so
        far.
        """

    def forward(self, vectors: Tensor, graph: Subgraph, seen: Tensor | None = None) -> Tensor:
        """vectors: the ranker's of the nodes, [num_nodes, width] -> [n, dim]. seen: bool [num_nodes], whose own
        features may be read.
        """
        x = vectors + self.node(graph.nodes)
        if seen is not None:
            x = x * seen.unsqueeze(-1)
        outer, inner = graph.hops
        hidden = functional.relu(self.first(_gathered(x, outer)))
        out: Tensor = self.second(_gathered(hidden, inner))
        return out * (graph.nodes[outer.own[inner.own]] > 0).unsqueeze(-1)

    def rows(self) -> Floats:
        """The vectors as they are served: float32 [num_rows, dim] in host memory."""
        found: Floats = self.vectors.float().cpu().numpy()
        found[UNKNOWN_ROW] = 0
        return found

    def rebuilt(self, items: ItemEmbedding, rows: Tensor) -> Tensor:
        """What the auto-encoder gives back of item rows [n]: which values of side features each has, [n, num_values] of
        0 and 1.
        """
        columns = [torch.empty(len(rows), 0)]
        for feature in self._rebuilt:
            values = items.get_buffer(f"rows_{feature.name}")[rows]
            is_tags = feature.kind == "tags"
            columns.append(values > 0 if is_tags else functional.one_hot(values, len(feature.vocabulary) + 1))
        return torch.cat([column.float() for column in columns], dim=1)


def _gathered(x: Tensor, hop: Hop) -> Tensor:
    around = torch.einsum("nk,nkd->nd", hop.shares.to(x.dtype), x[hop.neighbours])
    return torch.cat([x[hop.own], around], dim=-1)
