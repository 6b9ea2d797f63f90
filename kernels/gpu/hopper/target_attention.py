"""`kernels.gpu.target_attention` for Hopper: the same sums, by `kernels.gpu.hopper.pipeline`."""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma_wait

from kernels.gpu.hopper.launch import WORKER_REGISTERS, WORKER_WARPS, pages_descriptor, ring, rows_descriptor
from kernels.gpu.hopper.pipeline import (
    ROWS,
    allocate,
    begin_logits,
    begin_sum,
    produce,
    silu_of_double,
    stay_before_wait,
)
from kernels.gpu.launch import PACKED, VARYING
from kernels.paged import Batch, PagedKV


@gluon.jit
def _weights(
    logits, bias, first, floor, LOGIT_SCALE: gl.constexpr, HAS_BIAS: gl.constexpr, MASKED: gl.constexpr,
    BLOCK_N: gl.constexpr, COLUMNS: gl.constexpr,
):  # fmt: skip
    """SiLU of a tile of logits, whose keys are the tokens `first` onwards; MASKED: nothing for those before `floor`."""
    half = logits * (0.5 * LOGIT_SCALE)
    if HAS_BIAS:
        half += 0.5 * bias[None, :]
    weights = silu_of_double(half)
    if MASKED:
        key = first + gl.arange(0, BLOCK_N, COLUMNS)
        weights = gl.where((key >= floor)[None, :], weights, 0.0)
    return weights


@gluon.jit
def bias_of(
    BIAS, first, floor, HAS_BIAS: gl.constexpr, MASKED: gl.constexpr, BLOCK_N: gl.constexpr, COLUMNS: gl.constexpr
):
    """Bias of the keys `first` onwards: [BLOCK_N]; any number without a bias. MASKED: 0 before `floor`; else `first` is
    a multiple of BLOCK_N.
    """
    bias = 0.0
    if HAS_BIAS:
        in_tile = gl.arange(0, BLOCK_N, COLUMNS)
        if MASKED:
            bias = gl.load(BIAS + first + in_tile, mask=first + in_tile >= floor, other=0.0)
        else:
            bias = gl.load(gl.multiple_of(BIAS + first, 16) + in_tile)
    return bias


@gluon.jit
def own_part(
    Q, K, V, OWN_BIAS, head, split, first_row, rows, q_row, k_row, v_row,
    GROUP: gl.constexpr, LOGIT_SCALE: gl.constexpr, QK_DIM: gl.constexpr, V_DIM: gl.constexpr, HAS_BIAS: gl.constexpr,
    QUERIES: gl.constexpr, SUMS: gl.constexpr,
):  # fmt: skip
    """Of the targets' own keys and values, while the first tiles arrive: [ROWS, V_DIM]; 0 but in the first split."""
    row = GROUP * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, QUERIES))
    column = gl.arange(0, QK_DIM, gl.SliceLayout(0, QUERIES))
    at = (first_row + row).to(gl.int64)
    mask = ((row < rows) & (split == 0))[:, None]
    q = gl.load(Q + (at * q_row + head * QK_DIM)[:, None] + column[None, :], mask=mask, other=0.0)
    k = gl.load(K + (at * k_row + head * QK_DIM)[:, None] + column[None, :], mask=mask, other=0.0)
    half = gl.sum(q.to(gl.float32) * k.to(gl.float32), 1) * (0.5 * LOGIT_SCALE)
    if HAS_BIAS:
        half += 0.5 * gl.load(OWN_BIAS + head).to(gl.float32)
    weight = gl.convert_layout(silu_of_double(half), gl.SliceLayout(1, SUMS))
    row = GROUP * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, SUMS))
    column = gl.arange(0, V_DIM, gl.SliceLayout(0, SUMS))
    at = (first_row + row).to(gl.int64)
    mask = ((row < rows) & (split == 0))[:, None]
    v = gl.load(V + (at * v_row + head * V_DIM)[:, None] + column[None, :], mask=mask, other=0.0)
    return weight[:, None] * v.to(gl.float32)


@gluon.jit
def _consume(
    Q, K, V, OUT, BIAS, OWN_BIAS, q, k, v, q_full, k_full, k_empty, v_full, v_empty, head, split, first_row, rows,
    start, stop, tiles, q_row, k_row, v_row, num_rows, num_heads,
    GROUP: gl.constexpr, LOGIT_SCALE: gl.constexpr, NORM: gl.constexpr, QK_DIM: gl.constexpr, V_DIM: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, HAS_BIAS: gl.constexpr,
):  # fmt: skip
    """A warpgroup: the tile's rows GROUP * ROWS onwards, of which `rows` are the user's. BIAS: of the user's tokens."""
    logits_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    columns: gl.constexpr = gl.SliceLayout(0, logits_layout)
    query_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, QK_DIM, 16])
    sum_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, V_DIM, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, sum_layout, 2)

    acc = own_part(
        Q, K, V, OWN_BIAS, head, split, first_row, rows, q_row, k_row, v_row,
        GROUP, LOGIT_SCALE, QK_DIM, V_DIM, HAS_BIAS, query_layout, sum_layout,
    )  # fmt: skip
    if tiles > 0:
        zeros = gl.zeros([ROWS, BLOCK_N], gl.float32, logits_layout)
        first, floor = stop - BLOCK_N, start + (tiles - 1) * BLOCK_N
        bias = bias_of(BIAS, first, floor, HAS_BIAS, True, BLOCK_N, columns)
        mbarrier.wait(q_full.index(0), 0)
        queries = q.index(GROUP).reshape([ROWS, QK_DIM])
        product = begin_logits(queries, k, k_full, 0, zeros, BLOCK_N, STAGES)
        logits = warpgroup_mma_wait(0, deps=(product,))
        mbarrier.arrive(k_empty.index(0))
        weights = _weights(logits, bias, first, floor, LOGIT_SCALE, HAS_BIAS, True, BLOCK_N, columns)
        operand = gl.convert_layout(weights.to(q.dtype), weights_layout)
        for index in range(1, tiles):
            first = start + (tiles - 1 - index) * BLOCK_N
            product = begin_logits(queries, k, k_full, index, zeros, BLOCK_N, STAGES)
            sums = begin_sum(operand, v, v_full, index - 1, acc, BLOCK_N, STAGES)
            bias = bias_of(BIAS, first, first, HAS_BIAS, False, BLOCK_N, columns)
            logits = warpgroup_mma_wait(1, deps=(product,))
            mbarrier.arrive(k_empty.index(index % STAGES))
            weights = _weights(logits, bias, first, first, LOGIT_SCALE, HAS_BIAS, False, BLOCK_N, columns)
            following = weights.to(q.dtype)
            stay_before_wait(v_full, index - 1, STAGES)
            acc = warpgroup_mma_wait(0, deps=(sums,))
            mbarrier.arrive(v_empty.index((index - 1) % STAGES))
            operand = gl.convert_layout(following, weights_layout)
        sums = begin_sum(operand, v, v_full, tiles - 1, acc, BLOCK_N, STAGES)
        acc = warpgroup_mma_wait(0, deps=(sums,))

    row = GROUP * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, sum_layout))
    column = gl.arange(0, V_DIM, gl.SliceLayout(0, sum_layout))
    at = (first_row + row).to(gl.int64)
    out = ((split * num_rows.to(gl.int64) + at) * num_heads + head) * V_DIM
    gl.store(OUT + out[:, None] + column[None, :], acc * (1.0 / NORM), mask=(row < rows)[:, None])


@gluon.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=PACKED)
def target_attention_kernel(
    QUERIES, KEYS, VALUES, Q, K, V, OUT, BIAS, OWN_BIAS, ROW_OFFSETS, PREFIX_LENS, PAGE_OFFSETS, PAGES, TILES,
    q_row, k_row, v_row, bias_head, num_rows,
    LOGIT_SCALE: gl.constexpr, NORM: gl.constexpr, QK_DIM: gl.constexpr, V_DIM: gl.constexpr, PAGE: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, HAS_BIAS: gl.constexpr,
):  # fmt: skip
    """Grid: tiles, heads, splits. OUT: [splits, num_rows, num_heads, V_DIM], sums of each split. QUERIES, KEYS, VALUES:
    descriptors of Q and of the pages.
    """
    head, split = gl.program_id(1), gl.program_id(2)
    num_heads, num_splits = gl.num_programs(1), gl.num_programs(2)
    user = gl.load(TILES + 2 * gl.program_id(0))
    if user >= 0:
        tile_row = gl.load(TILES + 2 * gl.program_id(0) + 1)
        user_row = gl.load(ROW_OFFSETS + user)
        rows = gl.load(ROW_OFFSETS + user + 1) - user_row - tile_row
        n = gl.load(PREFIX_LENS + user)
        user_page = gl.load(PAGE_OFFSETS + user)
        tiles = ((n + BLOCK_N - 1) // BLOCK_N + num_splits - 1) // num_splits
        start = split * tiles * BLOCK_N
        stop = gl.minimum(start + tiles * BLOCK_N, n)
        tiles = gl.maximum(stop - start + BLOCK_N - 1, 0) // BLOCK_N
        bias = BIAS + (head * bias_head.to(gl.int64) + user_page.to(gl.int64) * PAGE)
        first_row = user_row + tile_row
        q, k, v, q_full, k_full, k_empty, v_full, v_empty = allocate(KEYS, VALUES, QUERIES, STAGES)
        gl.warp_specialize(
            [
                (_consume, (
                    Q, K, V, OUT, bias, OWN_BIAS, q, k, v, q_full, k_full, k_empty, v_full, v_empty, head, split,
                    first_row, rows, start, stop, tiles, q_row, k_row, v_row, num_rows, num_heads,
                    0, LOGIT_SCALE, NORM, QK_DIM, V_DIM, BLOCK_N, STAGES, HAS_BIAS,
                )),
                (_consume, (
                    Q, K, V, OUT, bias, OWN_BIAS, q, k, v, q_full, k_full, k_empty, v_full, v_empty, head, split,
                    first_row, rows, start, stop, tiles, q_row, k_row, v_row, num_rows, num_heads,
                    1, LOGIT_SCALE, NORM, QK_DIM, V_DIM, BLOCK_N, STAGES, HAS_BIAS,
                )),
                (produce, (
                    QUERIES, KEYS, VALUES, PAGES + user_page, q, k, v, q_full, k_full, k_empty, v_full, v_empty, head,
                    first_row, start, stop, tiles, PAGE, BLOCK_N, STAGES,
                )),
            ],
            WORKER_WARPS,
            WORKER_REGISTERS,
        )  # fmt: skip


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
    """See `kernels.gpu.target_attention`; for what `kernels.gpu.hopper.launch.takes`."""
    num_rows, num_heads, qk_dim = q.shape
    v_dim = v.shape[2]
    of = ring(max(qk_dim, v_dim), kv.page_tokens)
    out = torch.empty(batch.splits, num_rows, num_heads, v_dim, dtype=torch.float32, device=q.device)
    if not len(batch.tiles):
        return out
    target_attention_kernel[(len(batch.tiles), num_heads, batch.splits)](
        rows_descriptor(q),
        pages_descriptor(kv.k, [of.block_n, qk_dim]),
        pages_descriptor(kv.v, [of.block_n, v_dim]),
        q,
        k,
        v,
        out,
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
        0 if prefix_bias is None else prefix_bias.stride(0),
        num_rows,
        LOGIT_SCALE=logit_scale,
        NORM=norm,
        QK_DIM=qk_dim,
        V_DIM=v_dim,
        PAGE=kv.page_tokens,
        BLOCK_N=of.block_n,
        STAGES=of.stages,
        HAS_BIAS=prefix_bias is not None,
        num_warps=4,
    )
    return out
