"""The HSTU ranker of NVIDIA's recsys-examples, which is trained there and imported (`mfalcon import recsys-examples`).

Items and actions are tokens in turn, as in the paper; a candidate is an item token that sees the history and itself.
Positions count from the start of the window, and every candidate stands right behind the history: keys and values of a
token depend on itself and earlier tokens alone.

Source: `RankingGR` of recsys-examples, `examples/hstu`; HSTU paper (arXiv 2402.17152).
"""

import math
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfalcon.models.base import EventTokens, PrefixRanker, Targets
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_parts import RecsysConfig

_NORM_EPS = 1e-6
_ACTIVATIONS: Final = {"relu": nn.ReLU, "gelu": nn.GELU}


def recsys_of(config: RankerConfig) -> RecsysConfig:
    """What is around the layers, of a configuration that has it."""
    assert config.recsys is not None
    return config.recsys


class RecsysHstu(PrefixRanker):
    """Two tables, positions, layers, and a perceptron on hidden candidates of length 1."""

    tokens_per_event = 2
    prefix_stable = True
    reads_positions = True
    is_trained_here = False
    config_part = "recsys"

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        del self.actions  # an event has one action token, whatever it carries
        around = recsys_of(config)
        self.action = nn.Embedding(around.num_actions, config.dim)
        self.position = nn.Parameter(torch.empty(around.num_positions, config.dim).normal_(std=0.02))
        self._token_scale = math.sqrt(config.dim) if around.num_positions else 1.0
        widths = (config.dim, *around.head_widths, len(config.tasks))
        layers = list[nn.Module]()
        for index, (width, out) in enumerate(pairwise(widths)):
            layers += [_ACTIVATIONS[around.head_activation]()] if index else []
            layers.append(nn.Linear(width, out))
        self.heads = nn.Sequential(*layers)

    def action_rows(self, actions: Tensor) -> Tensor:
        """Bitmasks, int64 [...] -> rows of the table of actions: the weights of those that are set, added up."""
        weights = torch.tensor(recsys_of(self.config).action_weights, device=actions.device)
        bits = actions.unsqueeze(-1) >> torch.arange(len(weights), device=actions.device) & 1
        return (bits * weights).sum(-1).clamp(max=self.action.num_embeddings - 1)

    def tokens(self, items: Tensor, actions: Tensor) -> Tensor:
        """Rows of both tables, int64 [..., n] -> tokens [..., 2 * n, dim] without their positions."""
        return torch.stack([self.items(items), self.action(actions)], dim=-2).flatten(-3, -2)

    def prefix_tokens(self, events: EventTokens) -> Tensor:
        """See `PrefixRanker.prefix_tokens`."""
        return self.tokens(events.rows, self.action_rows(events.actions))

    def target_tokens(self, targets: Targets) -> Tensor:
        """See `PrefixRanker.target_tokens`."""
        out: Tensor = self.items(targets.rows)
        return out

    def placed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See `PrefixRanker.placed`; those beyond the last position share it."""
        if not len(self.position):
            return tokens
        return tokens * self._token_scale + self.position[positions.clamp(max=len(self.position) - 1)]

    def placed_targets(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See `PrefixRanker.placed_targets`."""
        return self.placed(tokens, positions)

    def predict(self, hidden: Tensor, targets: Targets) -> Tensor:
        """See `PrefixRanker.predict`."""
        wide = hidden.to(self.heads[-1].get_parameter("weight").dtype)
        raw: Tensor = self.heads(functional.normalize(wide, dim=-1, eps=_NORM_EPS))
        return raw

    def rescale(self, task: int, scale: float, shift: float) -> None:
        """See `Ranker.rescale`."""
        last = self.heads[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight[task] *= scale
            last.bias[task] = scale * last.bias[task] + shift

    def cast(self, dtype: torch.dtype) -> None:
        """See `Ranker.cast`."""
        self.to(dtype)
        if dtype.itemsize < torch.float32.itemsize:
            self.heads.float()
