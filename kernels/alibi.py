"""ALiBi: a bias that falls with the distance, of each head at a slope of its own; nothing of it is learned.

Source: Press et al. 2021, arXiv 2108.12409, section 3. It is a `RelativeBias` whose weights are given and that has no
buckets of time, so every kernel that computes rab computes it.
"""

import torch

from kernels.bias import RelativeBias


def linear_bias(num_heads: int, num_positions: int) -> RelativeBias:
    """Head h of H falls by 2 ** (-8 (h + 1) / H) a token; tokens num_positions - 1 away and farther share a bias."""
    slopes = 2.0 ** (torch.arange(1, num_heads + 1, dtype=torch.float64) * -8 / num_heads)
    position = (-slopes.unsqueeze(1) * torch.arange(num_positions)).float()
    return RelativeBias(position, torch.zeros(num_heads, 1), torch.zeros(0, dtype=torch.int64))
