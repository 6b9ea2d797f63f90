"""Tensors of a KV state to the payloads of chunks and back; `chunk.py` says how a payload lies.

Codes of floating types are the numbers themselves, rounded to nearest where they are narrower than the state. int8
codes are multiples of one float16 scale per layer, head and token, for K and V each. Any thread may call `encode` and
`decode`: states are read and made in inference mode, and a state's tokens are never written again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from mfalcon.kvcache.chunk import PayloadDtype
from mfalcon.kvcache.state import KVPool, KVShape, KVState

_CODES = {
    PayloadDtype.FLOAT32: torch.float32,
    PayloadDtype.BFLOAT16: torch.bfloat16,
    PayloadDtype.INT8: torch.int8,
    PayloadDtype.FLOAT64: torch.float64,
    PayloadDtype.FLOAT16: torch.float16,
}
_EXACT = {code: dtype for dtype, code in _CODES.items() if code.is_floating_point}
_MAX_CODE = 127
_MAX_SCALE = torch.finfo(torch.float16).max


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Views of a payload: times, scales of all layers, codes [num_heads, num_tokens, head_dim] of each.

    codes: K of every layer, then V of every layer. scales: [len(codes), num_heads, num_tokens] if int8, else empty.
    """

    times: Tensor
    scales: Tensor
    codes: Sequence[Tensor]


def exact_dtype(compute: torch.dtype) -> PayloadDtype:
    """The payload that keeps every bit of states of a compute dtype."""
    return _EXACT[compute]


def encode(state: KVState, first: int, stop: int, dtype: PayloadDtype) -> memoryview:
    """Payload of the tokens [first, stop) of a state. Bit exact if dtype is the state's own.

    int8: the scale is the head's largest magnitude / 127, rounded up to float16, and a number errs by at most half of
    it: 1/253 of that magnitude, and 2**-25 more where it is below 8e-3. Magnitudes above 8.3e6 saturate.
    """
    assert 0 <= first < stop <= state.num_tokens
    shape, num_tokens = state.pool.layout.shape, stop - first
    with torch.inference_mode():
        size = sum(_sizes(shape, num_tokens, dtype))
        payload = torch.empty(size, dtype=torch.uint8, device=shape.device)
        blocks = _blocks(payload, shape, num_tokens, dtype)
        blocks.times.copy_(state.times[first:stop])
        layers = [state.read(layer, first, stop) for layer in range(shape.num_layers)]
        sources = [k for k, _ in layers] + [v for _, v in layers]
        if dtype is PayloadDtype.INT8:
            _quantise(sources, blocks)
        else:
            for source, codes in zip(sources, blocks.codes, strict=True):
                codes.copy_(source)
        return payload.cpu().numpy().data


def decode(payloads: Sequence[tuple[memoryview, int]], pool: KVPool, dtype: PayloadDtype) -> KVState:
    """A new state from consecutive payloads, each with its number of tokens; leaves the pool's reserve free. Raises
    Overloaded.

    Payloads for a CUDA pool travel as they are, through pinned memory, and are decoded there.
    """
    shape = pool.layout.shape
    with torch.inference_mode():
        blocks = [_blocks(_tensor(payload, shape.device), shape, count, dtype) for payload, count in payloads]
        state = pool.empty()
        if blocks:
            state = state.extend(torch.cat([block.times for block in blocks]), pool.reserved)
        pages, first = state.pages, 0
        for block, (_, count) in zip(blocks, payloads, strict=True):
            for layer in range(shape.num_layers):
                k, v = (_numbers(block, index, shape.dtype) for index in (layer, shape.num_layers + layer))
                state.layout.write(pages, layer, first, k, v)
            first += count
    return state


def _numbers(blocks: _Blocks, index: int, dtype: torch.dtype) -> Tensor:
    """Codes as numbers; int8 codes are exact in every compute dtype. float16 has the smallest range of all: what was
    rounded up beyond it is its largest number, not infinity.
    """
    codes = blocks.codes[index]
    saturates = dtype == torch.float16 and codes.dtype != torch.float16
    wide = torch.float32 if saturates else dtype
    if codes.dtype == torch.int8:
        codes = codes.to(wide).mul_(blocks.scales[index].unsqueeze(-1))
    return codes.to(wide).clamp(-_MAX_SCALE, _MAX_SCALE) if saturates else codes


def _sizes(shape: KVShape, num_tokens: int, dtype: PayloadDtype) -> list[int]:
    """Bytes of the blocks of a payload: times, scales, codes of K, codes of V."""
    heads = shape.num_layers * shape.num_heads * num_tokens
    codes = [heads * head_dim * dtype.code_bytes for head_dim in (shape.qk_dim, shape.v_dim)]
    return [8 * num_tokens, 2 * heads * dtype.scale_bytes, *codes]


def _blocks(payload: Tensor, shape: KVShape, num_tokens: int, dtype: PayloadDtype) -> _Blocks:
    """Views of a payload: uint8 [num_bytes]."""
    times, scales, k, v = payload.split(_sizes(shape, num_tokens, dtype))
    heads = (shape.num_layers, shape.num_heads, num_tokens)
    k_codes = k.view(_CODES[dtype]).view(*heads, shape.qk_dim)
    v_codes = v.view(_CODES[dtype]).view(*heads, shape.v_dim)
    return _Blocks(
        times.view(torch.int64),
        scales.view(torch.float16).view(-1, shape.num_heads, num_tokens),
        (*k_codes.unbind(), *v_codes.unbind()),
    )


def _tensor(payload: memoryview, device: torch.device) -> Tensor:
    """A payload as uint8 [num_bytes] on a device, in place where it can be. It is never written.

    Bytes objects begin at a multiple of 16, so a payload behind a chunk's header is aligned; any other one is copied.
    """
    tensor = from_dlpack(np.frombuffer(payload, dtype=np.uint8))  # the other ways warn that bytes are read-only
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor if tensor.data_ptr() % 8 == 0 else tensor.clone()


def _quantise(sources: Sequence[Tensor], blocks: _Blocks) -> None:
    """Write the codes and scales of K and V: sources as `blocks.codes`."""
    wide = torch.promote_types(sources[0].dtype, torch.float32)
    scratch = torch.empty(max(source.numel() for source in sources), dtype=wide, device=blocks.scales.device)
    largest = torch.empty(blocks.scales.shape, dtype=wide, device=blocks.scales.device)
    for source, row in zip(sources, largest, strict=True):
        block = scratch[: source.numel()].view(source.shape)  # one for all: fresh pages cost more than the arithmetic
        torch.amax(torch.abs(source.to(wide), out=block), -1, out=row)
    largest.clamp_(max=_MAX_SCALE * _MAX_CODE)
    scales = blocks.scales.copy_(largest / _MAX_CODE)
    scales.view(torch.int16).add_(scales.to(wide) * _MAX_CODE < largest)  # up, where it was rounded down
    factors = scales.to(wide).reciprocal_().masked_fill_(scales == 0, 0.0).unsqueeze(-1)
    for source, codes, factor in zip(sources, blocks.codes, factors, strict=True):
        block = scratch[: source.numel()].view(source.shape)
        codes.copy_(torch.mul(source.to(wide), factor, out=block).round_().clamp_(-_MAX_CODE, _MAX_CODE))
