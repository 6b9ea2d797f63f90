"""A projection with what follows it on its output while that is in registers: bias, SiLU, residual."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import silu as silu_in_place

from kernels.gpu.launch import VARYING, linear_launch
from kernels.gpu.tile import product, silu


@triton.jit(do_not_specialize=VARYING)
def linear_kernel(
    X,
    WEIGHT,
    BIAS,
    RESIDUAL,
    OUT,
    num_rows,
    num_out,
    x_row,
    residual_row,
    NUM_IN: tl.constexpr,
    NUM_SILU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
    FAST: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid: see `grid`."""
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_alive, column_alive = row < num_rows, column < num_out
    # Rows and columns beyond the last read the last one: no mask in the loop, and nothing of theirs is stored.
    x_at = X + tl.minimum(row, num_rows - 1).to(tl.int64)[:, None] * x_row
    weight_at = WEIGHT + tl.minimum(column, num_out - 1).to(tl.int64)[None, :] * NUM_IN
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=ACC)
    for first in range(0, NUM_IN, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K)
        if NUM_IN % BLOCK_K == 0:
            x = tl.load(x_at + inner[None, :])
            weight = tl.load(weight_at + inner[:, None])
        else:
            x = tl.load(x_at + inner[None, :], mask=(inner < NUM_IN)[None, :], other=0.0)
            weight = tl.load(weight_at + inner[:, None], mask=(inner < NUM_IN)[:, None], other=0.0)
        acc = product(x, weight, acc, UPCAST)
    if HAS_BIAS:
        acc += tl.load(BIAS + column, mask=column_alive, other=0.0).to(ACC)[None, :]
    if NUM_SILU:
        acc = tl.where((column < NUM_SILU)[None, :], silu(acc, FAST), acc)
    mask = row_alive[:, None] & column_alive[None, :]
    if HAS_RESIDUAL:
        at = RESIDUAL + row.to(tl.int64)[:, None] * residual_row + column[None, :]
        acc += tl.load(at, mask=mask, other=0.0).to(ACC)
    tl.store(OUT + row.to(tl.int64)[:, None] * num_out + column[None, :], acc, mask=mask)


def grid(num_rows: int, num_out: int, block_m: int, block_n: int) -> tuple[int, int]:
    """Blocks of columns, then blocks of rows, and a device starts the first axis first: all columns of some rows run
    together, so rows are read from memory once, and the weights, which are far fewer, stay in the cache.
    """
    return triton.cdiv(num_out, block_n), triton.cdiv(num_rows, block_m)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, num_silu: int = 0
) -> Tensor:
    """See `kernels.paged_reference.linear`. By the kernel, or where that was measured to be faster by the library."""
    (num_rows, num_in), num_out = x.shape, len(weight)
    out = torch.empty(num_rows, num_out, dtype=x.dtype, device=x.device)
    if not num_rows:
        return out
    launch = linear_launch(x, num_out)
    if launch is None:
        return by_library(x, weight, bias, residual, num_silu)
    linear_kernel[grid(num_rows, num_out, launch.block_m, launch.block_n)](
        x,
        weight,
        x if bias is None else bias,
        x if residual is None else residual,
        out,
        num_rows,
        num_out,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        NUM_IN=num_in,
        NUM_SILU=num_silu,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        **launch.options(),
    )
    return out


def by_library(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, num_silu: int) -> Tensor:
    """`linear` by `torch.addmm`: what is added rides with the product where nothing stands between; what follows is a
    pass of its own over the output, so that is rounded once more.
    """
    addend = bias if residual is None or num_silu else residual
    out = torch.mm(x, weight.T) if addend is None else torch.addmm(addend, x, weight.T)
    if bias is not None and addend is not bias:
        out += bias
    if num_silu:
        silu_in_place(out[:, :num_silu], inplace=True)
    if residual is not None and addend is not residual:
        out += residual
    return out
