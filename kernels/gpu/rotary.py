"""Rotary positions of queries and keys, in place: `kernels.rotary` is the definition.

What is left of an angle behind whole quarters of a turn is at most an eighth of one, for which a short series will do:
the library's cosine would keep local memory for angles that never come.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.launch import PACKED, accumulator, padded, triton_type
from kernels.paged import Batch

_ROWS = 16
"""That a program turns at a time, of the rows of its tile."""
_TURN = tl.constexpr(2 * math.pi)


@triton.jit
def _cos_sin(turns, ACC: tl.constexpr):
    """Of angles in turns, float64: Taylor's series up to the 17th power, off by 2e-18."""
    quarters = tl.floor(turns * 4.0 + 0.5)
    x = ((turns - quarters * 0.25) * _TURN).to(ACC)
    square = x * x
    cos = tl.zeros(x.shape, dtype=ACC) + 1.0
    sin = cos
    for i in tl.static_range(8, 0, -1):
        cos = 1.0 - square * cos * (1.0 / ((2 * i - 1) * (2 * i)))
        sin = 1.0 - square * sin * (1.0 / ((2 * i) * (2 * i + 1)))
    sin *= x
    quarter = (quarters - tl.floor(quarters * 0.25) * 4.0).to(tl.int32)
    is_odd = quarter % 2 == 1
    of_cos = tl.where(is_odd, sin, cos)
    of_sin = tl.where(is_odd, cos, sin)
    of_cos = tl.where((quarter == 1) | (quarter == 2), -of_cos, of_cos)
    return of_cos, tl.where(quarter >= 2, -of_sin, of_sin)


@triton.jit(do_not_specialize_on_alignment=PACKED)
def rotate_kernel(
    X,
    SPEEDS,
    ROW_OFFSETS,
    PREFIX_LENS,
    TILES,
    x_row,
    QK_DIM: tl.constexpr,
    QK_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROWS: tl.constexpr,
    OF_TARGETS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Grid: tiles, heads. SPEEDS: float64 [QK_DIM / 2]."""
    user = tl.load(TILES + 2 * tl.program_id(0))
    if user >= 0:
        first = tl.load(TILES + 2 * tl.program_id(0) + 1)
        first_row = tl.load(ROW_OFFSETS + user)
        rows = tl.load(ROW_OFFSETS + user + 1) - first_row
        n = tl.load(PREFIX_LENS + user)
        pair = tl.arange(0, QK_PAD // 2)
        speed = tl.load(SPEEDS + pair, mask=2 * pair < QK_DIM, other=0.0)
        for start in range(0, BLOCK_M, ROWS):
            row = first + start + tl.arange(0, ROWS)
            position = tl.zeros([ROWS], dtype=tl.int32) + n if OF_TARGETS else n - rows + row
            turns = position.to(tl.float64)[:, None] * speed[None, :]
            cos, sin = _cos_sin(turns, ACC)
            mask = (row < rows)[:, None] & (2 * pair < QK_DIM)[None, :]
            at = X + ((first_row + row).to(tl.int64) * x_row + tl.program_id(1) * QK_DIM)[:, None] + 2 * pair[None, :]
            even = tl.load(at, mask=mask, other=0.0).to(ACC)
            odd = tl.load(at + 1, mask=mask, other=0.0).to(ACC)
            tl.store(at, (even * cos - odd * sin).to(X.dtype.element_ty), mask=mask)
            tl.store(at + 1, (odd * cos + even * sin).to(X.dtype.element_ty), mask=mask)


def speeds(qk_dim: int, base: float, device: torch.device) -> Tensor:
    """Turns of each pair of a head from one position to the next: float64 [qk_dim / 2]."""
    pairs = torch.arange(0, qk_dim, 2, dtype=torch.float64)
    return (base ** (pairs / -qk_dim) / (2 * math.pi)).to(device)


def rotate(x: Tensor, batch: Batch, of_pairs: Tensor, *, of_targets: bool) -> None:
    """See `kernels.paged_reference.rotate`. of_pairs: `speeds`."""
    qk_dim = x.shape[2]
    if len(batch.tiles):
        rotate_kernel[(len(batch.tiles), x.shape[1])](
            x,
            of_pairs,
            batch.row_offsets,
            batch.prefix_lens,
            batch.tiles,
            x.stride(0),
            QK_DIM=qk_dim,
            QK_PAD=padded(qk_dim),
            BLOCK_M=batch.tile_rows,
            ROWS=_ROWS,
            OF_TARGETS=of_targets,
            ACC=triton_type(accumulator(x.dtype)),
            num_warps=4,
        )
