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
HEAD_DIMS = (64, 128)
_ALIGNMENT = 16
"""Bytes to which a descriptor's base and strides are multiples."""


@dataclass(frozen=True, slots=True)
class Ring:
    """block_n: keys of a tile. stages: buffers of keys, and as many of values."""

    block_n: int
    stages: int


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
        and all(dim in HEAD_DIMS for dim in dims)
        and kv.page_tokens % ring(max(dims), kv.page_tokens).block_n == 0
        and all(_describable(x) for x in described)
    )


def rows_descriptor(x: Tensor) -> TensorDescriptor:
    """Of queries [num_rows, num_heads, head_dim], half a tile at a time."""
    block = [TILE_ROWS // 2, 1, x.shape[2]]
    return TensorDescriptor.from_tensor(x, block, _layout(x, 3))


def pages_descriptor(x: Tensor, block_n: int) -> TensorDescriptor:
    """Of keys or values [num_pages, num_heads, page_tokens, head_dim]. What a tile covers outside its page is zero."""
    return TensorDescriptor.from_tensor(x, [1, 1, block_n, x.shape[3]], _layout(x, 4))


def _layout(x: Tensor, rank: int) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8 * x.dtype.itemsize, rank=rank)


def _describable(x: Tensor) -> bool:
    in_bytes = (x.data_ptr(), *(stride * x.dtype.itemsize for stride in x.stride()[:-1]))
    return len(x) > 0 and x.stride(-1) == 1 and all(size % _ALIGNMENT == 0 for size in in_bytes)
