"""Rows of a shared table in the fused CPU kernel, which copies bytes and asks memory for them ahead."""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.library import CSharedTable, Kernel
from kernels.shared_table import SharedTable, lookup, signed


@dataclass(frozen=True, slots=True)
class FusedLookup:
    """`kernels.shared_table.lookup` without gradients, of any dtype."""

    kernel: Kernel

    def __call__(self, memory: Tensor, table: SharedTable, keys: Tensor, offset: int = 0) -> Tensor:
        """See `lookup`. Raises ValueError for a memory that is not [num_numbers] on the CPU, and MemoryError."""
        fits = memory.shape == (table.num_numbers,) and memory.is_contiguous() and memory.device.type == "cpu"
        if not fits or keys.dtype != torch.int64 or keys.device.type != "cpu":
            found = f"memory: {tuple(memory.shape)} on {memory.device}, keys: {keys.dtype} on {keys.device}"
            raise ValueError(f"{found}; must be [{table.num_numbers}] numbers in a row and int64, on the CPU")
        keys = keys.contiguous()
        rows = torch.empty((*keys.shape, table.dim), dtype=memory.dtype)
        asked = CSharedTable(
            memory.data_ptr(),
            *(table.span, table.block, table.dim, memory.itemsize, signed(offset), int(table.hash == "robe-mix")),
        )
        if self.kernel.shared_rows(ctypes.byref(asked), keys.data_ptr(), keys.numel(), rows.data_ptr()):
            raise MemoryError("the fused kernel ran out of memory")
        return rows


def differs(kernel: Kernel) -> bool:
    """Whether a kernel finds other rows than the definition does: its self-check."""
    memory = torch.arange(1_013.0)
    keys = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), *range(77, 7_700, 301)])
    tables = [SharedTable("robe-v0", 1_013, 13, 4), SharedTable("robe-mix", 1_013, 70, 32)]
    fused = FusedLookup(kernel)
    return any(
        not torch.equal(fused(memory, table, keys, offset), lookup(memory, table, keys, offset))
        for table in tables
        for offset in (0, -12_345_678_901)
    )
