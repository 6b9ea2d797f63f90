"""HSTU as in its paper: interleaved tokens [item0, action0, item1, action1, ...]; a target is an item token."""

import torch
from torch import Tensor

from mfalcon.models.base import EventTokens, Targets, TaskRanker


class HSTU(TaskRanker):
    """Interleaved layout (HSTU paper, section 2.2). Two prefix tokens per event."""

    tokens_per_event = 2
    prefix_stable = True

    def prefix_tokens(self, events: EventTokens) -> Tensor:
        """See `PrefixRanker.prefix_tokens`."""
        pairs = torch.stack([self.items(events.rows), self.actions(events.actions, events.values)], dim=-2)
        out: Tensor = self.dropout(pairs.flatten(-3, -2))
        return out

    def target_tokens(self, targets: Targets) -> Tensor:
        """See `PrefixRanker.target_tokens`."""
        out: Tensor = self.dropout(self.items(targets.rows))
        return out
