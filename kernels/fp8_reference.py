"""Target attention whose two products are of float8 (e4m3) numbers, in plain torch: what the kernel for Hopper computes
on pages of float8 (`kernels.gpu.hopper.fp8_target_attention`).

K and V are codes and scales as they stand on the pages. A row of queries becomes codes that count a power of two of its
own. A weight, once it is multiplied with the scale of its token's values, keeps four significant bits. All else is as
in `kernels.paged_reference`: the scales, the bias and SiLU between the products, the sums, and the targets' own part.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.paged import Batch, PagedKV
from kernels.paged_reference import gather, users

SIGNIFICANT_BITS = 4
"""Of an e4m3 number that is none of the smallest."""
LARGEST_BIT = 7
"""The largest code of a row is 2**7 or more, and less than 2**8."""
_LEAST_STEP = -126
"""As power of two: float32 has no smaller normal number."""


def in_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., dim] as e4m3 codes, and what a code of each row counts, [...]: a power of two."""
    exponents = torch.frexp(x.abs().amax(-1)).exponent - 1 - LARGEST_BIT
    steps = torch.ldexp(torch.ones_like(exponents, dtype=x.dtype), exponents.clamp(min=_LEAST_STEP))
    return (x / steps.unsqueeze(-1)).to(torch.float8_e4m3fn), steps


def shortened(x: Tensor) -> Tensor:
    """Rounded to as many significant bits as e4m3 has, ties to even; of any magnitude.

    A kernel has e4m3's range only: it takes codes that count 2**-7 of the largest weight that a row has in a tile, or
    less, so it is off by 2**-17 of that one where a weight is 2**-13 of it or less.
    """
    mantissas, exponents = torch.frexp(x)
    return torch.ldexp((mantissas * 2**SIGNIFICANT_BITS).round() / 2**SIGNIFICANT_BITS, exponents)


def target_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: PagedKV,
    batch: Batch,
    prefix_bias: Tensor | None,
    own_bias: Tensor | None,
    *,
    logit_scale: float,
    norm: float,
) -> Tensor:
    """`kernels.paged_reference.target_attention` with float8 products; kv: in float8 codes."""
    assert kv.v_scales is not None and kv.v.dtype == torch.float8_e4m3fn
    out = q.new_empty(*q.shape[:2], v.shape[2])
    for user in users(batch):
        rows, n, first = user.rows, user.prefix_len, user.first_page * kv.page_tokens
        codes, steps = in_codes(q[rows])
        queries = codes.to(q.dtype) * steps.unsqueeze(-1)
        keys, _ = gather(kv, user.pages, n, q.dtype)
        logits = torch.einsum("mhd,hnd->hmn", queries, keys) * logit_scale
        own = (q[rows] * k[rows]).sum(-1) * logit_scale  # [m, H]
        if prefix_bias is not None:
            logits += prefix_bias[:, None, first : first + n].to(q.dtype)
        if own_bias is not None:
            own += own_bias
        scales = kv.v_scales[user.pages].transpose(0, 1).flatten(1)[:, None, :n]  # [H, 1, n]
        values = kv.v[user.pages].to(q.dtype).transpose(0, 1).flatten(1, 2)[:, :n]
        weights = shortened(functional.silu(logits) * scales)
        sums = torch.einsum("hmn,hnd->mhd", weights, values)
        out[rows] = (sums + functional.silu(own).unsqueeze(-1) * v[rows]) / norm
    return out
