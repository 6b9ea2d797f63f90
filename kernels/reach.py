"""What the tokens of one layer see of a prefix, where that is not all of it.

Source: ULTRA-HSTU ("Bending the Scaling Law Curve in Large-Scale Recommendation Systems", arXiv 2602.16986): its
semi-local attention, in which a token sees a local window and the head of the sequence, and its attention truncation,
in which later layers see the newest part of the sequence alone. Here both count from the token itself, never from the
end of the history, so keys and values of a prefix stay what they are when events are appended.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Reach:
    """Of one layer. tokens: a token of the prefix at position i sees those from i - tokens on, itself included.
    targets: a target behind a prefix of n tokens sees those from n - targets on, and itself. first: both also see the
    tokens before position `first`.
    """

    tokens: int
    targets: int
    first: int = 0

    def mask(self, q_pos: Tensor, k_pos: Tensor, is_target: Tensor | None = None) -> Tensor:
        """Which keys each query sees, of those that stand before it: bool [..., q, k] of positions [..., q], [..., k].

        is_target: bool, broadcasts to q_pos; None where no query is a target.
        """
        back = torch.full_like(q_pos, self.tokens)
        if is_target is not None:
            back = back.masked_fill(is_target, self.targets)
        near = (q_pos - back).unsqueeze(-1) <= k_pos.unsqueeze(-2)
        return near | (k_pos < self.first).unsqueeze(-2)

    def of_tokens(self, start: int) -> tuple[int, int]:
        """What tokens from position `start` on see: keys before the first number, and from the second one on."""
        return self._split(start - self.tokens)

    def of_targets(self, n: int) -> tuple[int, int]:
        """What targets behind n tokens see, likewise."""
        return self._split(n - self.targets)

    @property
    def most_seen(self) -> tuple[int, int]:
        """Keys that a token of the prefix sees at most, and that a target sees."""
        return self.first + self.tokens + 1, self.first + self.targets

    def num_seen(self, n: int) -> int:
        """How many of n prefix tokens a target sees."""
        first, near = self.of_targets(n)
        return first + n - near

    def _split(self, near: int) -> tuple[int, int]:
        near = max(0, near)
        return min(self.first, near), near


def seen(x: Tensor, split: tuple[int, int], stop: int, dim: int) -> Tensor:
    """The keys of a split (`Reach.of_tokens`) along a dimension, up to `stop`."""
    first, near = split
    part = x.narrow(dim, near, stop - near)
    return part if not first else torch.cat([x.narrow(dim, 0, first), part], dim)
