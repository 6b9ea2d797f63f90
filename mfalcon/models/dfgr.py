"""DFGR: merged item+action tokens, trained with two flows and served as one.

Source: Dual-Flow Generative Ranking (Guo et al. 2025, arXiv 2505.16752). The real flow carries item+action, the fake
flow item+placeholder; a fake token's query sees the real flow strictly before it, and itself. Serving is
prefill(real) + score(fake).
"""

import torch
from torch import Tensor, nn

from mfalcon.models.base import EventTokens, Targets, TaskRanker
from mfalcon.models.config import RankerConfig


class DFGR(TaskRanker):
    """Merged layout: half the tokens of HSTU. Candidates carry a learned placeholder in place of the action."""

    tokens_per_event = 1
    prefix_stable = True

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        self.placeholder = nn.Parameter(torch.empty(config.dim).normal_(std=0.05))

    def prefix_tokens(self, events: EventTokens) -> Tensor:
        """See `PrefixRanker.prefix_tokens`."""
        out: Tensor = self.dropout(self.items(events.rows) + self.actions(events.actions, events.values))
        return out

    def target_tokens(self, targets: Targets) -> Tensor:
        """See `PrefixRanker.target_tokens`."""
        out: Tensor = self.dropout(self.items(targets.rows) + self.placeholder)
        return out
