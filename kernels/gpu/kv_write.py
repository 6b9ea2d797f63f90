"""The newest tokens' keys and values onto their users' pages, as numbers or in codes; times with the first layer's."""

import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.launch import PACKED, codes_of, padded, pointers
from kernels.gpu.tile import encoded
from kernels.paged import Batch, PagedKV
from kernels.quantise import MAX_CODE


@triton.jit
def _store(
    x_at, mask, out_column, OUT, SCALES, out_at, scale_at, alive, CODES: tl.constexpr, MAX: tl.constexpr,
):  # fmt: skip
    x = tl.load(x_at, mask=mask, other=0.0)
    if CODES:
        wide = x.to(tl.float32)
        scale = tl.div_rn(tl.max(tl.abs(wide), 1), MAX)  # as IEEE divides: codes are the reference's
        scale += tl.sum(wide * 0.0, 1)  # the largest may leave NaN out; this is 0, or NaN
        codes = tl.clamp(tl.div_rn(wide, tl.where(scale > 0, scale, 1.0)[:, None]), -MAX, MAX)
        tl.store(OUT + out_at[:, None] + out_column[None, :], encoded(codes, CODES), mask=mask)
        tl.store(SCALES + scale_at, scale, mask=alive)
    else:
        tl.store(OUT + out_at[:, None] + out_column[None, :], x, mask=mask)


@triton.jit(do_not_specialize=["time_heads"], do_not_specialize_on_alignment=[*PACKED, "NEW_TIMES"])
def kv_write_kernel(
    K,
    V,
    PREFIX_K,
    PREFIX_V,
    K_SCALES,
    V_SCALES,
    TIMES,
    NEW_TIMES,
    ROW_OFFSETS,
    PREFIX_LENS,
    PAGE_OFFSETS,
    PAGES,
    TILES,
    k_row,
    v_row,
    k_page,
    v_page,
    scale_page,
    time_page,
    time_heads,
    QK_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    QK_PAD: tl.constexpr,
    V_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CODES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    MAX: tl.constexpr,
):
    """Grid: tiles, heads. time_heads: 1 if the first head writes times, else 0."""
    head = tl.program_id(1)
    user = tl.load(TILES + 2 * tl.program_id(0))
    if user >= 0:
        row = tl.load(TILES + 2 * tl.program_id(0) + 1) + tl.arange(0, BLOCK_M)
        first_row = tl.load(ROW_OFFSETS + user)
        rows = tl.load(ROW_OFFSETS + user + 1) - first_row
        alive = row < rows
        at = (first_row + row).to(tl.int64)
        position = tl.load(PREFIX_LENS + user) - rows + row
        pages = PAGES + tl.load(PAGE_OFFSETS + user)
        page = tl.load(pages + position // PAGE, mask=alive, other=0).to(tl.int64)
        slot = head * PAGE + position % PAGE
        scale_at = page * scale_page + slot
        timed = alive & (head < time_heads)
        time = tl.load(NEW_TIMES + at, mask=timed, other=0)
        tl.store(TIMES + page * time_page + position % PAGE, time, mask=timed)
        column = tl.arange(0, QK_PAD)
        mask = alive[:, None] & (column < QK_DIM)[None, :]
        _store(
            K + (at * k_row + head * QK_DIM)[:, None] + column[None, :], mask, column, PREFIX_K, K_SCALES,
            page * k_page + slot * QK_DIM, scale_at, alive, CODES, MAX,
        )  # fmt: skip
        column = tl.arange(0, V_PAD)
        mask = alive[:, None] & (column < V_DIM)[None, :]
        v_slot = head * (V_DIM * PAGE) + position % PAGE if TRANSPOSED else slot * V_DIM
        v_number: tl.constexpr = PAGE if TRANSPOSED else 1
        _store(
            V + (at * v_row + head * V_DIM)[:, None] + column[None, :], mask, column * v_number, PREFIX_V, V_SCALES,
            page * v_page + v_slot, scale_at, alive, CODES, MAX,
        )  # fmt: skip


def kv_write(k: Tensor, v: Tensor, kv: PagedKV, batch: Batch, times: Tensor | None = None) -> None:
    """See `kernels.paged_reference.kv_write`."""
    if not len(batch.tiles):
        return
    _, num_heads, qk_dim = k.shape
    kv_write_kernel[(len(batch.tiles), num_heads)](
        k,
        v,
        *pointers(kv),
        kv.times,
        kv.times if times is None else times,
        batch.row_offsets,
        batch.prefix_lens,
        batch.page_offsets,
        batch.pages,
        batch.tiles,
        k.stride(0),
        v.stride(0),
        kv.k.stride(0),
        kv.v.stride(0),
        0 if kv.k_scales is None else kv.k_scales.stride(0),
        kv.times.stride(0),
        0 if times is None else 1,
        QK_DIM=qk_dim,
        V_DIM=v.shape[2],
        QK_PAD=padded(qk_dim),
        V_PAD=padded(v.shape[2]),
        PAGE=kv.page_tokens,
        BLOCK_M=batch.tile_rows,
        CODES=codes_of(kv),
        TRANSPOSED=kv.transposed,
        MAX=MAX_CODE.get(kv.k.dtype, 0.0),
        num_warps=_num_warps(batch.tile_rows * padded(max(qk_dim, v.shape[2])), kv),
    )


def _num_warps(numbers: int, kv: PagedKV) -> int:
    """For a tile of so many. What goes transposed passes from one layout of registers to another."""
    if kv.transposed:
        return min(16, max(4, numbers // 1024))
    return 8 if numbers > 8192 else 4
