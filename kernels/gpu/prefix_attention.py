"""Causal attention of the newest tokens of a prefix over all of it, on pages: prefill and append.

rab^{p,t} is computed inside the tile (HSTU paper, section 3.2). Tiles of keys that all queries see need no mask.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.bias import RelativeBias
from kernels.gpu.launch import PACKED, VARYING, attention_launch, bisections, codes_of, of_reach, padded, pointers
from kernels.gpu.tile import decoded, product, seen_blocks, silu, tile_by_tile, time_bucket
from kernels.paged import Batch, PagedKV
from kernels.reach import Reach

_LATEST = tl.constexpr(2**63 - 1)


@triton.jit
def pair_bias(
    position, key, time, earliest, latest, key_time, alive, head, POSITION_BIAS, TIME_BIAS, THRESHOLDS, num_positions,
    num_buckets, STEPS: tl.constexpr, ACC: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """rab of a tile, [BLOCK_M, BLOCK_N], of both kinds of attention. earliest, latest: of the queries' times."""
    distance = tl.minimum(tl.maximum(position[:, None] - key[None, :], 0), num_positions - 1)
    # The differences of a tile fall into few buckets: what differs between its elements is counted only there.
    first_time = tl.min(tl.where(alive, key_time, _LATEST) if MASKED else key_time)
    last_time = tl.max(tl.where(alive, key_time, -_LATEST) if MASKED else key_time)
    low = time_bucket(earliest - last_time, THRESHOLDS, num_buckets, STEPS)
    high = time_bucket(latest - first_time, THRESHOLDS, num_buckets, STEPS)
    bucket = tl.zeros(distance.shape, dtype=tl.int32) + low
    if low < high:  # in a branch, lest the loop over keys count as an outer one, which is not pipelined
        for index in range(low, high):
            threshold = tl.load(THRESHOLDS + index)
            bucket += (time - threshold)[:, None] >= key_time[None, :]
    by_position = tl.load(POSITION_BIAS + head * num_positions + distance.to(tl.uint32)).to(ACC)
    return by_position + tl.load(TIME_BIAS + head * (num_buckets + 1) + bucket.to(tl.uint32)).to(ACC)


@triton.jit
def _attend(  # noqa: PLR0912 (branches of the compiler, not of the code that it makes)
    acc,
    q,
    start,
    stop,
    last_key,
    position,
    time,
    earliest,
    latest,
    pages,
    head,
    PREFIX_K,
    PREFIX_V,
    K_SCALES,
    V_SCALES,
    TIMES,
    POSITION_BIAS,
    TIME_BIAS,
    THRESHOLDS,
    k_page,
    v_page,
    scale_page,
    time_page,
    num_positions,
    num_buckets,
    reach_back,
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
    STEPS: tl.constexpr,
    CODES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    FAST: tl.constexpr,
    UPCAST: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add the prefix tokens [start, stop) to acc; start is a multiple of BLOCK_N.

    position: of the queries in the prefix; time: their times, earliest to latest. MASKED: not all of them see all of
    these keys. HAS_REACH, which needs that: a query sees `reach_back` keys before its own, and those before
    `reach_first`.
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
        key = first + in_block
        alive = key <= last_key
        k_at = PREFIX_K + (page * k_page + slot * QK_DIM) + in_block * QK_DIM
        v_slot = head * (V_DIM * PAGE) + first % PAGE if TRANSPOSED else slot * V_DIM
        v_at = PREFIX_V + (page * v_page + v_slot) + in_block * v_token
        k_mask = (qk_column < QK_DIM)[:, None]
        v_mask = (v_column < V_DIM)[None, :]
        if MASKED:
            k_mask &= alive[None, :]
            v_mask &= alive[:, None]
        if MASKED | (QK_DIM != QK_PAD):
            k = tl.load(k_at[None, :] + qk_column[:, None], mask=k_mask, other=0)  # [QK_PAD, BLOCK_N]
        else:
            k = tl.load(k_at[None, :] + qk_column[:, None])
        if MASKED | (V_DIM != V_PAD):
            v = tl.load(v_at[:, None] + v_column[None, :] * v_number, mask=v_mask, other=0)  # [BLOCK_N, V_PAD]
        else:
            v = tl.load(v_at[:, None] + v_column[None, :] * v_number)
        if HAS_BIAS:
            times_at = TIMES + (page * time_page + first % PAGE) + in_block
            key_time = tl.load(times_at, mask=alive, other=0) if MASKED else tl.load(times_at)
            bias = pair_bias(
                position, key, time, earliest, latest, key_time, alive, head, POSITION_BIAS, TIME_BIAS, THRESHOLDS,
                num_positions, num_buckets, STEPS, acc.dtype, MASKED,
            )  # fmt: skip
        logits = tl.zeros([q.shape[0], BLOCK_N], dtype=acc.dtype)
        logits = product(q, decoded(k, CODES, q.dtype, UPCAST), logits, UPCAST)
        if CODES:
            scales_at = page * scale_page + slot + in_block
            logits *= (tl.load(K_SCALES + scales_at, mask=alive, other=0.0) * LOGIT_SCALE)[None, :]
        else:
            logits *= LOGIT_SCALE
        if HAS_BIAS:
            logits += bias
        weights = silu(logits, FAST)  # [BLOCK_M, BLOCK_N]
        if MASKED:
            sees = position[:, None] >= key[None, :]
            if HAS_REACH:
                sees &= (position[:, None] - key[None, :] <= reach_back) | (key < reach_first)[None, :]
            weights = tl.where(sees, weights, 0.0)
        if CODES:
            weights *= tl.load(V_SCALES + scales_at, mask=alive, other=0.0)[None, :]
        acc = product(weights.to(q.dtype), decoded(v, CODES, q.dtype, UPCAST), acc, UPCAST)
    return acc


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=PACKED)
def prefix_attention_kernel(
    Q,
    OUT,
    PREFIX_K,
    PREFIX_V,
    K_SCALES,
    V_SCALES,
    TIMES,
    POSITION_BIAS,
    TIME_BIAS,
    THRESHOLDS,
    ROW_OFFSETS,
    PREFIX_LENS,
    PAGE_OFFSETS,
    PAGES,
    TILES,
    q_row,
    k_page,
    v_page,
    scale_page,
    time_page,
    num_positions,
    num_buckets,
    num_rows,
    num_splits,
    reach_back,
    reach_first,
    NUM_HEADS: tl.constexpr,
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
    STEPS: tl.constexpr,
    CODES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACC: tl.constexpr,
    FAST: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid: tiles times heads times splits, the longest tile first, lest it be alone at the end. OUT: [splits,
    num_rows, NUM_HEADS, V_DIM], sums of each split.
    """
    tile, head, split = tile_by_tile(tl.program_id(0), num_splits, NUM_HEADS)
    user = tl.load(TILES + 2 * tile)
    if user >= 0:
        first = tl.load(TILES + 2 * tile + 1)
        row = first + tl.arange(0, BLOCK_M)
        first_row = tl.load(ROW_OFFSETS + user)
        rows = tl.load(ROW_OFFSETS + user + 1) - first_row
        alive = row < rows
        at = (first_row + row).to(tl.int64)
        qk_column, v_column = tl.arange(0, QK_PAD), tl.arange(0, V_PAD)
        qk_mask = alive[:, None] & (qk_column < QK_DIM)[None, :]
        v_mask = alive[:, None] & (v_column < V_DIM)[None, :]
        q = tl.load(Q + (at * q_row + head * QK_DIM)[:, None] + qk_column[None, :], mask=qk_mask, other=0.0)
        acc = tl.zeros([BLOCK_M, V_PAD], dtype=ACC)
        before = tl.load(PREFIX_LENS + user) - rows
        position = before + row
        pages = PAGES + tl.load(PAGE_OFFSETS + user)
        time = tl.zeros([BLOCK_M], dtype=tl.int64)
        if HAS_BIAS:
            page = tl.load(pages + position // PAGE, mask=alive, other=0).to(tl.int64)
            time = tl.load(TIMES + page * time_page + position % PAGE, mask=alive, other=0)
        earliest = tl.min(tl.where(alive, time, _LATEST))
        latest = tl.max(tl.where(alive, time, -_LATEST))
        n = before + tl.minimum(first + BLOCK_M, rows)  # keys that the last query of the tile sees
        if HAS_REACH:
            near = tl.maximum(before + first - reach_back, 0)
            start, full, rest, stop = seen_blocks(near, reach_first, n, split, num_splits, BLOCK_N)
        else:
            blocks = tl.cdiv(tl.cdiv(n, BLOCK_N), num_splits)
            start = tl.minimum(split * blocks * BLOCK_N, n)
            stop = tl.minimum(start + blocks * BLOCK_N, n)
            seen_by_all = (before + first + 1) // BLOCK_N * BLOCK_N
            full = tl.minimum(tl.maximum(seen_by_all, start), stop)
            rest = full
        acc = _attend(
            acc, q, start, full, n - 1, position, time, earliest, latest, pages, head, PREFIX_K, PREFIX_V, K_SCALES,
            V_SCALES, TIMES, POSITION_BIAS, TIME_BIAS, THRESHOLDS, k_page, v_page, scale_page, time_page,
            num_positions, num_buckets, reach_back, reach_first, LOGIT_SCALE, QK_DIM, V_DIM, QK_PAD, V_PAD, PAGE,
            BLOCK_N, HAS_BIAS, HAS_REACH, STEPS, CODES, TRANSPOSED, FAST, UPCAST, HAS_REACH,
        )  # fmt: skip
        acc = _attend(
            acc, q, rest, stop, n - 1, position, time, earliest, latest, pages, head, PREFIX_K, PREFIX_V, K_SCALES,
            V_SCALES, TIMES, POSITION_BIAS, TIME_BIAS, THRESHOLDS, k_page, v_page, scale_page, time_page,
            num_positions, num_buckets, reach_back, reach_first, LOGIT_SCALE, QK_DIM, V_DIM, QK_PAD, V_PAD, PAGE,
            BLOCK_N, HAS_BIAS, HAS_REACH, STEPS, CODES, TRANSPOSED, FAST, UPCAST, True,
        )  # fmt: skip
        out = ((split * num_rows.to(tl.int64) + at) * NUM_HEADS + head) * V_DIM
        tl.store(OUT + out[:, None] + v_column[None, :], acc / NORM, mask=v_mask)


def prefix_attention_parts(
    q: Tensor,
    kv: PagedKV,
    batch: Batch,
    bias: RelativeBias | None,
    *,
    logit_scale: float,
    norm: float,
    reach: Reach | None = None,
) -> Tensor:
    """`kernels.paged_reference.prefix_attention` in batch.splits parts to be added: [splits, num_rows, num_heads,
    v_dim], float32 (float64 for float64).
    """
    num_rows, num_heads, qk_dim = q.shape
    v_dim = kv.v.shape[3]
    launch = attention_launch("prefix_attention" if bias is None else "prefix_attention_bias", q, kv, batch)
    out = torch.empty(batch.splits, num_rows, num_heads, v_dim, dtype=launch.acc, device=q.device)
    if not len(batch.tiles):
        return out
    weights = (q, q, q) if bias is None else (bias.position, bias.time, bias.thresholds)
    prefix_attention_kernel[(len(batch.tiles) * num_heads * batch.splits,)](
        q,
        out,
        *pointers(kv),
        kv.times,
        *weights,
        batch.row_offsets,
        batch.prefix_lens,
        batch.page_offsets,
        batch.pages,
        batch.tiles,
        q.stride(0),
        kv.k.stride(0),
        kv.v.stride(0),
        0 if kv.k_scales is None else kv.k_scales.stride(0),
        kv.times.stride(0),
        0 if bias is None else bias.position.shape[1],
        0 if bias is None else len(bias.thresholds),
        num_rows,
        batch.splits,
        *of_reach(reach),
        NUM_HEADS=num_heads,
        LOGIT_SCALE=logit_scale,
        NORM=norm,
        QK_DIM=qk_dim,
        V_DIM=v_dim,
        QK_PAD=padded(qk_dim),
        V_PAD=padded(v_dim),
        PAGE=kv.page_tokens,
        HAS_BIAS=bias is not None,
        HAS_REACH=reach is not None,
        STEPS=0 if bias is None else bisections(len(bias.thresholds)),
        CODES=codes_of(kv),
        TRANSPOSED=kv.transposed,
        **launch.options(kv.page_tokens),
    )
    return out


def prefix_attention(
    q: Tensor,
    kv: PagedKV,
    batch: Batch,
    bias: RelativeBias | None,
    *,
    logit_scale: float,
    norm: float,
    reach: Reach | None = None,
) -> Tensor:
    """See `kernels.paged_reference.prefix_attention`."""
    parts = prefix_attention_parts(q, kv, batch, bias, logit_scale=logit_scale, norm=norm, reach=reach)
    return torch.sum(parts, 0).to(q.dtype)
