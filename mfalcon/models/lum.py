"""LUM, a large user model: its targets are conditions, and what it gives of each is a vector, the user's interest.

Source: LUM (arXiv 2502.08309): a user model that learns the next item under a condition, is asked groups of conditions
on one prefix, and whose answers are features and candidates for others. Here the prefix is DFGR's (item + action
tokens), so a group is M-FALCON with conditions for candidates: each sees the prefix and itself.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mfalcon.errors import ConfigError
from mfalcon.models.base import EventTokens, PrefixRanker, Targets
from mfalcon.models.conditions import category_feature, conditions
from mfalcon.models.config import RankerConfig
from mfalcon.models.items import KnownItems
from mfalcon.types import Ids

_INIT_STD = 0.05
_INIT_SHARPNESS = 2.5
_MOST_SHARPNESS = 6.0
"""Logarithms of what a cosine is multiplied with: 12 at first, 400 at most."""


class InterestHead(nn.Module):
    """Hidden conditions -> interests, and item vectors -> keys, both of length 1; an item's logit under a condition is
    their sharpened cosine and the item's own bias, its popularity. Never below float32.
    """

    def __init__(self, dim: int, hidden: int, num_rows: int) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))
        self.key = nn.Linear(dim, dim)
        self.sharpness = nn.Parameter(torch.tensor([_INIT_SHARPNESS]))
        self.popularity = nn.Parameter(torch.zeros(num_rows))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return functional.normalize(self.query(hidden.to(self.popularity.dtype)), dim=-1)

    def keys(self, items: Tensor) -> Tensor:
        """Vectors of items [num_items, dim] -> [num_items, dim]."""
        return functional.normalize(self.key(items.to(self.popularity.dtype)), dim=-1)

    def scale(self) -> Tensor:
        """What a cosine is multiplied with, [1]."""
        return self.sharpness.clamp(max=_MOST_SHARPNESS).exp()


class LUM(PrefixRanker):
    """DFGR's prefix, condition tokens as targets. It ranks no items itself: `logits` says how near each is."""

    tokens_per_event = 1
    prefix_stable = True
    ranks_items = False

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        self.condition = nn.Embedding(len(conditions(config)), config.dim)
        nn.init.normal_(self.condition.weight, std=_INIT_STD)
        self.interest = InterestHead(config.dim, config.head_dim, config.num_items)

    @property
    def output_names(self) -> tuple[str, ...]:
        """See `Ranker.output_names`: the coordinates of an interest."""
        return tuple(f"interest[{index}]" for index in range(self.config.dim))

    @property
    def blend(self) -> list[float]:
        """See `Ranker.blend`: coordinates rank nothing."""
        return [0.0] * self.config.dim

    @property
    def num_target_rows(self) -> int:
        """See `Ranker.num_target_rows`: conditions."""
        return self.condition.num_embeddings

    def target_rows(self, items: KnownItems, ids: Ids) -> Ids:
        """See `Ranker.target_rows`: conditions are asked by their rows. Past the last one there is the last one: such a
        row was another checkpoint's, and who asked sees by the version that it was answered by this one.
        """
        return np.clip(ids, 0, self.num_target_rows - 1)

    def prefix_tokens(self, events: EventTokens) -> Tensor:
        """See `PrefixRanker.prefix_tokens`."""
        out: Tensor = self.dropout(self.items(events.rows) + self.actions(events.actions, events.values))
        return out

    def target_tokens(self, targets: Targets) -> Tensor:
        """See `PrefixRanker.target_tokens`."""
        out: Tensor = self.dropout(self.condition(targets.rows))
        return out

    def predict(self, hidden: Tensor, targets: Targets) -> Tensor:
        """Hidden conditions [..., dim] -> interests [..., dim]."""
        out: Tensor = self.interest(hidden)
        return out

    def scores(self, raw: Tensor) -> Tensor:
        """Interests are what they are."""
        return raw

    def rescale(self, task: int, scale: float, shift: float) -> None:
        """Raises ConfigError: an interest has no scale."""
        raise ConfigError(f"{self.config.name}: architecture 'lum' has no task whose output could be rescaled")

    def cast(self, dtype: torch.dtype) -> None:
        """See `Ranker.cast`."""
        self.to(dtype)
        if dtype.itemsize < torch.float32.itemsize:
            self.interest.float()

    def keys(self, rows: Tensor) -> Tensor:
        """Of item rows [num_items]: what interests are near to or far from, [num_items, dim]."""
        return self.interest.keys(self.items(rows))

    def logits(self, interests: Tensor, rows: Tensor) -> Tensor:
        """Interests [n, dim] and item rows [num_items] -> how near each is, [n, num_items]."""
        return self.interest.scale() * (interests @ self.keys(rows).t()) + self.interest.popularity[rows]

    def members(self) -> Tensor:
        """Which items are of which category: bool [num_items, num_categories]; the reserved row of `ANY` alone."""
        feature = category_feature(self.config)
        num_items, device = self.config.num_items, self.device
        everything = torch.ones(num_items, 1, dtype=torch.bool, device=device)
        if feature is None:
            return everything
        column = self.items.get_buffer(f"rows_{feature.name}")
        if feature.kind == "category":
            codes = torch.arange(1, 1 + len(feature.vocabulary), device=device)
            return torch.cat([everything, column.unsqueeze(-1) == codes], dim=-1)
        return torch.cat([everything, column > 0], dim=-1)
