"""M-FALCON's attention: tiles of targets stay in registers, the pages of their user's prefix go by.

HSTU paper, section 3.4. Silu attention adds, so a prefix may be split over programs, each with a sum of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.launch import PACKED, VARYING, attention_launch, codes_of, of_reach, padded, pointers
from kernels.gpu.tile import decoded, product, seen_blocks, silu
from kernels.paged import Batch, PagedKV
from kernels.reach import Reach


@triton.jit
def _attend(  # noqa: PLR0912 (branches of the compiler, not of the code that it makes)
    acc,
    q,
    start,
    stop,
    pages,
    head,
    bias,
    PREFIX_K,
    PREFIX_V,
    K_SCALES,
    V_SCALES,
    BIAS,
    k_page,
    v_page,
    scale_page,
    near,
    reach_first,
    LOGIT_SCALE: tl.constexpr,
    QK_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    QK_PAD: tl.constexpr,
    V_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_REACH: tl.constexpr,
    CODES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    FAST: tl.constexpr,
    UPCAST: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add the prefix tokens [start, stop) to acc; start is a multiple of BLOCK_N. MASKED: stop may be none. HAS_REACH,
    which needs that: of these the ones before `reach_first`, and from `near` on.
    """
    in_block = tl.arange(0, BLOCK_N)
    qk_column, v_column = tl.arange(0, QK_PAD), tl.arange(0, V_PAD)
    v_token: tl.constexpr = 1 if TRANSPOSED else V_DIM
    v_number: tl.constexpr = PAGE if TRANSPOSED else 1
    following = tl.load(pages + start // PAGE, mask=start < stop, other=0)
    for first in range(start, stop, BLOCK_N):
        # Where the next keys stand is known before they are fetched: nothing waits for the page table.
        page = following.to(tl.int64)
        following = tl.load(pages + tl.minimum(first + BLOCK_N, stop - 1) // PAGE)
        slot = head * PAGE + first % PAGE
        k_at = PREFIX_K + (page * k_page + slot * QK_DIM) + in_block * QK_DIM
        v_slot = head * (V_DIM * PAGE) + first % PAGE if TRANSPOSED else slot * V_DIM
        v_at = PREFIX_V + (page * v_page + v_slot) + in_block * v_token
        alive = first + in_block < stop
        k_mask = (qk_column < QK_DIM)[:, None] & alive[None, :]
        v_mask = alive[:, None] & (v_column < V_DIM)[None, :]
        if MASKED:
            k = tl.load(k_at[None, :] + qk_column[:, None], mask=k_mask, other=0)  # [QK_PAD, BLOCK_N]
            v = tl.load(v_at[:, None] + v_column[None, :] * v_number, mask=v_mask, other=0)  # [BLOCK_N, V_PAD]
        else:
            if QK_DIM == QK_PAD:
                k = tl.load(k_at[None, :] + qk_column[:, None])
            else:
                k = tl.load(k_at[None, :] + qk_column[:, None], mask=(qk_column < QK_DIM)[:, None], other=0)
            if V_DIM == V_PAD:
                v = tl.load(v_at[:, None] + v_column[None, :] * v_number)
            else:
                v = tl.load(v_at[:, None] + v_column[None, :] * v_number, mask=(v_column < V_DIM)[None, :], other=0)
        logits = tl.zeros([q.shape[0], BLOCK_N], dtype=acc.dtype)
        logits = product(q, decoded(k, CODES, q.dtype, UPCAST), logits, UPCAST)
        if CODES:
            scales_at = page * scale_page + slot + in_block
            logits *= (tl.load(K_SCALES + scales_at, mask=alive, other=0.0) * LOGIT_SCALE)[None, :]
        else:
            logits *= LOGIT_SCALE
        if HAS_BIAS:
            logits += tl.load(BIAS + bias + first + in_block, mask=alive, other=0.0).to(acc.dtype)[None, :]
        weights = silu(logits, FAST)  # [BLOCK_M, BLOCK_N]
        if HAS_REACH:
            alive &= (first + in_block >= near) | (first + in_block < reach_first)
        if MASKED:
            weights = tl.where(alive[None, :], weights, 0.0)
        if CODES:
            weights *= tl.load(V_SCALES + scales_at, mask=alive, other=0.0)[None, :]
        acc = product(weights.to(q.dtype), decoded(v, CODES, q.dtype, UPCAST), acc, UPCAST)
    return acc


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=PACKED)
def target_attention_kernel(
    Q,
    K,
    V,
    OUT,
    PREFIX_K,
    PREFIX_V,
    K_SCALES,
    V_SCALES,
    BIAS,
    OWN_BIAS,
    ROW_OFFSETS,
    PREFIX_LENS,
    PAGE_OFFSETS,
    PAGES,
    TILES,
    q_row,
    k_row,
    v_row,
    k_page,
    v_page,
    scale_page,
    bias_head,
    num_rows,
    reach_back,
    reach_first,
    LOGIT_SCALE: tl.constexpr,
    NORM: tl.constexpr,
    QK_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    QK_PAD: tl.constexpr,
    V_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_REACH: tl.constexpr,
    CODES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACC: tl.constexpr,
    FAST: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid: tiles, heads, splits. OUT: [splits, num_rows, num_heads, V_DIM], sums of each split."""
    head, split = tl.program_id(1), tl.program_id(2)
    num_heads, num_splits = tl.num_programs(1), tl.num_programs(2)
    user = tl.load(TILES + 2 * tl.program_id(0))
    if user >= 0:
        row = tl.load(TILES + 2 * tl.program_id(0) + 1) + tl.arange(0, BLOCK_M)
        first_row = tl.load(ROW_OFFSETS + user)
        alive = row < tl.load(ROW_OFFSETS + user + 1) - first_row
        at = (first_row + row).to(tl.int64)
        qk_column, v_column = tl.arange(0, QK_PAD), tl.arange(0, V_PAD)
        qk_mask = alive[:, None] & (qk_column < QK_DIM)[None, :]
        v_mask = alive[:, None] & (v_column < V_DIM)[None, :]
        q = tl.load(Q + (at * q_row + head * QK_DIM)[:, None] + qk_column[None, :], mask=qk_mask, other=0.0)
        acc = tl.zeros([BLOCK_M, V_PAD], dtype=ACC)
        if split == 0:
            k = tl.load(K + (at * k_row + head * QK_DIM)[:, None] + qk_column[None, :], mask=qk_mask, other=0.0)
            v = tl.load(V + (at * v_row + head * V_DIM)[:, None] + v_column[None, :], mask=v_mask, other=0.0)
            own = tl.sum(q.to(ACC) * k.to(ACC), 1) * LOGIT_SCALE
            if HAS_BIAS:
                own += tl.load(OWN_BIAS + head).to(ACC)
            acc += silu(own, FAST)[:, None] * v.to(ACC)
        n = tl.load(PREFIX_LENS + user)
        first_page = tl.load(PAGE_OFFSETS + user)
        pages = PAGES + first_page
        bias = tl.multiple_of(head * bias_head.to(tl.int64) + first_page.to(tl.int64) * PAGE, PAGE)
        if HAS_REACH:
            near = tl.maximum(n - reach_back, 0)
            start, full, rest, stop = seen_blocks(near, reach_first, n, split, num_splits, BLOCK_N)
        else:
            near = 0
            blocks = tl.cdiv(tl.cdiv(n, BLOCK_N), num_splits)
            start = tl.minimum(split * blocks * BLOCK_N, n)
            stop = tl.minimum(start + blocks * BLOCK_N, n)
            full = stop // BLOCK_N * BLOCK_N
            rest = tl.maximum(start, full)
        acc = _attend(
            acc, q, start, full, pages, head, bias, PREFIX_K, PREFIX_V, K_SCALES, V_SCALES, BIAS, k_page, v_page,
            scale_page, near, reach_first, LOGIT_SCALE, QK_DIM, V_DIM, QK_PAD, V_PAD, PAGE, BLOCK_N, HAS_BIAS,
            HAS_REACH, CODES, TRANSPOSED, FAST, UPCAST, HAS_REACH,
        )  # fmt: skip
        acc = _attend(
            acc, q, rest, stop, pages, head, bias, PREFIX_K, PREFIX_V, K_SCALES, V_SCALES, BIAS, k_page, v_page,
            scale_page, near, reach_first, LOGIT_SCALE, QK_DIM, V_DIM, QK_PAD, V_PAD, PAGE, BLOCK_N, HAS_BIAS,
            HAS_REACH, CODES, TRANSPOSED, FAST, UPCAST, True,
        )  # fmt: skip
        out = ((split * num_rows.to(tl.int64) + at) * num_heads + head) * V_DIM
        tl.store(OUT + out[:, None] + v_column[None, :], acc / NORM, mask=v_mask)


def target_attention_parts(
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
    reach: Reach | None = None,
) -> Tensor:
    """`kernels.paged_reference.target_attention` in batch.splits parts to be added: [splits, num_rows, num_heads,
    v_dim], float32 (float64 for float64).
    """
    num_rows, num_heads, qk_dim = q.shape
    v_dim = v.shape[2]
    launch = attention_launch("target_attention", q, kv, batch)
    out = torch.empty(batch.splits, num_rows, num_heads, v_dim, dtype=launch.acc, device=q.device)
    if not len(batch.tiles):
        return out
    target_attention_kernel[(len(batch.tiles), num_heads, batch.splits)](
        q,
        k,
        v,
        out,
        *pointers(kv),
        q if prefix_bias is None else prefix_bias,
        q if own_bias is None else own_bias,
        batch.row_offsets,
        batch.prefix_lens,
        batch.page_offsets,
        batch.pages,
        batch.tiles,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        kv.k.stride(0),
        kv.v.stride(0),
        0 if kv.k_scales is None else kv.k_scales.stride(0),
        0 if prefix_bias is None else prefix_bias.stride(0),
        num_rows,
        *of_reach(reach, targets=True),
        LOGIT_SCALE=logit_scale,
        NORM=norm,
        QK_DIM=qk_dim,
        V_DIM=v_dim,
        QK_PAD=padded(qk_dim),
        V_PAD=padded(v_dim),
        PAGE=kv.page_tokens,
        HAS_BIAS=prefix_bias is not None,
        HAS_REACH=reach is not None,
        CODES=codes_of(kv),
        TRANSPOSED=kv.transposed,
        **launch.options(kv.page_tokens),
    )
    return out


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
    reach: Reach | None = None,
) -> Tensor:
    """See `kernels.paged_reference.target_attention`."""
    parts = target_attention_parts(
        q, k, v, kv, batch, prefix_bias, own_bias, logit_scale=logit_scale, norm=norm, reach=reach
    )
    return torch.sum(parts, 0).to(q.dtype)
