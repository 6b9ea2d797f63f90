"""A few rows a program: LayerNorm before the projection, and LayerNorm and gate behind the attention."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.launch import VARYING, accumulator, triton_type

_BLOCK = 4_096
"""Numbers of one program."""
FEW_ROWS = 1_024
"""Up to so many rows `norm_gate` has a program for each, which fetches several parts at once."""


@triton.jit
def _normed(x, mask, column, WEIGHT, BIAS, EPS: tl.constexpr, DIM: tl.constexpr, AFFINE: tl.constexpr):
    """LayerNorm of rows x [ROWS, PAD], zero beyond DIM."""
    mean = tl.sum(x, 1) / DIM
    centered = tl.where(mask, x - mean[:, None], 0.0)
    out = centered / tl.sqrt(tl.sum(centered * centered, 1) / DIM + EPS)[:, None]
    if AFFINE:
        weight = tl.load(WEIGHT + column, mask=column < DIM, other=0.0)
        bias = tl.load(BIAS + column, mask=column < DIM, other=0.0)
        out = out * weight[None, :] + bias[None, :]
    return out


@triton.jit(do_not_specialize=VARYING)
def layer_norm_kernel(
    X,
    WEIGHT,
    BIAS,
    OUT,
    x_row,
    num_rows,
    ROWS: tl.constexpr,
    EPS: tl.constexpr,
    DIM: tl.constexpr,
    PAD: tl.constexpr,
    AFFINE: tl.constexpr,
    ACC: tl.constexpr,
):
    """Grid: blocks of rows."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, PAD)
    mask = (row < num_rows)[:, None] & (column < DIM)[None, :]
    x = tl.load(X + row[:, None] * x_row + column[None, :], mask=mask, other=0.0).to(ACC)
    out = _normed(x, mask, column, WEIGHT, BIAS, EPS, DIM, AFFINE)
    tl.store(OUT + row[:, None] * DIM + column[None, :], out, mask=mask)


@triton.jit(do_not_specialize=VARYING)
def norm_gate_kernel(
    PARTS,
    U,
    WEIGHT,
    BIAS,
    OUT,
    u_row,
    num_rows,
    num_splits,
    ROWS: tl.constexpr,
    EPS: tl.constexpr,
    DIM: tl.constexpr,
    PAD: tl.constexpr,
    AFFINE: tl.constexpr,
    CONCAT: tl.constexpr,
    AT_ONCE: tl.constexpr,
    ACC: tl.constexpr,
):
    """Grid: blocks of rows. PARTS: [num_splits, num_rows, DIM]. AT_ONCE: parts that are fetched together."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, PAD)
    mask = (row < num_rows)[:, None] & (column < DIM)[None, :]
    attended = tl.zeros([ROWS, PAD], dtype=ACC)
    for first in range(0, num_splits, AT_ONCE):
        for split in tl.static_range(AT_ONCE):
            at = ((first + split) * num_rows.to(tl.int64) + row) * DIM
            alive = mask & (first + split < num_splits)
            attended += tl.load(PARTS + at[:, None] + column[None, :], mask=alive, other=0.0).to(ACC)
    # As it would be if attention gave numbers of this type.
    attended = attended.to(OUT.dtype.element_ty).to(ACC)
    u = tl.load(U + row[:, None] * u_row + column[None, :], mask=mask, other=0.0).to(ACC)
    gated = u * _normed(attended, mask, column, WEIGHT, BIAS, EPS, DIM, AFFINE)
    if CONCAT:
        at = OUT + row[:, None] * (3 * DIM) + column[None, :]
        tl.store(at, u, mask=mask)
        tl.store(at + DIM, attended, mask=mask)
        tl.store(at + 2 * DIM, gated, mask=mask)
    else:
        tl.store(OUT + row[:, None] * DIM + column[None, :], gated, mask=mask)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """See `kernels.paged_reference.layer_norm`."""
    num_rows, dim = x.shape
    out = torch.empty(num_rows, dim, dtype=x.dtype, device=x.device)
    if num_rows:
        rows = _rows(dim)
        layer_norm_kernel[(triton.cdiv(num_rows, rows),)](
            x,
            x if weight is None else weight,
            x if bias is None else bias,
            out,
            x.stride(0),
            num_rows,
            ROWS=rows,
            EPS=eps,
            DIM=dim,
            PAD=triton.next_power_of_2(dim),
            AFFINE=weight is not None,
            ACC=triton_type(accumulator(x.dtype)),
            num_warps=4,
        )
    return out


def norm_gate(
    attended: Tensor, u: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, concat: bool
) -> Tensor:
    """See `kernels.paged_reference.norm_gate`; attended may come in parts to be added, [splits, num_rows, width]."""
    num_rows, dim = u.shape
    parts = attended.view(-1, num_rows, dim) if num_rows else attended
    out = torch.empty(num_rows, 3 * dim if concat else dim, dtype=u.dtype, device=u.device)
    if num_rows:
        rows = gate_rows(num_rows, dim)
        norm_gate_kernel[(triton.cdiv(num_rows, rows),)](
            parts,
            u,
            u if weight is None else weight,
            u if bias is None else bias,
            out,
            u.stride(0),
            num_rows,
            len(parts),
            ROWS=rows,
            EPS=eps,
            DIM=dim,
            PAD=triton.next_power_of_2(dim),
            AFFINE=weight is not None,
            CONCAT=concat,
            AT_ONCE=4 if num_rows <= FEW_ROWS else 1,
            ACC=triton_type(accumulator(u.dtype)),
            num_warps=4,
        )
    return out


def gate_rows(num_rows: int, dim: int) -> int:
    """Rows of a program of `norm_gate`."""
    return 1 if num_rows <= FEW_ROWS else _rows(dim)


def _rows(dim: int) -> int:
    """Rows of a program."""
    return max(1, _BLOCK >> (dim - 1).bit_length())
