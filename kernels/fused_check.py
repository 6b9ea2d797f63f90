"""A small random stack in the fused kernel and in the reference ops: what a library must pass before it is used."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels import reference
from kernels.bias import RelativeBias, time_thresholds
from kernels.fused_library import Kernel
from kernels.fused_stack import FusedStack
from kernels.stack import LayerWeights, StackConfig


@dataclass(frozen=True, slots=True)
class Size:
    """Of what is computed: prefix tokens, the first ones of them as a prefill, targets, tokens of a page, threads."""

    num_tokens: int
    prefill: int
    num_targets: int
    page_tokens: int
    threads: int


SMALL = Size(77, 70, 13, 64, 1)
LARGE = Size(1_100, 1_050, 200, 128, 2)
"""More than two blocks of keys of every policy, over several pages, by two threads."""


def deviation(kernel: Kernel, size: Size, *, concat: bool, int8: bool) -> float:
    """Worst relative difference of a small random stack from the reference ops: prefill, append and score."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    config = StackConfig(2, 21, 11, 18, 9.0, 0.3, 1e-6, activate_all=not concat, concat=concat)
    v_width, columns, thresholds = 36, 116, time_thresholds(20, 0.7, 1000)
    layers = [
        LayerWeights(
            uvqk=randn(columns, 21) / 4,
            output=randn(21, 3 * v_width if concat else v_width) / 6,
            uvqk_bias=randn(columns) if concat else None,
            output_bias=randn(21),
            norm_in=(1 + randn(21) / 4, randn(21)) if concat else None,
            norm_out=(1 + randn(v_width) / 4, randn(v_width)) if concat else None,
            bias=RelativeBias(randn(2, 50), randn(2, 21), thresholds),
        )
        for _ in range(2)
    ]
    n, m, page = size.num_tokens, size.num_targets, size.page_tokens
    x, targets = randn(n, 21), randn(m, 21)
    times = torch.randint(0, 10**6, (n,), generator=generator).cumsum(0)
    now = int(times[-1]) + 12_345
    stack = FusedStack(kernel, config, layers, page, int8)
    num_pages = -(-n // page)
    memory = torch.empty(num_pages, stack.page_bytes, dtype=torch.uint8).fill_(255)
    for index, of_page in enumerate(times.split(page)):
        memory.view(torch.int64)[index, : len(of_page)] = of_page
    pages = memory.data_ptr() + stack.page_bytes * torch.arange(num_pages)
    stack.extend(pages, 0, x[: size.prefill], size.threads)
    stack.extend(pages, size.prefill, x[size.prefill :], size.threads)
    expected_layers, expected = _reference(config, layers, x, times, targets, now)
    pairs = [(stack.score(pages, n, targets, now, size.threads), expected)]
    for layer, wanted in enumerate(expected_layers):
        pairs += zip(stack.read(pages, layer, 0, n), wanted, strict=True)
    worst = torch.stack([(got - wanted).abs().max() / wanted.abs().max() for got, wanted in pairs])
    return float(worst.max())


def _reference(
    config: StackConfig, layers: Sequence[LayerWeights], x: Tensor, times: Tensor, targets: Tensor, now: int
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Prefill and score by the reference ops: keys and values of every layer, and the hidden targets."""
    heads, v_width, qk_width = config.num_heads, config.num_heads * config.v_dim, config.num_heads * config.qk_dim
    form = {"logit_scale": config.logit_scale, "norm": config.attention_norm}
    n, kept = len(x), []

    def project(layer: LayerWeights, rows: Tensor) -> tuple[Tensor, ...]:
        weight, bias = layer.norm_in or (None, None)
        normed = functional.layer_norm(rows, (config.dim,), weight, bias, config.norm_eps)
        all_columns = functional.linear(normed, layer.uvqk, layer.uvqk_bias)
        u, *vqk = all_columns.split((v_width, v_width, qk_width, qk_width), dim=-1)
        active = [functional.silu(t) if config.activate_all else t for t in vqk]
        return functional.silu(u), *(t.view(len(rows), heads, -1) for t in active)

    def finish(layer: LayerWeights, rows: Tensor, u: Tensor, attended: Tensor) -> Tensor:
        attended = attended.flatten(-2)
        weight, bias = layer.norm_out or (None, None)
        gated = u * functional.layer_norm(attended, (v_width,), weight, bias, config.norm_eps)
        gated = torch.cat([u, attended, gated], dim=-1) if config.concat else gated
        return rows + functional.linear(gated, layer.output, layer.output_bias)

    for layer in layers:
        assert layer.bias is not None
        u, v, q, k = project(layer, x)
        k, v = k.transpose(0, 1), v.transpose(0, 1)
        kept.append((k, v))
        x = finish(layer, x, u, reference.prefix_attention(q, k, v, times, layer.bias, **form))
        vector, own = layer.bias.vector(n, torch.arange(n), now, times), layer.bias.own()
        u, own_v, q, own_k = project(layer, targets)
        attended = reference.target_attention(q, own_k, own_v, k, v, vector, own, **form)
        targets = finish(layer, targets, u, attended)
    return kept, targets
