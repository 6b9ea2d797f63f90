"""One HSTU layer and a stack of them. The phase is an argument: `layer(x, attend)` trains, prefills, appends and
scores.

Source: HSTU paper (Zhai et al. 2024, arXiv 2402.17152, section 3, equations 1 to 3); options cover Meta's two public
variants.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.alibi import linear_bias
from kernels.bias import RelativeBias, time_thresholds
from kernels.reach import Reach
from mfalcon.attention import Attend, AttentionForm, Keep
from mfalcon.models.config_layers import AlibiConfig, LayerConfig, ReachConfig, RelativeBiasConfig


class RelativeBiasWeights(nn.Module):
    """Learned rab^{p,t} of one layer, per head."""

    thresholds: Tensor

    def __init__(self, config: RelativeBiasConfig, num_heads: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(num_heads, config.num_positions))
        self.time = nn.Parameter(torch.empty(num_heads, config.num_time_buckets + 1))
        thresholds = time_thresholds(config.num_time_buckets, config.time_bucket_width, config.time_unit_ms)
        self.register_buffer("thresholds", thresholds, persistent=False)
        nn.init.normal_(self.position, std=0.02)
        nn.init.normal_(self.time, std=0.02)

    def forward(self) -> RelativeBias:
        """The weights as the kernels take them."""
        return RelativeBias(self.position, self.time, self.thresholds)


class LinearBias(nn.Module):
    """ALiBi: the same of every layer, and no weights."""

    position: Tensor
    time: Tensor
    thresholds: Tensor

    def __init__(self, config: AlibiConfig, num_heads: int) -> None:
        super().__init__()
        given = linear_bias(num_heads, config.num_positions)
        for name in ("position", "time", "thresholds"):
            self.register_buffer(name, getattr(given, name), persistent=False)

    def forward(self) -> RelativeBias:
        """As the kernels take it."""
        return RelativeBias(self.position, self.time, self.thresholds)


class HSTULayer(nn.Module):
    """x + output(u * LN(attention)), with u, v, q, k from one projection of LN(x)."""

    def __init__(self, config: LayerConfig, index: int, reach: ReachConfig | None = None) -> None:
        super().__init__()
        self.index = index
        self.config = config
        self.reach = None if reach is None else Reach(reach.tokens, reach.of_targets, reach.first)
        v_width, qk_width = config.num_heads * config.v_dim, config.num_heads * config.qk_dim
        self._widths = (v_width, v_width, qk_width, qk_width)
        self.norm_in = nn.LayerNorm(config.dim, eps=config.norm_eps, elementwise_affine=config.norm_affine)
        self.norm_out = nn.LayerNorm(v_width, eps=config.norm_eps, elementwise_affine=config.norm_affine)
        self.uvqk = nn.Linear(config.dim, sum(self._widths), bias=config.uvqk_bias)
        out_width = v_width if config.output == "gated" else 3 * v_width
        self.output = nn.Linear(out_width, config.dim, bias=config.output_bias)
        self.bias = _bias_of(config)
        self.dropout = nn.Dropout(config.dropout)
        self._logit_scale = config.logit_scale if config.logit_scale is not None else 1 / math.sqrt(config.qk_dim)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """[..., n, dim] -> [..., n, dim]."""
        u, v, q, k = self.uvqk(self.norm_in(x)).split(self._widths, dim=-1)
        u = functional.silu(u)
        if self.config.activation == "uvqk":
            v, q, k = functional.silu(v), functional.silu(q), functional.silu(k)
        form = self.form()
        qk_dim, v_dim = self.config.qk_dim, self.config.v_dim
        attended = attend(self.index, _heads(q, qk_dim), _heads(k, qk_dim), _heads(v, v_dim), form).flatten(-2)
        gated = u * self.norm_out(attended)
        if self.config.output == "concat":
            gated = torch.cat([u, attended, gated], dim=-1)
        out: Tensor = x + self.output(self.dropout(gated))
        return out

    def form(self) -> AttentionForm:
        """Of its attention, with the weights as they are now."""
        config = self.config
        bias, base = self.bias() if self.bias else None, config.rope.base if config.rope else None
        is_softmax = config.attention == "softmax"
        return AttentionForm(self._logit_scale, config.attention_norm, bias, self.reach, is_softmax, base)

    def keep(self, x: Tensor, phase: Keep) -> None:
        """Only the keys and values of the tokens [..., n, dim]: all that targets need of a prefix in the last layer."""
        u_width, v_width, q_width, _ = self._widths
        weight, bias = self.uvqk.weight, self.uvqk.bias
        rows = (slice(u_width, u_width + v_width), slice(u_width + v_width + q_width, sum(self._widths)))
        normed = self.norm_in(x)
        v, k = (functional.linear(normed, weight[r], None if bias is None else bias[r]) for r in rows)
        if self.config.activation == "uvqk":
            v, k = functional.silu(v), functional.silu(k)
        phase.keep(self.index, _heads(k, self.config.qk_dim), _heads(v, self.config.v_dim), self.form())


def _bias_of(config: LayerConfig) -> RelativeBiasWeights | LinearBias | None:
    if config.bias is not None:
        return RelativeBiasWeights(config.bias, config.num_heads)
    return LinearBias(config.alibi, config.num_heads) if config.alibi is not None else None


def _heads(t: Tensor, head_dim: int) -> Tensor:
    """[..., heads * head_dim] -> [..., heads, head_dim]."""
    return t.view(*t.shape[:-1], t.shape[-1] // head_dim, head_dim)


class Stack(nn.Module):
    """The layers of a ranker: plain weights and config, so that a backend may run all of them as one call."""

    def __init__(self, config: LayerConfig, num_layers: int, reach: Sequence[ReachConfig | None] | None = None) -> None:
        """reach: of each layer; None where all layers see all of a prefix."""
        super().__init__()
        of_layers = [None] * num_layers if reach is None else reach
        self.layers = nn.ModuleList(HSTULayer(config, index, of_layers[index]) for index in range(num_layers))

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """Tokens [..., n, dim] through every layer."""
        for layer in self.layers:
            x = layer(x, attend)
        return x

    def encode(self, x: Tensor, phase: Keep) -> None:
        """Prefix tokens [..., n, dim] into the phase's keys and values; the last layer computes nothing else."""
        *first, last = self.layers
        for layer in first:
            x = layer(x, phase)
        assert isinstance(last, HSTULayer)
        last.keep(x, phase)
