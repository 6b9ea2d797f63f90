"""A small random stack in the Triton kernels: what they must pass on a device before they are used there."""

from dataclasses import replace

import torch
from torch import Tensor

from kernels.bias import RelativeBias
from kernels.gpu.stack import GpuStack
from kernels.paged import PagedKV, batch
from kernels.paged_reference import gather
from kernels.sample_stack import Sample, sample
from kernels.stack import LayerWeights

_NUM_TOKENS, _PREFILL, _NUM_TARGETS, _PAGE_TOKENS = 77, 70, 13, 32


def deviation(device: torch.device, dtype: torch.dtype, *, concat: bool) -> float:
    """Worst relative difference of a small random stack from the reference ops: prefill, append and score."""
    known = sample(_NUM_TOKENS, _NUM_TARGETS, concat=concat)
    stack = GpuStack(known.config, [_cast(layer, device, dtype) for layer in known.layers])
    pages = list(range(-(-_NUM_TOKENS // _PAGE_TOKENS)))[::-1]
    kv = [_poisoned(known, len(pages), device, dtype) for _ in known.layers]
    x, targets = known.x.to(device, dtype), known.targets.to(device, dtype)

    def arrived(_: int) -> None:
        """Everything is there."""

    for first, stop in ((0, _PREFILL), (_PREFILL, _NUM_TOKENS)):
        users = batch([stop - first], [stop], [pages], tile_rows=16, device=device)
        stack.extend(x[first:stop], kv, users, arrived)
    users = batch([_NUM_TARGETS], [_NUM_TOKENS], [pages], tile_rows=16, splits=2, device=device)
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
