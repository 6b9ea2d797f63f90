"""A small random stack in the Triton kernels: what they must pass on a device before they are used there.

It runs in tiles of every height that requests have there: on Hopper the high ones are products of another kind.
"""

from dataclasses import replace

import torch
from torch import Tensor

from kernels.bias import RelativeBias
from kernels.gpu.launch import tile_rows_for
from kernels.gpu.stack import GpuStack
from kernels.paged import PagedKV, batch
from kernels.paged_reference import gather
from kernels.sample_stack import Form, Sample, sample
from kernels.stack import LayerWeights

_NUM_TOKENS, _PREFILL, _NUM_TARGETS, _PAGE_TOKENS = 77, 70, 131, 32
"""Targets fill one of the highest tiles, and begin another."""
_HEIGHTS = (16, 64, 128)


def deviation(device: torch.device, dtype: torch.dtype, form: Form) -> float:
    """Worst relative difference of a small random stack from the reference ops: prefill, append and score, in tiles of
    every height.
    """
    known = sample(_NUM_TOKENS, _NUM_TARGETS, form)
    stack = GpuStack(known.config, [_cast(layer, device, dtype) for layer in known.layers])
    head_dim = max(known.config.qk_dim, known.config.v_dim)
    heights = {tile_rows_for(rows, dtype.itemsize, head_dim) for rows in _HEIGHTS}
    found = [_deviation(known, stack, device, dtype, tile_rows) for tile_rows in sorted(heights)]
    return float(torch.tensor(found).max())  # NaN, if one is


def _deviation(known: Sample, stack: GpuStack, device: torch.device, dtype: torch.dtype, tile_rows: int) -> float:
    pages = list(range(-(-_NUM_TOKENS // _PAGE_TOKENS)))[::-1]
    kv = [_poisoned(known, len(pages), device, dtype) for _ in known.layers]
    x, targets = known.x.to(device, dtype), known.targets.to(device, dtype)

    def arrived(_: int) -> None:
        """Everything is there."""

    for first, stop in ((0, _PREFILL), (_PREFILL, _NUM_TOKENS)):
        users = batch([stop - first], [stop], [pages], tile_rows=tile_rows, device=device)
        stack.extend(x[first:stop], kv, users, arrived)
    users = batch([_NUM_TARGETS], [_NUM_TOKENS], [pages], tile_rows=tile_rows, splits=2, device=device)
    hidden = stack.score(targets, kv, users, torch.tensor([known.now], device=device), arrived)
    order = torch.tensor(pages, device=device)
    found = [gather(layer, order, _NUM_TOKENS, torch.float32) for layer in kv]
    return known.deviation([(k.cpu(), v.cpu()) for k, v in found], hidden.float().cpu())


def _poisoned(known: Sample, num_pages: int, device: torch.device, dtype: torch.dtype) -> PagedKV:
    """Pages in reversed order that hold nothing but the tokens' times."""
    config = known.config
    k, v = (
        torch.full((num_pages, config.num_heads, _PAGE_TOKENS, dim), float("nan"), dtype=dtype, device=device)
        for dim in (config.qk_dim, config.v_dim)
    )
    times = torch.zeros(num_pages * _PAGE_TOKENS, dtype=torch.int64)
    times[:_NUM_TOKENS] = known.times
    return PagedKV(k, v, times.view(num_pages, _PAGE_TOKENS).flip(0).to(device))


def _cast(layer: LayerWeights, device: torch.device, dtype: torch.dtype) -> LayerWeights:
    def to(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype)

    def both(norm: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        return None if norm is None else (to(norm[0]), to(norm[1]))

    assert layer.bias is not None
    return replace(
        layer,
        uvqk=to(layer.uvqk),
        output=to(layer.output),
        uvqk_bias=None if layer.uvqk_bias is None else to(layer.uvqk_bias),
        output_bias=None if layer.output_bias is None else to(layer.output_bias),
        norm_in=both(layer.norm_in),
        norm_out=both(layer.norm_out),
        bias=RelativeBias(to(layer.bias.position), to(layer.bias.time), layer.bias.thresholds.to(device)),
    )
