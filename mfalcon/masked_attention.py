"""The phases of attention under a mask: FullAttention is one dense forward, the definition; BatchPrefixAttention and
BatchTargetAttention prefill and score a padded batch, with gradients: training is a prefill and a score.
"""

import torch
from torch import Tensor

from kernels.reference import masked_attention, masked_target_attention
from mfalcon.attention import AttentionForm


class FullAttention:
    """Every token in one forward under a given mask.

    mask: bool [..., n, n]. positions, query_times, key_times: int64 [..., n]. Query and key times differ only in models
    whose bias looks at the next event (golden/README.md, variant research). is_target: bool [..., n], None where no
    token is one.
    """

    def __init__(
        self,
        mask: Tensor,
        positions: Tensor,
        query_times: Tensor,
        key_times: Tensor,
        is_target: Tensor | None = None,
    ) -> None:
        self._mask = mask
        self._grid = (positions, positions, query_times, key_times)
        self._is_target = is_target

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        """See `Attend`."""
        bias = None if form.bias is None else form.bias.matrix(*self._grid)
        positions, mask = self._grid[0], self._mask
        if form.reach is not None:
            mask = mask & form.reach.mask(positions, positions, self._is_target)
        q, k = form.turned(q, positions), form.turned(k, positions)
        return masked_attention(q, k, v, mask, bias, logit_scale=form.logit_scale, norm=form.norm, softmax=form.softmax)


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
        self.keep(layer, k, v, form)
        bias = None if form.bias is None else form.bias.matrix(self.positions, self.positions, self.times, self.times)
        mask = self._mask
        if form.reach is not None:
            mask = mask & form.reach.mask(self.positions, self.positions)
        return masked_attention(
            form.turned(q, self.positions),
            *(*self.keys_values[layer], mask, bias),
            logit_scale=form.logit_scale,
            norm=form.norm,
            softmax=form.softmax,
        )

    def keep(self, layer: int, k: Tensor, v: Tensor, form: AttentionForm) -> None:
        """See `Keep`."""
        self.keys_values[layer] = (form.turned(k, self.positions), v)


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
        bias, own = None, None
        if form.bias is not None:
            bias = form.bias.matrix(self._visible, self._prefix.positions, self._times, self._prefix.times)
            own = form.bias.own()
        mask = self._mask
        if form.reach is not None:
            is_target = torch.ones_like(self._visible, dtype=torch.bool)
            mask = mask & form.reach.mask(self._visible, self._prefix.positions, is_target)
        return masked_target_attention(
            form.turned(q, self._visible),
            form.turned(k, self._visible),
            v,
            *self._prefix.keys_values[layer],
            mask,
            bias,
            own,
            logit_scale=form.logit_scale,
            norm=form.norm,
            softmax=form.softmax,
        )
