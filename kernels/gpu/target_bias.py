"""The bias of scoring: one vector a head, as all targets of a request share position and time."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.bias import RelativeBias
from kernels.gpu.launch import PACKED, accumulator, bisections
from kernels.gpu.tile import time_bucket
from kernels.paged import Batch, PagedKV


@triton.jit(do_not_specialize_on_alignment=PACKED)
def target_bias_kernel(
    OUT,
    TIMES,
    REQUEST_TIMES,
    POSITION_BIAS,
    TIME_BIAS,
    THRESHOLDS,
    PREFIX_LENS,
    PAGE_OFFSETS,
    PAGES,
    PAGE_USERS,
    time_page,
    num_positions,
    num_buckets,
    num_heads,
    PAGE: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Grid: pages of the batch. OUT: [num_heads, num_pages * PAGE]."""
    index = tl.program_id(0)
    user = tl.load(PAGE_USERS + index)
    if user >= 0:
        slot = tl.arange(0, PAGE)
        key = (index - tl.load(PAGE_OFFSETS + user)) * PAGE + slot
        n = tl.load(PREFIX_LENS + user)
        alive = key < n
        page = tl.load(PAGES + index).to(tl.int64)
        time = tl.load(REQUEST_TIMES + user) - tl.load(TIMES + page * time_page + slot, mask=alive, other=0)
        bucket = time_bucket(time, THRESHOLDS, num_buckets, STEPS)
        distance = tl.minimum(tl.maximum(n - key, 0), num_positions - 1)
        size = tl.num_programs(0).to(tl.int64) * PAGE
        for head in range(num_heads):
            bias = tl.load(POSITION_BIAS + head * num_positions + distance).to(OUT.dtype.element_ty)
            bias += tl.load(TIME_BIAS + head * (num_buckets + 1) + bucket).to(OUT.dtype.element_ty)
            tl.store(OUT + head * size + index * PAGE + slot, bias, mask=alive)


def target_bias(kv: PagedKV, batch: Batch, times_ms: Tensor, bias: RelativeBias) -> Tensor:
    """See `kernels.paged_reference.target_bias`."""
    num_heads, num_positions = bias.position.shape
    num_pages = len(batch.pages)
    out = torch.empty(num_heads, num_pages * kv.page_tokens, dtype=accumulator(bias.position.dtype), device=kv.k.device)
    if num_pages:
        target_bias_kernel[(num_pages,)](
            out,
            kv.times,
            times_ms,
            bias.position,
            bias.time,
            bias.thresholds,
            batch.prefix_lens,
            batch.page_offsets,
            batch.pages,
            batch.page_users,
            kv.times.stride(0),
            num_positions,
            len(bias.thresholds),
            num_heads,
            PAGE=kv.page_tokens,
            STEPS=bisections(len(bias.thresholds)),
        )
    return out
