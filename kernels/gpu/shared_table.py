"""Rows of a shared table: `kernels.shared_table.lookup` without gradients, a hash for each block of a row."""

import triton
import triton.language as tl
from torch import Tensor

from kernels import shared_table as definition
from kernels.shared_table import SharedTable, signed

_NUMBERS = 2_048
"""Of one program."""
_PRIME = tl.constexpr(definition.PRIME)
_ADD, _OF_BLOCK, _OF_KEY = (tl.constexpr(factor) for factor in definition.FACTORS)
_KEY_STEP, _BLOCK_STEP = tl.constexpr(definition.KEY_STEP), tl.constexpr(definition.BLOCK_STEP)
_FIRST_STEP, _LAST_STEP = (tl.constexpr(step) for step in definition.MIX_STEPS)
_SEED = tl.constexpr(definition.SEED)


@triton.jit
def _starts(key, block, OFFSET: tl.constexpr, SPAN: tl.constexpr, MIXES: tl.constexpr):
    """Where blocks of rows begin: int64, as keys and numbers of blocks."""
    if MIXES:
        bits = key.to(tl.uint64) + tl.full(key.shape, OFFSET, tl.int64).to(tl.uint64)
        x = bits * _KEY_STEP + block.to(tl.uint64) * _BLOCK_STEP + _SEED
        x = (x ^ (x >> 30)) * _FIRST_STEP
        x = (x ^ (x >> 27)) * _LAST_STEP
        x = x ^ (x >> 31)
        start = (((x >> 32) * SPAN + ((x & 0xFFFFFFFF) * SPAN >> 32)) >> 32).to(tl.int64)
    else:
        rest = key % _PRIME
        rest = (tl.where(rest < 0, rest + _PRIME, rest) + OFFSET) % _PRIME
        start = (rest * _OF_KEY + block * _OF_BLOCK + _ADD) % _PRIME % SPAN
    return start


@triton.jit(do_not_specialize=["num_keys"], do_not_specialize_on_alignment=["MEMORY", "KEYS"])
def shared_rows_kernel(
    MEMORY,
    KEYS,
    OUT,
    num_keys,
    OFFSET: tl.constexpr,
    SPAN: tl.constexpr,
    MIXES: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    PAD: tl.constexpr,
    ITEMS: tl.constexpr,
):
    """Grid: blocks of all rows, ITEMS a program."""
    NUM_BLOCKS: tl.constexpr = (DIM + BLOCK - 1) // BLOCK
    item = tl.program_id(0).to(tl.int64) * ITEMS + tl.arange(0, ITEMS)
    row = item // NUM_BLOCKS
    block = item % NUM_BLOCKS
    is_ours = row < num_keys
    key = tl.load(KEYS + row, mask=is_ours, other=0)
    start = _starts(key, block, OFFSET, SPAN, MIXES)
    within = tl.arange(0, PAD)
    column = block[:, None] * BLOCK + within[None, :]
    mask = is_ours[:, None] & (within < BLOCK)[None, :] & (column < DIM)
    numbers = tl.load(MEMORY + start[:, None] + within[None, :], mask=mask, other=0.0)
    tl.store(OUT + row[:, None] * DIM + column, numbers, mask=mask)


def shared_rows(memory: Tensor, table: SharedTable, keys: Tensor, offset: int = 0) -> Tensor:
    """memory: [num_numbers]. keys: int64 [...]. Returns [..., dim]."""
    rows = memory.new_empty((*keys.shape, table.dim))
    if not keys.numel():
        return rows
    pad = max(2, 1 << (table.block - 1).bit_length())
    items = max(1, _NUMBERS // pad)
    is_mix = table.hash == "robe-mix"
    shared_rows_kernel[(triton.cdiv(keys.numel() * table.num_blocks, items),)](
        memory,
        keys.contiguous(),
        rows,
        keys.numel(),
        OFFSET=signed(offset) if is_mix else offset % definition.PRIME,
        SPAN=table.span,
        MIXES=is_mix,
        DIM=table.dim,
        BLOCK=table.block,
        PAD=pad,
        ITEMS=items,
    )
    return rows
