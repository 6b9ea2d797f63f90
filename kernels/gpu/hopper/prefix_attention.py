"""`kernels.gpu.prefix_attention` for Hopper: the same sums, by `kernels.gpu.hopper.pipeline`."""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma_wait

from kernels.bias import RelativeBias
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
from kernels.gpu.launch import PACKED, VARYING, bisections
from kernels.paged import Batch, PagedKV

_LATEST = gl.constexpr(2**63 - 1)


@gluon.jit
def _bucket(difference, THRESHOLDS, num_buckets, STEPS: gl.constexpr):
    """Number of thresholds that are at most the difference; as `kernels.gpu.tile.time_bucket`."""
    low = num_buckets * 0
    high = num_buckets
    for _ in gl.static_range(STEPS):
        middle = (low + high) >> 1
        open_ = low < high
        reached = open_ & (gl.load(THRESHOLDS + middle, mask=open_, other=0) <= difference)
        low = gl.where(reached, middle + 1, low)
        high = gl.where(open_ & (reached == 0), middle, high)
    return low


@gluon.jit
def _rab(
    first, floor, position, time, earliest, latest, head, PAGES, TIMES, POSITION_BIAS, TIME_BIAS, THRESHOLDS, time_page,
    num_positions, num_buckets, PAGE: gl.constexpr, BLOCK_N: gl.constexpr, STEPS: gl.constexpr, COLUMNS: gl.constexpr,
):  # fmt: skip
    """rab of a tile, [ROWS, BLOCK_N], whose keys are the tokens `first` onwards; any number before `floor`."""
    key = first + gl.arange(0, BLOCK_N, COLUMNS)
    alive = key >= floor
    in_order = (first + BLOCK_N - 1) // PAGE
    page = gl.load(PAGES + in_order).to(gl.int64)
    key_time = gl.load(TIMES + page * time_page + (key - in_order * PAGE), mask=alive, other=0)
    # The differences of a tile fall into few buckets: what differs between its elements is counted only there.
    first_time = gl.min(gl.where(alive, key_time, _LATEST), 0)
    last_time = gl.max(gl.where(alive, key_time, -_LATEST), 0)
    low = _bucket(earliest - last_time, THRESHOLDS, num_buckets, STEPS)
    high = _bucket(latest - first_time, THRESHOLDS, num_buckets, STEPS)
    distance = gl.minimum(gl.maximum(position[:, None] - key[None, :], 0), num_positions - 1)
    bucket = distance * 0 + low
    for index in range(low, high):
        threshold = gl.load(THRESHOLDS + index)
        bucket += ((time - threshold)[:, None] >= key_time[None, :]).to(gl.int32)
    by_position = gl.load(POSITION_BIAS + head * num_positions + distance).to(gl.float32)
    return by_position + gl.load(TIME_BIAS + head * (num_buckets + 1) + bucket).to(gl.float32)


@gluon.jit
def _weights(
    logits, rab, first, floor, position, LOGIT_SCALE: gl.constexpr, HAS_BIAS: gl.constexpr, MASKED: gl.constexpr,
    BLOCK_N: gl.constexpr, COLUMNS: gl.constexpr,
):  # fmt: skip
    """SiLU of a tile of logits, whose keys are the tokens `first` onwards; MASKED: nothing for those before `floor` and
    those after their query.
    """
    half = logits * (0.5 * LOGIT_SCALE)
    if HAS_BIAS:
        half += 0.5 * rab
    weights = silu_of_double(half)
    if MASKED:
        key = first + gl.arange(0, BLOCK_N, COLUMNS)
        weights = gl.where((key >= floor)[None, :] & (position[:, None] >= key[None, :]), weights, 0.0)
    return weights


@gluon.jit
def _step(
    index, acc, operand, queries, zeros, k, v, k_full, k_empty, v_full, v_empty, head, start, tiles, position, time,
    earliest, latest, PAGES, TIMES, POSITION_BIAS, TIME_BIAS, THRESHOLDS, time_page, num_positions, num_buckets,
    LOGIT_SCALE: gl.constexpr, PAGE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, HAS_BIAS: gl.constexpr,
    STEPS: gl.constexpr, MASKED: gl.constexpr, COLUMNS: gl.constexpr, WEIGHTS: gl.constexpr,
):  # fmt: skip
    """Logits and weights of the index-th tile, beside the sum over the one before: the new sums and weights."""
    first = start + (tiles - 1 - index) * BLOCK_N
    product = begin_logits(queries, k, k_full, index, zeros, BLOCK_N, STAGES)
    sums = begin_sum(operand, v, v_full, index - 1, acc, BLOCK_N, STAGES)
    rab = 0.0
    if HAS_BIAS:
        rab = _rab(
            first, first, position, time, earliest, latest, head, PAGES, TIMES, POSITION_BIAS, TIME_BIAS, THRESHOLDS,
            time_page, num_positions, num_buckets, PAGE, BLOCK_N, STEPS, COLUMNS,
        )  # fmt: skip
    logits = warpgroup_mma_wait(1, deps=(product,))
    mbarrier.arrive(k_empty.index(index % STAGES))
    weights = _weights(logits, rab, first, first, position, LOGIT_SCALE, HAS_BIAS, MASKED, BLOCK_N, COLUMNS)
    narrow = weights.to(queries.dtype)
    stay_before_wait(v_full, index - 1, STAGES)
    acc = warpgroup_mma_wait(0, deps=(sums,))
    mbarrier.arrive(v_empty.index((index - 1) % STAGES))
    return acc, gl.convert_layout(narrow, WEIGHTS)


@gluon.jit
def _consume(
    OUT, PAGES, TIMES, POSITION_BIAS, TIME_BIAS, THRESHOLDS, q, k, v, q_full, k_full, k_empty, v_full, v_empty, head,
    split, first_row, rows, first_position, start, stop, tiles, masked, time_page, num_positions, num_buckets, num_rows,
    num_heads,
    GROUP: gl.constexpr, LOGIT_SCALE: gl.constexpr, NORM: gl.constexpr, QK_DIM: gl.constexpr, V_DIM: gl.constexpr,
    PAGE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, HAS_BIAS: gl.constexpr, STEPS: gl.constexpr,
):  # fmt: skip
    """A warpgroup: the tile's rows GROUP * ROWS onwards, of which `rows` are the user's; the tile's first stands at
    `first_position`. masked: tiles that not all rows see whole.
    """
    logits_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    columns: gl.constexpr = gl.SliceLayout(0, logits_layout)
    sum_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, V_DIM, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, sum_layout, 2)

    row = GROUP * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, logits_layout))
    position = first_position + row
    time = gl.zeros([ROWS], gl.int64, gl.SliceLayout(1, logits_layout))
    if HAS_BIAS:
        page = gl.load(PAGES + position // PAGE, mask=row < rows, other=0).to(gl.int64)
        time = gl.load(TIMES + page * time_page + position % PAGE, mask=row < rows, other=0)
    earliest = gl.min(gl.where(row < rows, time, _LATEST), 0)
    latest = gl.max(gl.where(row < rows, time, -_LATEST), 0)
    acc = gl.zeros([ROWS, V_DIM], gl.float32, sum_layout)
    if tiles > 0:
        zeros = gl.zeros([ROWS, BLOCK_N], gl.float32, logits_layout)
        first, floor = stop - BLOCK_N, start + (tiles - 1) * BLOCK_N
        mbarrier.wait(q_full.index(0), 0)
        queries = q.index(GROUP).reshape([ROWS, QK_DIM])
        product = begin_logits(queries, k, k_full, 0, zeros, BLOCK_N, STAGES)
        rab = 0.0
        if HAS_BIAS:
            rab = _rab(
                first, floor, position, time, earliest, latest, head, PAGES, TIMES, POSITION_BIAS, TIME_BIAS,
                THRESHOLDS, time_page, num_positions, num_buckets, PAGE, BLOCK_N, STEPS, columns,
            )  # fmt: skip
        logits = warpgroup_mma_wait(0, deps=(product,))
        mbarrier.arrive(k_empty.index(0))
        weights = _weights(logits, rab, first, floor, position, LOGIT_SCALE, HAS_BIAS, True, BLOCK_N, columns)
        operand = gl.convert_layout(weights.to(q.dtype), weights_layout)
        for index in range(1, masked):
            acc, operand = _step(
                index, acc, operand, queries, zeros, k, v, k_full, k_empty, v_full, v_empty, head, start, tiles,
                position, time, earliest, latest, PAGES, TIMES, POSITION_BIAS, TIME_BIAS, THRESHOLDS, time_page,
                num_positions, num_buckets, LOGIT_SCALE, PAGE, BLOCK_N, STAGES, HAS_BIAS, STEPS, True, columns,
                weights_layout,
            )  # fmt: skip
        for index in range(masked, tiles):
            acc, operand = _step(
                index, acc, operand, queries, zeros, k, v, k_full, k_empty, v_full, v_empty, head, start, tiles,
                position, time, earliest, latest, PAGES, TIMES, POSITION_BIAS, TIME_BIAS, THRESHOLDS, time_page,
                num_positions, num_buckets, LOGIT_SCALE, PAGE, BLOCK_N, STAGES, HAS_BIAS, STEPS, False, columns,
                weights_layout,
            )  # fmt: skip
        sums = begin_sum(operand, v, v_full, tiles - 1, acc, BLOCK_N, STAGES)
        acc = warpgroup_mma_wait(0, deps=(sums,))

    row = GROUP * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, sum_layout))
    column = gl.arange(0, V_DIM, gl.SliceLayout(0, sum_layout))
    at = (first_row + row).to(gl.int64)
    out = ((split * num_rows.to(gl.int64) + at) * num_heads + head) * V_DIM
    gl.store(OUT + out[:, None] + column[None, :], acc * (1.0 / NORM), mask=(row < rows)[:, None])


@gluon.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=PACKED)
def prefix_attention_kernel(
    QUERIES, KEYS, VALUES, OUT, TIMES, POSITION_BIAS, TIME_BIAS, THRESHOLDS, ROW_OFFSETS, PREFIX_LENS, PAGE_OFFSETS,
    PAGES, TILES, time_page, num_positions, num_buckets, num_rows,
    LOGIT_SCALE: gl.constexpr, NORM: gl.constexpr, QK_DIM: gl.constexpr, V_DIM: gl.constexpr, PAGE: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, HAS_BIAS: gl.constexpr, STEPS: gl.constexpr,
):  # fmt: skip
    """Grid: tiles, heads, splits. OUT: [splits, num_rows, num_heads, V_DIM], sums of each split. QUERIES, KEYS, VALUES:
    descriptors of the rows and of the pages.
    """
    head, split = gl.program_id(1), gl.program_id(2)
    num_heads, num_splits = gl.num_programs(1), gl.num_programs(2)
    user = gl.load(TILES + 2 * gl.program_id(0))
    if user >= 0:
        tile_row = gl.load(TILES + 2 * gl.program_id(0) + 1)
        user_row = gl.load(ROW_OFFSETS + user)
        rows = gl.load(ROW_OFFSETS + user + 1) - user_row - tile_row
        first_row = user_row + tile_row
        first_position = gl.load(PREFIX_LENS + user) - rows
        n = first_position + gl.minimum(rows, 2 * ROWS)  # keys that the last query of the tile sees
        pages = PAGES + gl.load(PAGE_OFFSETS + user)
        tiles = ((n + BLOCK_N - 1) // BLOCK_N + num_splits - 1) // num_splits
        start = split * tiles * BLOCK_N
        stop = gl.minimum(start + tiles * BLOCK_N, n)
        tiles = gl.maximum(stop - start + BLOCK_N - 1, 0) // BLOCK_N
        seen_by_all = gl.maximum(first_position + 1 - start, 0) // BLOCK_N
        masked = gl.maximum(tiles - seen_by_all, 1)
        q, k, v, q_full, k_full, k_empty, v_full, v_empty = allocate(KEYS, VALUES, QUERIES, STAGES)
        gl.warp_specialize(
            [
                (_consume, (
                    OUT, pages, TIMES, POSITION_BIAS, TIME_BIAS, THRESHOLDS, q, k, v, q_full, k_full, k_empty, v_full,
                    v_empty, head, split, first_row, rows, first_position, start, stop, tiles, masked, time_page,
                    num_positions, num_buckets, num_rows, num_heads,
                    0, LOGIT_SCALE, NORM, QK_DIM, V_DIM, PAGE, BLOCK_N, STAGES, HAS_BIAS, STEPS,
                )),
                (_consume, (
                    OUT, pages, TIMES, POSITION_BIAS, TIME_BIAS, THRESHOLDS, q, k, v, q_full, k_full, k_empty, v_full,
                    v_empty, head, split, first_row, rows, first_position, start, stop, tiles, masked, time_page,
                    num_positions, num_buckets, num_rows, num_heads,
                    1, LOGIT_SCALE, NORM, QK_DIM, V_DIM, PAGE, BLOCK_N, STAGES, HAS_BIAS, STEPS,
                )),
                (produce, (
                    QUERIES, KEYS, VALUES, pages, q, k, v, q_full, k_full, k_empty, v_full, v_empty, head, first_row,
                    start, stop, tiles, PAGE, BLOCK_N, STAGES,
                )),
            ],
            WORKER_WARPS,
            WORKER_REGISTERS,
        )  # fmt: skip


def prefix_attention_parts(
    q: Tensor, kv: PagedKV, batch: Batch, bias: RelativeBias | None, *, logit_scale: float, norm: float
) -> Tensor:
    """See `kernels.gpu.prefix_attention`; for what `kernels.gpu.hopper.launch.takes`."""
    num_rows, num_heads, qk_dim = q.shape
    v_dim = kv.v.shape[3]
    of = ring(max(qk_dim, v_dim), kv.page_tokens, rab=bias is not None)
    out = torch.empty(batch.splits, num_rows, num_heads, v_dim, dtype=torch.float32, device=q.device)
    if not len(batch.tiles):
        return out
    weights = (q, q, q) if bias is None else (bias.position, bias.time, bias.thresholds)
    prefix_attention_kernel[(len(batch.tiles), num_heads, batch.splits)](
        rows_descriptor(q),
        pages_descriptor(kv.k, [of.block_n, qk_dim]),
        pages_descriptor(kv.v, [of.block_n, v_dim]),
        out,
        kv.times,
        *weights,
        batch.row_offsets,
        batch.prefix_lens,
        batch.page_offsets,
        batch.pages,
        batch.tiles,
        kv.times.stride(0),
        0 if bias is None else bias.position.shape[1],
        0 if bias is None else len(bias.thresholds),
        num_rows,
        LOGIT_SCALE=logit_scale,
        NORM=norm,
        QK_DIM=qk_dim,
        V_DIM=v_dim,
        PAGE=kv.page_tokens,
        BLOCK_N=of.block_n,
        STAGES=of.stages,
        HAS_BIAS=bias is not None,
        STEPS=0 if bias is None else bisections(len(bias.thresholds)),
        num_warps=4,
    )
    return out
