"""8-bit codes of K and V on pages: every token of a head is codes times one scale."""

import torch
from torch import Tensor

MAX_CODE = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Types of codes, and the largest: a token's scale is its largest magnitude / MAX_CODE."""


def quantised(x: Tensor, codes: torch.dtype) -> tuple[Tensor, Tensor]:
    """Numbers [..., head_dim] as codes, rounded to nearest, ties to even, and float32 scales [...]."""
    wide = x.float()
    # As IEEE divides on every device: by a number of Python CUDA multiplies, which is a bit off now and then.
    scales = wide.abs().amax(-1) / wide.new_full((), MAX_CODE[codes])
    divided = wide / scales.where(scales > 0, 1.0).unsqueeze(-1)
    if codes == torch.int8:
        divided = divided.round()
    return divided.clamp(-MAX_CODE[codes], MAX_CODE[codes]).to(codes), scales


def dequantised(codes: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Codes [..., head_dim] and their scales [...] as numbers of a dtype; without scales the codes are the numbers."""
    if scales is None:
        return codes.to(dtype)
    return (codes.to(torch.promote_types(dtype, torch.float32)) * scales.unsqueeze(-1)).to(dtype)
