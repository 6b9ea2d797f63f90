"""The network of a DLRM-style ranker, as its papers write it: every candidate with a copy of its user.

An activation unit weighs the user's last events by each candidate and adds them up (DIN, arXiv 1706.06978, section
4.3); low-rank cross layers multiply fields (DCN-V2, arXiv 2008.13535, section 3); experts are mixed by a gate for
each task, and each task has a tower (MMoE, KDD 2018, section 4.2). This is the definition and what is trained;
`din_split.py` computes the same for many candidates of one user.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfalcon.models.config_parts import DinConfig


class StackedLinear(nn.Module):
    """`num` linear layers side by side, each on its own input. weight: [num, width_in, width_out]."""

    def __init__(self, num: int, width_in: int, width_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width_in)
        self.weight = nn.Parameter(torch.empty(num, width_in, width_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num, 1, width_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """[num, n, width_in] -> [num, n, width_out]."""
        return torch.baddbmm(self.bias, x, self.weight)


class ActivationUnit(nn.Module):
    """DIN: weights of events by a candidate, from [event, candidate, event - candidate, event * candidate]."""

    def __init__(self, config: DinConfig, num_events: int) -> None:
        super().__init__()
        self.dim, self.num_pools = config.dim, config.num_pools
        self.scale = num_events**-0.5
        """Of the sums, so that they begin no larger than an event; a constant of the model, never of a history."""
        widths = (4 * config.dim, *config.activation, config.num_pools)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    @property
    def linears(self) -> list[nn.Linear]:
        """The first one reads the four parts, the last one gives a weight for each pool."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, events: Tensor, seen: Tensor, candidate: Tensor) -> Tensor:
        """events: [..., num_events, dim]; seen: bool [..., num_events]; candidate: [..., dim] -> weighted sums of the
        events that are seen, [..., num_pools * dim].
        """
        beside = candidate.unsqueeze(-2).expand_as(events)
        x = torch.cat([events, beside, events - beside, events * beside], dim=-1)
        *hidden, last = self.layers
        for layer in hidden:
            x = functional.relu(layer(x))
        weights = (last(x) * self.scale).masked_fill(~seen.unsqueeze(-1), 0.0)
        return torch.matmul(weights.transpose(-1, -2), events).flatten(-2)

    def flops(self, num_events: int) -> int:
        """Of matrix products, for one candidate."""
        linears = sum(2 * layer.in_features * layer.out_features for layer in self.linears)
        return num_events * (linears + 2 * self.num_pools * self.dim)


class CrossLayer(nn.Module):
    """DCN-V2: x0 * (V(U x) + b) + x, with U and V of low rank."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Both [..., width] -> [..., width]."""
        out: Tensor = x0 * self.up(self.down(x)) + x
        return out

    def flops(self) -> int:
        """Of matrix products, for one candidate."""
        return 4 * self.down.in_features * self.down.out_features


class Mixture(nn.Module):
    """MMoE: experts on one input, mixed anew for each task by a gate on the same input."""

    def __init__(self, config: DinConfig, width: int, num_tasks: int, dropout: float) -> None:
        super().__init__()
        self.num_experts, self.num_tasks = config.num_experts, num_tasks
        self.first = nn.Linear(width, config.num_experts * config.experts[0])
        self.deeper = nn.ModuleList(StackedLinear(config.num_experts, a, b) for a, b in pairwise(config.experts))
        self.gate = nn.Linear(width, num_tasks * config.num_experts)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[n, width] -> [num_tasks, n, last width of the experts]."""
        experts = self.dropout(functional.relu(self.first(x))).unflatten(-1, (self.num_experts, -1)).transpose(0, 1)
        for layer in self.deeper:
            experts = self.dropout(functional.relu(layer(experts)))
        shares = self.gate(x).unflatten(-1, (self.num_tasks, self.num_experts)).softmax(-1)
        return torch.einsum("nke,enw->knw", shares, experts)

    def flops(self) -> int:
        """Of matrix products, for one candidate."""
        linears = sum(2 * linear.in_features * linear.out_features for linear in (self.first, self.gate))
        return linears + sum(2 * layer.weight.numel() for layer in self.deeper if isinstance(layer, StackedLinear))


class Towers(nn.Module):
    """A tower of one hidden layer for each task."""

    def __init__(self, width: int, hidden: int, num_tasks: int, dropout: float) -> None:
        super().__init__()
        self.first = StackedLinear(num_tasks, width, hidden)
        self.last = StackedLinear(num_tasks, hidden, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, mixed: Tensor) -> Tensor:
        """[num_tasks, n, width] -> raw outputs [n, num_tasks]."""
        hidden = self.dropout(functional.relu(self.first(mixed.to(self.last.weight.dtype))))
        out: Tensor = self.last(hidden).squeeze(-1).t()
        return out

    def flops(self) -> int:
        """Of matrix products, for one candidate."""
        return 2 * (self.first.weight.numel() + self.last.weight.numel())


class DinNetwork(nn.Module):
    """From a user's vector, events and candidates to raw outputs of tasks; embeddings are others'."""

    def __init__(
        self,
        config: DinConfig,
        *,
        num_events: int,
        user_dim: int,
        item_dim: int,
        tower: int,
        num_tasks: int,
        dropout: float = 0.0,
    ) -> None:
        """num_events: most that are read. user_dim: of all that candidates share. item_dim: of a candidate, of which
        the first `config.dim` numbers meet the events. tower: hidden width of the towers.
        """
        super().__init__()
        assert item_dim >= config.dim
        self.config, self.num_events = config, num_events
        self.user_dim, self.item_dim = user_dim, item_dim
        self.activation = ActivationUnit(config, num_events)
        width = user_dim + config.num_pools * config.dim + item_dim
        self.cross = nn.ModuleList(CrossLayer(width, config.cross_rank) for _ in range(config.num_cross_layers))
        self.mixture = Mixture(config, width, num_tasks, dropout)
        self.towers = Towers(config.experts[-1], tower, num_tasks, dropout)

    @property
    def crosses(self) -> list[CrossLayer]:
        """The cross layers."""
        return [layer for layer in self.cross if isinstance(layer, CrossLayer)]

    def plain(self, user: Tensor, events: Tensor, seen: Tensor, items: Tensor) -> Tensor:
        """Each candidate with its user: [n, user_dim], [n, num_events, dim], bool [n, num_events], [n, item_dim] -> raw
        task outputs [n, num_tasks].
        """
        pooled = self.activation(events, seen, items[:, : self.config.dim])
        x = x0 = torch.cat([user, pooled, items], dim=-1)
        for layer in self.cross:
            x = layer(x0, x)
        out: Tensor = self.towers(self.mixture(x))
        return out

    def flops(self) -> int:
        """Floating-point operations of the matrix products of one `plain` forward of one candidate with all events that
        are read, nothing shared.
        """
        cross = sum(layer.flops() for layer in self.crosses)
        return self.activation.flops(self.num_events) + cross + self.mixture.flops() + self.towers.flops()
