"""How the Hopper kernels are launched: tensor descriptors, tile sizes, and what they can take at all."""

from dataclasses import dataclass

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.paged import Batch, PagedKV

TILE_ROWS = 128
"""Two warpgroups of 64 rows."""
WORKER_WARPS = gl.constexpr([4, 1])
"""Of the second consumer and of the producer; the first consumer is the kernel's own four."""
WORKER_REGISTERS = gl.constexpr([240, 24])
DTYPES = (torch.bfloat16, torch.float16)
HEAD_DIMS = ((64, 64), (128, 128))
"""Of keys and values: what is compiled and held to limits ahead."""
LEAST_PAGE = 64
"""Tokens of a page. The few keys of a state on small pages keep no ring busy; the self-check has larger ones alone."""
_ALIGNMENT = 16
"""Bytes to which a descriptor's base and strides are multiples."""


@dataclass(frozen=True, slots=True)
class Ring:
    """block_n: keys of a tile. stages: buffers of keys, and as many of values."""

    block_n: int
    stages: int


FP8_RING = Ring(64, 4)
"""For products of float8. More keys leave no registers for two sums, of a tile and of all before it."""


def ring(head_dim: int, page_tokens: int, *, rab: bool = False) -> Ring:
    """For heads of so many numbers at most: keys and values fill 128 KiB at most, and the queries up to 32 KiB more. A
    tile lies within a page. rab: it is computed in the tile, and its places in two tables take registers.
    """
    block_n = min(32 if rab else 128, page_tokens)
    return Ring(block_n, min(4, 128 * 1024 // (2 * 2 * block_n * head_dim)))


def takes(rows: tuple[Tensor, ...], kv: PagedKV, batch: Batch, prefix_bias: Tensor | None = None) -> bool:
    """Whether the kernels can compute this. rows: views [num_rows, num_heads, head_dim], the queries first."""
    dims, dtype = (kv.k.shape[3], kv.v.shape[3]), rows[0].dtype
    described = (rows[0], kv.k, kv.v) if prefix_bias is None else (rows[0], kv.k, kv.v, prefix_bias)
    return (
        batch.tile_rows == TILE_ROWS
        and dtype in DTYPES
        and all(x.dtype == dtype for x in (*rows, kv.k, kv.v))
        and dims in HEAD_DIMS
        and kv.page_tokens >= LEAST_PAGE
        and kv.page_tokens % ring(max(dims), kv.page_tokens).block_n == 0
        and all(_describable(x) for x in described)
    )


def takes_fp8(rows: tuple[Tensor, ...], kv: PagedKV, batch: Batch, prefix_bias: Tensor | None = None) -> bool:
    """Whether `fp8_target_attention` can compute this: on pages of float8 that have V transposed for it."""
    if kv.k_scales is None or kv.v_scales is None or not kv.transposed:
        return False
    pages = (kv.k, kv.v.mT, kv.k_scales, kv.v_scales)
    return (
        batch.tile_rows == TILE_ROWS
        and rows[0].dtype in DTYPES
        and all(x.dtype == rows[0].dtype for x in rows)
        and kv.k.dtype == kv.v.dtype == torch.float8_e4m3fn
        and (kv.k.shape[3], kv.v.shape[3]) in HEAD_DIMS
        and kv.page_tokens % FP8_RING.block_n == 0
        and all(_describable(x) for x in (pages if prefix_bias is None else (*pages, prefix_bias)))
    )


def rows_descriptor(x: Tensor) -> TensorDescriptor:
    """Of queries [num_rows, num_heads, head_dim], half a tile at a time."""
    block = [TILE_ROWS // 2, 1, x.shape[2]]
    return TensorDescriptor.from_tensor(x, block, _layout(x, 3, block[2]))


def pages_descriptor(x: Tensor, tile: list[int]) -> TensorDescriptor:
    """Of keys or values [num_pages, num_heads, page_tokens, head_dim], or with the last two exchanged. What a tile of
    them covers outside its page is zero.
    """
    return TensorDescriptor.from_tensor(x, [1, 1, *tile], _layout(x, 4, tile[1]))


def scales_descriptor(x: Tensor, block_n: int) -> TensorDescriptor:
    """Of scales [num_pages, num_heads, page_tokens]; zero outside the page, too."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=8 * x.dtype.itemsize, rank=3)
    return TensorDescriptor.from_tensor(x, [1, 1, block_n], layout)


def _layout(x: Tensor, rank: int, width: int) -> gl.NVMMASharedLayout:
    """width: numbers of a tile that lie side by side."""
    swizzle = min(128, width * x.dtype.itemsize)
    return gl.NVMMASharedLayout(swizzle_byte_width=swizzle, element_bitwidth=8 * x.dtype.itemsize, rank=rank)


def _describable(x: Tensor) -> bool:
    in_bytes = (x.data_ptr(), *(stride * x.dtype.itemsize for stride in x.stride()[:-1]))
    return len(x) > 0 and x.stride(-1) == 1 and all(size % _ALIGNMENT == 0 for size in in_bytes)
