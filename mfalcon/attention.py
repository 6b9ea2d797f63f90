"""The phases of attention. A layer is given one of them and does not know which: that is the seam of the whole project.

PrefixAttention prefills and appends, TargetAttention scores: they serve one user. `masked_attention.py` has the others:
the definition, and these two over a padded batch with gradients.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.bias import RelativeBias
from kernels.reach import Reach, seen
from kernels.reference import prefix_attention, target_attention
from kernels.rotary import rotated
from mfalcon.kvcache.state import KVState


@dataclass(frozen=True, slots=True)
class AttentionForm:
    """What a layer fixes about its attention, whatever the phase."""

    logit_scale: float
    norm: float
    bias: RelativeBias | None
    reach: Reach | None = None
    """What tokens and targets see of a prefix; None for all of it."""
    softmax: bool = False
    """Weights are a softmax over all that a token sees, not SiLU of each logit."""
    rotary_base: float | None = None
    """Of rotary positions, None without. A token's position is its place among the tokens of its window; all targets of
    a request stand behind them.
    """

    def turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """Queries or keys [..., n, num_heads, qk_dim] as they meet each other; positions: int64, [..., n]."""
        return x if self.rotary_base is None else rotated(x, positions, self.rotary_base)


class Attend(Protocol):
    """A phase. q, k: [..., n, num_heads, qk_dim], v: [..., n, num_heads, v_dim]: tokens that pass through a layer."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        """Attention output of the tokens: [..., n, num_heads, v_dim]."""
        ...


class Keep(Protocol):
    """A phase that stores prefix tokens and can do so without computing their output (the last layer)."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        """As `Attend`."""
        ...

    def keep(self, layer: int, k: Tensor, v: Tensor, form: AttentionForm) -> None:
        """Store the tokens' keys, turned by their positions, and values."""
        ...


class PrefixAttention:
    """Prefill and append: the newest tokens of a state enter it and attend to all of it causally."""

    def __init__(self, state: KVState) -> None:
        self._state = state
        self._times = state.times

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        """See `Attend`."""
        self.keep(layer, k, v, form)
        return prefix_attention(
            form.turned(q, self._newest(len(q))),
            *(*self._state.read(layer), self._times, form.bias),
            logit_scale=form.logit_scale,
            norm=form.norm,
            reach=form.reach,
            softmax=form.softmax,
        )

    def keep(self, layer: int, k: Tensor, v: Tensor, form: AttentionForm) -> None:
        """See `Keep`."""
        turned = form.turned(k, self._newest(len(k)))
        self._state.write(layer, turned.transpose(0, 1), v.transpose(0, 1))

    def _newest(self, num_tokens: int) -> Tensor:
        """Positions of the last tokens."""
        n = self._state.num_tokens
        return torch.arange(n - num_tokens, n, device=self._times.device)


class TargetAttention:
    """Score: targets of one request attend to a state and to themselves; nothing is written.

    What a layer reads of the state, and its bias (one vector), are gathered for the first microbatch and used for all.
    """

    def __init__(self, state: KVState, time_ms: int) -> None:
        self._state = state
        self._time_ms = time_ms
        self._prefix: dict[int, tuple[Tensor, Tensor, Tensor | None, Tensor | None]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        """See `Attend`."""
        if layer not in self._prefix:
            self._prefix[layer] = self._seen(layer, form)
        position = torch.tensor(self._state.num_tokens, device=q.device)
        return target_attention(
            form.turned(q, position),
            form.turned(k, position),
            v,
            *self._prefix[layer],
            logit_scale=form.logit_scale,
            norm=form.norm,
            softmax=form.softmax,
        )

    def _seen(self, layer: int, form: AttentionForm) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Keys and values that the targets see in a layer, the bias on them, and the targets' on themselves."""
        n, times = self._state.num_tokens, self._state.times
        split = (0, 0) if form.reach is None else form.reach.of_targets(n)
        k, v = (seen(kept, split, n, 1) for kept in self._state.read(layer))
        if form.bias is None:
            return k, v, None, None
        positions = seen(torch.arange(n, device=times.device), split, n, 0)
        return k, v, form.bias.vector(n, positions, self._time_ms, seen(times, split, n, 0)), form.bias.own()
