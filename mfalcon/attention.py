"""The phases of attention. A layer is given one of them and does not know which: that is the seam of the whole project.

FullAttention is one dense masked forward, the definition. PrefixAttention prefills and appends, TargetAttention scores:
they serve one user. BatchPrefixAttention and BatchTargetAttention are the same two over a padded batch, with
gradients: training is a prefill and a score.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.bias import RelativeBias
from kernels.reference import masked_attention, prefix_attention, target_attention
from mfalcon.kvcache.state import KVState


@dataclass(frozen=True, slots=True)
class AttentionForm:
    """What a layer fixes about its attention, whatever the phase."""

    logit_scale: float
    norm: float
    bias: RelativeBias | None


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

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Store the tokens' keys and values."""
        ...


class FullAttention:
    """Every token in one forward under a given mask.

    mask: bool [..., n, n]. positions, query_times, key_times: int64 [..., n]. Query and key times differ only in models
    whose bias looks at the next event (golden/README.md, variant research).
    """

    def __init__(self, mask: Tensor, positions: Tensor, query_times: Tensor, key_times: Tensor) -> None:
        self._mask = mask
        self._grid = (positions, positions, query_times, key_times)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        """See `Attend`."""
        bias = None if form.bias is None else form.bias.matrix(*self._grid)
        return masked_attention(q, k, v, self._mask, bias, logit_scale=form.logit_scale, norm=form.norm)


class PrefixAttention:
    """Prefill and append: the newest tokens of a state enter it and attend to all of it causally."""

    def __init__(self, state: KVState) -> None:
        self._state = state
        self._times = state.times

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        """See `Attend`."""
        self.keep(layer, k, v)
        all_k, all_v = self._state.read(layer)
        return prefix_attention(q, all_k, all_v, self._times, form.bias, logit_scale=form.logit_scale, norm=form.norm)

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """See `Keep`."""
        self._state.write(layer, k.transpose(0, 1), v.transpose(0, 1))


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
            self._prefix[layer] = (*self._state.read(layer), *self._bias_of(form.bias))
        return target_attention(q, k, v, *self._prefix[layer], logit_scale=form.logit_scale, norm=form.norm)

    def _bias_of(self, bias: RelativeBias | None) -> tuple[Tensor | None, Tensor | None]:
        if bias is None:
            return None, None
        n, times = self._state.num_tokens, self._state.times
        return bias.vector(n, torch.arange(n, device=times.device), self._time_ms, times), bias.own()


class BatchPrefixAttention:
    """Prefill of a padded batch in training; keeps every layer's keys and values, with gradients, for the targets.

    times: int64 [batch, n]. valid: bool [batch, n], False on padding (at the end).
    """

    def __init__(self, times: Tensor, valid: Tensor) -> None:
        n = times.shape[-1]
        self.positions = torch.arange(n, device=times.device)
        self.times = times
        self.keys_values: dict[int, tuple[Tensor, Tensor]] = {}
        self.valid = valid.unsqueeze(-2)  # [batch, 1, n]
        self._mask = (self.positions.unsqueeze(-1) >= self.positions) & self.valid  # [batch, n, n]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        """See `Attend`."""
        self.keep(layer, k, v)
        bias = None if form.bias is None else form.bias.matrix(self.positions, self.positions, self.times, self.times)
        return masked_attention(q, k, v, self._mask, bias, logit_scale=form.logit_scale, norm=form.norm)

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """See `Keep`."""
        self.keys_values[layer] = (k, v)


class BatchTargetAttention:
    """Score of a padded batch in training: target i of a row sees its row's first `visible` prefix tokens and itself.

    visible: int64 [batch, num_targets], also the target's position. times: int64 [batch, num_targets].
    """

    def __init__(self, prefix: BatchPrefixAttention, visible: Tensor, times: Tensor) -> None:
        self._prefix = prefix
        self._visible = visible
        self._times = times
        self._mask = (prefix.positions < visible.unsqueeze(-1)) & prefix.valid  # [batch, m, n]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        """See `Attend`."""
        prefix_k, prefix_v = self._prefix.keys_values[layer]
        own = (q * k).sum(-1, keepdim=True) * form.logit_scale  # [batch, m, H, 1]
        bias = None
        if form.bias is not None:
            bias = form.bias.matrix(self._visible, self._prefix.positions, self._times, self._prefix.times)
            own = own + form.bias.own().unsqueeze(-1)
        seen = masked_attention(q, prefix_k, prefix_v, self._mask, bias, logit_scale=form.logit_scale, norm=form.norm)
        return seen + torch.nn.functional.silu(own) * v / form.norm
