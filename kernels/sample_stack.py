"""A small random stack, and what the reference ops make of it: what a backend must agree with before it is used."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from kernels import reference
from kernels.bias import RelativeBias, time_thresholds
from kernels.reach import Reach, seen
from kernels.rotary import rotated
from kernels.stack import LayerWeights, StackConfig


@dataclass(frozen=True, slots=True)
class Sample:
    """Tokens x [n, dim] and their times, targets [m, dim] and the time of their request, all in float32.

    expected_kv: K and V [num_heads, n, head_dim] of each layer; expected: the hidden targets.
    """

    config: StackConfig
    layers: Sequence[LayerWeights]
    x: Tensor
    times: Tensor
    targets: Tensor
    now: int
    expected_kv: Sequence[tuple[Tensor, Tensor]]
    expected: Tensor

    def deviation(self, kv: Sequence[tuple[Tensor, Tensor]], hidden: Tensor) -> float:
        """Worst relative difference of K and V of each layer and of the hidden targets."""
        pairs = [(hidden, self.expected)]
        for got, wanted in zip(kv, self.expected_kv, strict=True):
            pairs += zip(got, wanted, strict=True)
        return float(torch.stack([(got - wanted).abs().max() / wanted.abs().max() for got, wanted in pairs]).max())


@dataclass(frozen=True, slots=True)
class Form:
    """Of the layers of a sample. concat: Meta's research variant, else ours. softmax: with rotary positions. reach: of
    each layer.
    """

    concat: bool = False
    softmax: bool = False
    reach: tuple[Reach | None, Reach | None] = (None, None)


def sample(num_tokens: int, num_targets: int, form: Form = Form()) -> Sample:
    """Two layers of odd sizes with every option on."""
    concat, softmax = form.concat, form.softmax
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    qk_dim, norm, base = (10, 1.0, 1e4) if softmax else (11, 9.0, None)
    config = StackConfig(2, 21, qk_dim, 18, norm, 0.3, 1e-6, not concat, concat, softmax, base)
    v_width, columns, thresholds = 36, 4 * (18 + qk_dim), time_thresholds(20, 0.7, 1000)
    layers = [
        LayerWeights(
            uvqk=randn(columns, 21) / 4,
            output=randn(21, 3 * v_width if concat else v_width) / 6,
            uvqk_bias=randn(columns) if concat else None,
            output_bias=randn(21),
            norm_in=(1 + randn(21) / 4, randn(21)) if concat else None,
            norm_out=(1 + randn(v_width) / 4, randn(v_width)) if concat else None,
            bias=RelativeBias(randn(2, 50), randn(2, 21), thresholds),
            reach=of_layer,
        )
        for of_layer in form.reach
    ]
    x, targets = randn(num_tokens, 21), randn(num_targets, 21)
    times = torch.randint(0, 10**6, (num_tokens,), generator=generator).cumsum(0)
    now = int(times[-1]) + 12_345
    return Sample(config, layers, x, times, targets, now, *_reference(config, layers, x, times, targets, now))


def _reference(
    config: StackConfig, layers: Sequence[LayerWeights], x: Tensor, times: Tensor, targets: Tensor, now: int
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Prefill and score by the reference ops: keys and values of every layer, and the hidden targets."""
    heads, v_width, qk_width = config.num_heads, config.num_heads * config.v_dim, config.num_heads * config.qk_dim
    n, base, kept = len(x), config.rotary_base, []
    prefix_attention = partial(
        reference.prefix_attention,
        logit_scale=config.logit_scale,
        norm=config.attention_norm,
        softmax=config.softmax,
    )
    target_attention = partial(
        reference.target_attention,
        logit_scale=config.logit_scale,
        norm=config.attention_norm,
        softmax=config.softmax,
    )

    def project(layer: LayerWeights, rows: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        weight, bias = layer.norm_in or (None, None)
        normed = functional.layer_norm(rows, (config.dim,), weight, bias, config.norm_eps)
        all_columns = functional.linear(normed, layer.uvqk, layer.uvqk_bias)
        u, *vqk = all_columns.split((v_width, v_width, qk_width, qk_width), dim=-1)
        active = [functional.silu(t) if config.activate_all else t for t in vqk]
        v, q, k = (t.view(len(rows), heads, -1) for t in active)
        if base is not None:
            q, k = rotated(q, positions, base), rotated(k, positions, base)
        return functional.silu(u), v, q, k

    def finish(layer: LayerWeights, rows: Tensor, u: Tensor, attended: Tensor) -> Tensor:
        attended = attended.flatten(-2)
        weight, bias = layer.norm_out or (None, None)
        gated = u * functional.layer_norm(attended, (v_width,), weight, bias, config.norm_eps)
        gated = torch.cat([u, attended, gated], dim=-1) if config.concat else gated
        return rows + functional.linear(gated, layer.output, layer.output_bias)

    for layer in layers:
        assert layer.bias is not None
        u, v, q, k = project(layer, x, torch.arange(n))
        k, v = k.transpose(0, 1), v.transpose(0, 1)
        kept.append((k, v))
        x = finish(layer, x, u, prefix_attention(q, k, v, times, layer.bias, reach=layer.reach))
        split = (0, 0) if layer.reach is None else layer.reach.of_targets(n)
        k, v = (seen(kept, split, n, 1) for kept in (k, v))
        vector = layer.bias.vector(n, seen(torch.arange(n), split, n, 0), now, seen(times, split, n, 0))
        own = layer.bias.own()
        u, own_v, q, own_k = project(layer, targets, torch.tensor(n))
        attended = target_attention(q, own_k, own_v, k, v, vector, own)
        targets = finish(layer, targets, u, attended)
    return kept, targets
