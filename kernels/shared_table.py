"""A table whose rows share memory: any 64-bit key has a row, whose blocks lie at hashed places of one array.

`lookup` is the definition, and what trains; `kernels.cpu.shared_table` and `kernels.gpu.shared_table` equal it to the
bit. Source: Random Offset Block Embedding (Desai, Chou, Shrivastava 2022, arXiv 2108.02191), section 3.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

Hash: TypeAlias = Literal["robe-v0", "robe-mix"]
"""`robe-v0` is the published hash, which also shares whole rows: all blocks of a row follow from one place.
`robe-mix` hashes each block by itself.
"""
HASHES: Final[tuple[Hash, ...]] = ("robe-v0", "robe-mix")

PRIME: Final = 2_038_074_743
FACTORS: Final = (634_329_019, 1_825_252_241, 871_205_356)
"""Of robe-v0: what is added, of a block's number and of a key. The first numbers of RandomState(1024) below `PRIME`."""
KEY_STEP: Final = 0x9E3779B97F4A7C15
BLOCK_STEP: Final = 0xBF58476D1CE4E5B9
MIX_STEPS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SEED: Final = 1024
"""Of robe-mix: SplitMix64's finaliser (Steele, Lea, Flood 2014) of key * KEY_STEP + block * BLOCK_STEP + SEED."""
MOST_NUMBERS: Final = (1 << 31) - 1
"""Of the array, so that products of a place and of half a hash fit 64 bits."""
_HALF: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class SharedTable:
    """How rows of width `dim` lie in an array of `num_numbers`: in blocks of `block` numbers, of which the last is cut
    where `dim` is no multiple. The caller keeps 0 < block <= num_numbers <= MOST_NUMBERS.
    """

    hash: Hash
    num_numbers: int
    dim: int
    block: int

    @property
    def span(self) -> int:
        """Places where a block may begin."""
        return self.num_numbers - self.block + 1

    @property
    def num_blocks(self) -> int:
        """Of a row."""
        return -(-self.dim // self.block)


def block_starts(table: SharedTable, keys: Tensor, offset: int = 0) -> Tensor:
    """Where the blocks of rows begin. keys: int64 [...]. Returns int64 [..., num_blocks].

    offset: of a second table in the same array, added to each key (modulo 2**64).
    """
    blocks = torch.arange(table.num_blocks, device=keys.device)
    if table.hash == "robe-v0":
        add, of_block, of_key = FACTORS
        x = (keys % PRIME + offset % PRIME) % PRIME
        return (x.unsqueeze(-1) * of_key + blocks * of_block + add) % PRIME % table.span
    x = (keys.unsqueeze(-1) + signed(offset)) * signed(KEY_STEP) + blocks * signed(BLOCK_STEP) + SEED
    for shift, step in zip((30, 27), MIX_STEPS, strict=True):
        x = (x ^ _shifted(x, shift)) * signed(step)
    x = x ^ _shifted(x, 31)
    high, low = _shifted(x, 32), x & _HALF
    return (high * table.span + (low * table.span >> 32)) >> 32  # the high half of the product with 64 bits


def lookup(memory: Tensor, table: SharedTable, keys: Tensor, offset: int = 0) -> Tensor:
    """Rows of keys, int64 [...] -> [..., dim] of the dtype of `memory` [num_numbers]; differentiable in it."""
    starts = block_starts(table, keys, offset).unsqueeze(-1)
    places = (starts + torch.arange(table.block, device=keys.device)).flatten(-2)[..., : table.dim]
    rows: Tensor = _Gather.apply(memory, places)  # type: ignore[no-untyped-call]
    return rows


class _Gather(torch.autograd.Function):
    """memory[places], whose gradient is one `index_add_`: four times as fast as that of an index."""

    @staticmethod
    def forward(ctx: FunctionCtx, memory: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.num_numbers = len(memory)  # type: ignore[attr-defined]
        return memory[places]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        total = gradient.new_zeros(ctx.num_numbers)
        return total.index_add_(0, places.flatten(), gradient.flatten()), None


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits of the 64 bits without a sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def signed(number: int) -> int:
    """The int64 of the same 64 bits."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number
