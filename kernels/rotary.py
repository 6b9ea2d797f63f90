"""Rotary positions (RoPE): what a query and a key have in common depends on their distance, not on where they stand.

Source: RoFormer (Su et al. 2021, arXiv 2104.09864, section 3.2.2). Angles are made in float64 whatever is turned, so
that every backend turns a token by the same angle at any position.
"""

import torch
from torch import Tensor


def rotated(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Each head of x with its neighbours (2i, 2i + 1) turned by position * base ** (-2i / head_dim); differentiable.

    x: [..., n, num_heads, head_dim], head_dim even. positions: int64, broadcasts to [..., n]. Returns the shape and
    dtype of x; computed in float32 or above.
    """
    head_dim = x.shape[-1]
    assert head_dim % 2 == 0, f"head_dim: {head_dim} is odd, its numbers have no pairs"
    speed = base ** (torch.arange(0, head_dim, 2, dtype=torch.float64, device=x.device) / -head_dim)
    angle = (positions.unsqueeze(-1) * speed).unsqueeze(-2)  # [..., n, 1, head_dim / 2]
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(wide), angle.sin().to(wide)
    even, odd = x.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)
