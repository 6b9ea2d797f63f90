"""`kernels.fp8_reference.target_attention` for Hopper: both products of float8, on pages with V transposed.

As `kernels.gpu.hopper.target_attention`, with the same barriers; but the consumers make codes of the queries, and a
tile's scales arrive with its keys. What a code of weights counts is each row's own in each tile, so every tile has a
sum of its own, which is added to those before it in float32: the unit's own sums of float8 products have fewer bits.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.gpu.hopper.codes import counted
from kernels.gpu.hopper.launch import (
    FP8_RING,
    WORKER_REGISTERS,
    WORKER_WARPS,
    pages_descriptor,
    scales_descriptor,
)
from kernels.gpu.hopper.pipeline import (
    CONSUMERS,
    ROWS,
    allocate_ring,
    begin_logits,
    silu_of_double,
    stay_before_wait,
    tile_end,
)
from kernels.gpu.hopper.target_attention import bias_of, own_part
from kernels.gpu.launch import PACKED, VARYING
from kernels.paged import Batch, PagedKV


@gluon.jit
def _produce(
    K, V, K_SCALES, V_SCALES, PAGES, k, v, k_scales, v_scales, k_full, k_empty, v_full, v_empty, head, start, stop,
    tiles, PAGE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The warp that fetches: tiles of keys and values of the tokens [start, stop), the scales of both with the keys."""
    for index in range(tiles):
        end = tile_end(index, start, stop, tiles, BLOCK_N)
        in_order = (end - 1) // PAGE
        page = gl.load(PAGES + in_order)
        slot = end - BLOCK_N - in_order * PAGE
        stage = index % STAGES
        free = ((index // STAGES) & 1) ^ 1
        mbarrier.wait(k_empty.index(stage), free)
        mbarrier.expect(k_full.index(stage), K.block_type.nbytes + 2 * K_SCALES.block_type.nbytes)
        tma.async_copy_global_to_shared(K, [page, head, slot, 0], k_full.index(stage), k.index(stage))
        tma.async_copy_global_to_shared(K_SCALES, [page, head, slot], k_full.index(stage), k_scales.index(stage))
        tma.async_copy_global_to_shared(V_SCALES, [page, head, slot], k_full.index(stage), v_scales.index(stage))
        mbarrier.wait(v_empty.index(stage), free)
        mbarrier.expect(v_full.index(stage), V.block_type.nbytes)
        tma.async_copy_global_to_shared(V, [page, head, 0, slot], v_full.index(stage), v.index(stage))


@gluon.jit
def _store_queries(Q, q, head, first_row, rows, q_row, GROUP: gl.constexpr, DIM: gl.constexpr, LAYOUT: gl.constexpr):
    """A warpgroup's queries as codes in its buffer; what a code of each row counts."""
    row = GROUP * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    column = gl.arange(0, DIM, gl.SliceLayout(0, LAYOUT))
    at = ((first_row + row).to(gl.int64) * q_row + head * DIM)[:, None] + column[None, :]
    multiples, steps = counted(gl.load(Q + at, mask=(row < rows)[:, None], other=0.0).to(gl.float32))
    q.store(multiples.to(q.dtype))
    fence_async_shared()
    return steps


@gluon.jit
def _begin_sum(
    weights, v, v_full, index, zeros, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, WEIGHTS: gl.constexpr
):  # fmt: skip
    """Start weights @ v of the index-th tile once it is there. The weights become codes only here: from one turn of a
    loop to the next codes go one by one, and putting them together takes more than what they save.
    """
    codes = gl.convert_layout(weights.to(v.dtype), WEIGHTS)
    stage = index % STAGES
    mbarrier.wait(v_full.index(stage), (index // STAGES) & 1)
    values = v.index(stage).reshape([zeros.shape[1], BLOCK_N])
    return warpgroup_mma(codes, values.permute([1, 0]), zeros, use_acc=False, is_async=True)


@gluon.jit
def _scales_of(scales, index, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, COLUMNS: gl.constexpr):
    """Of the index-th tile's keys or values, whose keys are there: [BLOCK_N]."""
    return scales.index(index % STAGES).reshape([BLOCK_N]).load(COLUMNS)


@gluon.jit
def _halves(logits, steps, k_scales, bias, HAS_BIAS: gl.constexpr):
    """Of the logits of a tile. steps: half of what a product of each row counts."""
    half = logits * steps[:, None] * k_scales[None, :]
    if HAS_BIAS:
        half += 0.5 * bias[None, :]
    return half


@gluon.jit
def _weights(half, v_scales, first, floor, MASKED: gl.constexpr, BLOCK_N: gl.constexpr, COLUMNS: gl.constexpr):
    """SiLU times the scales of the values, and what counts one, as `counted` has them. MASKED: nothing for keys before
    `floor`.
    """
    weights = silu_of_double(half) * v_scales[None, :]
    if MASKED:
        key = first + gl.arange(0, BLOCK_N, COLUMNS)
        weights = gl.where((key >= floor)[None, :], weights, 0.0)
    return counted(weights)


@gluon.jit
def _consume(
    Q, K, V, OUT, BIAS, OWN_BIAS, q, k, v, k_scales, v_scales, k_full, k_empty, v_full, v_empty, head, split, first_row,
    rows, start, stop, tiles, q_row, k_row, v_row, num_rows, num_heads,
    GROUP: gl.constexpr, LOGIT_SCALE: gl.constexpr, NORM: gl.constexpr, QK_DIM: gl.constexpr, V_DIM: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, HAS_BIAS: gl.constexpr,
):  # fmt: skip
    """A warpgroup: the tile's rows GROUP * ROWS onwards, of which `rows` are the user's. BIAS: of the user's tokens."""
    logits_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 32])
    columns: gl.constexpr = gl.SliceLayout(0, logits_layout)
    query_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, QK_DIM, 16])
    sum_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, V_DIM, 32])
    sum_rows: gl.constexpr = gl.SliceLayout(1, sum_layout)
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, sum_layout, 4)

    acc = own_part(
        Q, K, V, OWN_BIAS, head, split, first_row, rows, q_row, k_row, v_row,
        GROUP, LOGIT_SCALE, QK_DIM, V_DIM, HAS_BIAS, query_layout, sum_layout,
    )  # fmt: skip
    if tiles > 0:
        queries = q.index(GROUP)
        steps = _store_queries(Q, queries, head, first_row, rows, q_row, GROUP, QK_DIM, query_layout)
        steps = gl.convert_layout(steps * (0.5 * LOGIT_SCALE), gl.SliceLayout(1, logits_layout))
        zeros = gl.zeros([ROWS, BLOCK_N], gl.float32, logits_layout)
        nothing = gl.zeros([ROWS, V_DIM], gl.float32, sum_layout)
        first, floor = stop - BLOCK_N, start + (tiles - 1) * BLOCK_N
        bias = bias_of(BIAS, first, floor, HAS_BIAS, True, BLOCK_N, columns)
        product = begin_logits(queries, k, k_full, 0, zeros, BLOCK_N, STAGES)
        of_keys = _scales_of(k_scales, 0, BLOCK_N, STAGES, columns)
        logits = warpgroup_mma_wait(0, deps=(product,))
        half = _halves(logits, steps, of_keys, bias, HAS_BIAS)
        of_values = _scales_of(v_scales, 0, BLOCK_N, STAGES, columns)
        mbarrier.arrive(k_empty.index(0))
        weights, step = _weights(half, of_values, first, floor, True, BLOCK_N, columns)
        counts = gl.convert_layout(step, sum_rows)
        for index in range(1, tiles):
            first = start + (tiles - 1 - index) * BLOCK_N
            product = begin_logits(queries, k, k_full, index, zeros, BLOCK_N, STAGES)
            sums = _begin_sum(weights, v, v_full, index - 1, nothing, BLOCK_N, STAGES, weights_layout)
            bias = bias_of(BIAS, first, first, HAS_BIAS, False, BLOCK_N, columns)
            of_keys = _scales_of(k_scales, index, BLOCK_N, STAGES, columns)
            logits = warpgroup_mma_wait(1, deps=(product,))
            half = _halves(logits, steps, of_keys, bias, HAS_BIAS)
            of_values = _scales_of(v_scales, index, BLOCK_N, STAGES, columns)
            mbarrier.arrive(k_empty.index(index % STAGES))
            following, step = _weights(half, of_values, first, first, False, BLOCK_N, columns)
            stay_before_wait(v_full, index - 1, STAGES)
            added = warpgroup_mma_wait(0, deps=(sums,))
            mbarrier.arrive(v_empty.index((index - 1) % STAGES))
            acc += added * counts[:, None]
            weights, counts = following, gl.convert_layout(step, sum_rows)
        sums = _begin_sum(weights, v, v_full, tiles - 1, nothing, BLOCK_N, STAGES, weights_layout)
        added = warpgroup_mma_wait(0, deps=(sums,))
        acc += added * counts[:, None]

    row = GROUP * ROWS + gl.arange(0, ROWS, sum_rows)
    column = gl.arange(0, V_DIM, gl.SliceLayout(0, sum_layout))
    at = (first_row + row).to(gl.int64)
    out = ((split * num_rows.to(gl.int64) + at) * num_heads + head) * V_DIM
    gl.store(OUT + out[:, None] + column[None, :], acc * (1.0 / NORM), mask=(row < rows)[:, None])


@gluon.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=PACKED)
def fp8_target_attention_kernel(
    KEYS, VALUES, K_SCALES, V_SCALES, Q, K, V, OUT, BIAS, OWN_BIAS, ROW_OFFSETS, PREFIX_LENS, PAGE_OFFSETS, PAGES,
    TILES, q_row, k_row, v_row, bias_head, num_rows,
    LOGIT_SCALE: gl.constexpr, NORM: gl.constexpr, QK_DIM: gl.constexpr, V_DIM: gl.constexpr, PAGE: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, HAS_BIAS: gl.constexpr,
):  # fmt: skip
    """Grid: tiles, heads, splits. OUT: [splits, num_rows, num_heads, V_DIM], sums of each split. KEYS, VALUES and both
    SCALES: descriptors of the pages, of values [num_pages, num_heads, V_DIM, PAGE].
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
        q_layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=QK_DIM, element_bitwidth=8, rank=2)
        q = gl.allocate_shared_memory(KEYS.dtype, [CONSUMERS, ROWS, QK_DIM], q_layout)
        k_scales = gl.allocate_shared_memory(K_SCALES.dtype, [STAGES, 1, 1, BLOCK_N], K_SCALES.layout)
        v_scales = gl.allocate_shared_memory(V_SCALES.dtype, [STAGES, 1, 1, BLOCK_N], V_SCALES.layout)
        k, v, k_full, k_empty, v_full, v_empty = allocate_ring(KEYS, VALUES, STAGES)
        fence_async_shared()
        gl.warp_specialize(
            [
                (_consume, (
                    Q, K, V, OUT, bias, OWN_BIAS, q, k, v, k_scales, v_scales, k_full, k_empty, v_full, v_empty, head,
                    split, first_row, rows, start, stop, tiles, q_row, k_row, v_row, num_rows, num_heads,
                    0, LOGIT_SCALE, NORM, QK_DIM, V_DIM, BLOCK_N, STAGES, HAS_BIAS,
                )),
                (_consume, (
                    Q, K, V, OUT, bias, OWN_BIAS, q, k, v, k_scales, v_scales, k_full, k_empty, v_full, v_empty, head,
                    split, first_row, rows, start, stop, tiles, q_row, k_row, v_row, num_rows, num_heads,
                    1, LOGIT_SCALE, NORM, QK_DIM, V_DIM, BLOCK_N, STAGES, HAS_BIAS,
                )),
                (_produce, (
                    KEYS, VALUES, K_SCALES, V_SCALES, PAGES + user_page, k, v, k_scales, v_scales, k_full, k_empty,
                    v_full, v_empty, head, start, stop, tiles, PAGE, BLOCK_N, STAGES,
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
    """See `kernels.gpu.target_attention`; for what `kernels.gpu.hopper.launch.takes_fp8`."""
    assert kv.k_scales is not None and kv.v_scales is not None
    num_rows, num_heads, qk_dim = q.shape
    v_dim = v.shape[2]
    out = torch.empty(batch.splits, num_rows, num_heads, v_dim, dtype=torch.float32, device=q.device)
    if not len(batch.tiles):
        return out
    fp8_target_attention_kernel[(len(batch.tiles), num_heads, batch.splits)](
        pages_descriptor(kv.k, [FP8_RING.block_n, qk_dim]),
        pages_descriptor(kv.v.mT, [v_dim, FP8_RING.block_n]),
        scales_descriptor(kv.k_scales, FP8_RING.block_n),
        scales_descriptor(kv.v_scales, FP8_RING.block_n),
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
        BLOCK_N=FP8_RING.block_n,
        STAGES=FP8_RING.stages,
        HAS_BIAS=prefix_bias is not None,
        num_warps=4,
    )
    return out
