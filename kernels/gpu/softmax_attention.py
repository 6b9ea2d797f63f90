"""Softmax attention on pages, of the newest tokens of a prefix and of targets: their tiles stay, the pages go by.

A row keeps its largest logit so far and the sum of e^(logit - largest); what it has summed shrinks when a larger logit
comes (Milakov and Gimelshein 2018, arXiv 1805.02867). Programs that share a prefix have both of their own part, by
which the parts are weighed.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.bias import RelativeBias
from kernels.gpu.launch import PACKED, VARYING, attention_launch, bisections, codes_of, padded, pointers
from kernels.gpu.prefix_attention import pair_bias
from kernels.gpu.tile import decoded, product, tile_by_tile
from kernels.paged import Batch, PagedKV

_LATEST = tl.constexpr(2**63 - 1)
_NEVER = tl.constexpr(-3.0e38)
"""The logit of what is not seen. It is finite, lest the difference of two of them be no number."""


@triton.jit
def _attend(
    acc, most, total, q, start, stop, position, time, earliest, latest, pages, head, bias_at, PREFIX_K, PREFIX_V,
    K_SCALES, V_SCALES, TIMES, BIAS, POSITION_BIAS, TIME_BIAS, THRESHOLDS, k_page, v_page, scale_page, time_page,
    num_positions, num_buckets, LOGIT_SCALE: tl.constexpr, QK_DIM: tl.constexpr, V_DIM: tl.constexpr,
    QK_PAD: tl.constexpr, V_PAD: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr, OF_TARGETS: tl.constexpr,
    HAS_BIAS: tl.constexpr, STEPS: tl.constexpr, CODES: tl.constexpr, UPCAST: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take the prefix tokens [start, stop) in; start is a multiple of BLOCK_N. position: the last key that each row may
    see. MASKED: not all rows see all of these keys.
    """
    in_block = tl.arange(0, BLOCK_N)
    qk_column, v_column = tl.arange(0, QK_PAD), tl.arange(0, V_PAD)
    following = tl.load(pages + start // PAGE, mask=start < stop, other=0)
    for first in range(start, stop, BLOCK_N):
        # Where the next keys stand is known before they are fetched: nothing waits for the page table.
        page = following.to(tl.int64)
        following = tl.load(pages + tl.minimum(first + BLOCK_N, stop - 1) // PAGE)
        slot = head * PAGE + first % PAGE
        key = first + in_block
        alive = key < stop
        k_at = PREFIX_K + (page * k_page + slot * QK_DIM) + in_block * QK_DIM
        v_at = PREFIX_V + (page * v_page + slot * V_DIM) + in_block * V_DIM
        k_mask = (qk_column < QK_DIM)[:, None] & alive[None, :]
        v_mask = alive[:, None] & (v_column < V_DIM)[None, :]
        k = tl.load(k_at[None, :] + qk_column[:, None], mask=k_mask, other=0)  # [QK_PAD, BLOCK_N]
        v = tl.load(v_at[:, None] + v_column[None, :], mask=v_mask, other=0)  # [BLOCK_N, V_PAD]
        logits = tl.zeros([q.shape[0], BLOCK_N], dtype=acc.dtype)
        logits = product(q, decoded(k, CODES, q.dtype, UPCAST), logits, UPCAST)
        if CODES:
            scales_at = page * scale_page + slot + in_block
            logits *= (tl.load(K_SCALES + scales_at, mask=alive, other=0.0) * LOGIT_SCALE)[None, :]
        else:
            logits *= LOGIT_SCALE
        if HAS_BIAS:
            if OF_TARGETS:
                logits += tl.load(BIAS + bias_at + key, mask=alive, other=0.0).to(acc.dtype)[None, :]
            else:
                key_time = tl.load(TIMES + (page * time_page + first % PAGE) + in_block, mask=alive, other=0)
                logits += pair_bias(
                    position, key, time, earliest, latest, key_time, alive, head, POSITION_BIAS, TIME_BIAS, THRESHOLDS,
                    num_positions, num_buckets, STEPS, acc.dtype, MASKED,
                )  # fmt: skip
        if MASKED:
            seen = (position[:, None] >= key[None, :]) & alive[None, :]
            logits = tl.where(seen, logits, _NEVER)
        larger = tl.maximum(most, tl.max(logits, 1))
        weights = tl.exp(logits - larger[:, None])  # [BLOCK_M, BLOCK_N]
        if MASKED:
            weights = tl.where(seen, weights, 0.0)
        shrink = tl.exp(most - larger)
        total = total * shrink + tl.sum(weights, 1)
        if CODES:
            weights *= tl.load(V_SCALES + scales_at, mask=alive, other=0.0)[None, :]
        acc = product(weights.to(q.dtype), decoded(v, CODES, q.dtype, UPCAST), acc * shrink[:, None], UPCAST)
        most = larger
    return acc, most, total


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=PACKED)
def softmax_attention_kernel(
    Q,
    K,
    V,
    OUT,
    MOST,
    TOTAL,
    PREFIX_K,
    PREFIX_V,
    K_SCALES,
    V_SCALES,
    TIMES,
    BIAS,
    OWN_BIAS,
    POSITION_BIAS,
    TIME_BIAS,
    THRESHOLDS,
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
    time_page,
    bias_head,
    num_positions,
    num_buckets,
    num_rows,
    num_splits,
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
    OF_TARGETS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STEPS: tl.constexpr,
    CODES: tl.constexpr,
    ACC: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Grid: tiles times heads times splits. OUT: [splits, num_rows, NUM_HEADS, V_DIM], the softmax of each split. MOST,
    TOTAL: [splits, num_rows, NUM_HEADS], by which they are weighed.
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
        most = tl.zeros([BLOCK_M], dtype=ACC) + _NEVER
        total = tl.zeros([BLOCK_M], dtype=ACC)
        n = tl.load(PREFIX_LENS + user)
        first_page = tl.load(PAGE_OFFSETS + user)
        pages = PAGES + first_page
        bias_at = head * bias_head.to(tl.int64) + first_page.to(tl.int64) * PAGE
        time = tl.zeros([BLOCK_M], dtype=tl.int64)
        if OF_TARGETS:
            if split == 0:  # a target begins with itself
                k = tl.load(K + (at * k_row + head * QK_DIM)[:, None] + qk_column[None, :], mask=qk_mask, other=0.0)
                v = tl.load(V + (at * v_row + head * V_DIM)[:, None] + v_column[None, :], mask=v_mask, other=0.0)
                most = tl.sum(q.to(ACC) * k.to(ACC), 1) * LOGIT_SCALE
                if HAS_BIAS:
                    most += tl.load(OWN_BIAS + head).to(ACC)
                total += 1.0
                acc += v.to(ACC)
            position = n + row * 0
            stop_all, seen_by_all = n, n // BLOCK_N * BLOCK_N
        else:
            before = n - rows
            position = before + row
            if HAS_BIAS:
                page = tl.load(pages + position // PAGE, mask=alive, other=0).to(tl.int64)
                time = tl.load(TIMES + page * time_page + position % PAGE, mask=alive, other=0)
            stop_all = before + tl.minimum(first + BLOCK_M, rows)  # keys that the last query of the tile sees
            seen_by_all = (before + first + 1) // BLOCK_N * BLOCK_N
        earliest = tl.min(tl.where(alive, time, _LATEST))
        latest = tl.max(tl.where(alive, time, -_LATEST))
        blocks = tl.cdiv(tl.cdiv(stop_all, BLOCK_N), num_splits)
        start = tl.minimum(split * blocks * BLOCK_N, stop_all)
        stop = tl.minimum(start + blocks * BLOCK_N, stop_all)
        full = tl.minimum(tl.maximum(seen_by_all, start), stop)
        acc, most, total = _attend(
            acc, most, total, q, start, full, position, time, earliest, latest, pages, head, bias_at, PREFIX_K,
            PREFIX_V, K_SCALES, V_SCALES, TIMES, BIAS, POSITION_BIAS, TIME_BIAS, THRESHOLDS, k_page, v_page, scale_page,
            time_page, num_positions, num_buckets, LOGIT_SCALE, QK_DIM, V_DIM, QK_PAD, V_PAD, PAGE, BLOCK_N, OF_TARGETS,
            HAS_BIAS, STEPS, CODES, UPCAST, False,
        )  # fmt: skip
        acc, most, total = _attend(
            acc, most, total, q, full, stop, position, time, earliest, latest, pages, head, bias_at, PREFIX_K,
            PREFIX_V, K_SCALES, V_SCALES, TIMES, BIAS, POSITION_BIAS, TIME_BIAS, THRESHOLDS, k_page, v_page, scale_page,
            time_page, num_positions, num_buckets, LOGIT_SCALE, QK_DIM, V_DIM, QK_PAD, V_PAD, PAGE, BLOCK_N, OF_TARGETS,
            HAS_BIAS, STEPS, CODES, UPCAST, True,
        )  # fmt: skip
        of_row = (split * num_rows.to(tl.int64) + at) * NUM_HEADS + head
        acc = acc / tl.where(total == 0.0, 1.0, total * NORM)[:, None]  # a part may see nothing
        tl.store(OUT + (of_row * V_DIM)[:, None] + v_column[None, :], acc, mask=v_mask)
        tl.store(MOST + of_row, most, mask=alive)
        tl.store(TOTAL + of_row, total, mask=alive)


@dataclass(frozen=True, slots=True)
class _Given:
    """What targets have and a prefix has not: their keys and values, and their bias on the prefix and on themselves;
    and the other way round: rab of each pair. Absent ones are None.
    """

    own: tuple[Tensor, Tensor] | None = None
    vector: Tensor | None = None
    of_own: Tensor | None = None
    pairs: RelativeBias | None = None


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
) -> Tensor:
    """`kernels.paged_reference.target_attention` with softmax: [1, num_rows, num_heads, v_dim], float32 (float64 for
    float64).
    """
    given = _Given((k, v), prefix_bias, own_bias)
    return _attended("target_attention", q, kv, batch, given, logit_scale, norm)


def prefix_attention_parts(
    q: Tensor, kv: PagedKV, batch: Batch, bias: RelativeBias | None, *, logit_scale: float, norm: float
) -> Tensor:
    """`kernels.paged_reference.prefix_attention` with softmax, likewise."""
    op = "prefix_attention" if bias is None else "prefix_attention_bias"
    return _attended(op, q, kv, batch, _Given(pairs=bias), logit_scale, norm)


def _attended(op: str, q: Tensor, kv: PagedKV, batch: Batch, given: _Given, logit_scale: float, norm: float) -> Tensor:
    assert not kv.transposed, "pages with V transposed are for products of float8, which softmax has not"
    (num_rows, num_heads, qk_dim), v_dim = q.shape, kv.v.shape[3]
    launch, pairs = attention_launch(op, q, kv, batch), given.pairs
    options = {name: value for name, value in launch.options(kv.page_tokens).items() if name != "FAST"}
    out = torch.empty(batch.splits, num_rows, num_heads, v_dim, dtype=launch.acc, device=q.device)
    most, total = torch.empty(2, batch.splits, num_rows, num_heads, dtype=launch.acc, device=q.device)
    if not len(batch.tiles):
        return out[:1]
    k, v = given.own or (q, q)
    softmax_attention_kernel[(len(batch.tiles) * num_heads * batch.splits,)](
        q,
        k,
        v,
        out,
        most,
        total,
        *pointers(kv),
        kv.times,
        q if given.vector is None else given.vector,
        q if given.of_own is None else given.of_own,
        *((q, q, q) if pairs is None else (pairs.position, pairs.time, pairs.thresholds)),
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
        kv.times.stride(0),
        0 if given.vector is None else given.vector.stride(0),
        0 if pairs is None else pairs.position.shape[1],
        0 if pairs is None else len(pairs.thresholds),
        num_rows,
        batch.splits,
        NUM_HEADS=num_heads,
        LOGIT_SCALE=logit_scale,
        NORM=norm,
        QK_DIM=qk_dim,
        V_DIM=v_dim,
        QK_PAD=padded(qk_dim),
        V_PAD=padded(v_dim),
        PAGE=kv.page_tokens,
        OF_TARGETS=given.own is not None,
        HAS_BIAS=given.vector is not None or pairs is not None,
        STEPS=0 if pairs is None else bisections(len(pairs.thresholds)),
        CODES=codes_of(kv),
        **options,
    )
    return out if batch.splits == 1 else _merged(out, most, total)


def _merged(parts: Tensor, most: Tensor, total: Tensor) -> Tensor:
    """The softmax over all parts: parts [splits, num_rows, num_heads, v_dim] -> [1, ...]."""
    weight = total * torch.exp(most - most.amax(0))
    weight = weight / weight.sum(0)
    return (parts * weight.unsqueeze(-1)).sum(0, keepdim=True)
