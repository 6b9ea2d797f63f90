"""Vectors of an open vocabulary: every 64-bit id has one, and all lie in one array (`kernels.shared_table`)."""

from typing import Protocol

import torch
from torch import Tensor, nn

from kernels.shared_table import SharedTable, lookup
from mfalcon.models.config_features import EmbeddingConfig


class Lookup(Protocol):
    """What finds rows: `kernels.shared_table.lookup`, or what equals it to the bit and is faster."""

    def __call__(self, memory: Tensor, table: SharedTable, keys: Tensor, offset: int = 0) -> Tensor:
        """See `lookup`."""
        ...


class SharedEmbedding(nn.Module):
    """Id -> vector."""

    def __init__(self, config: EmbeddingConfig, dim: int, init_std: float) -> None:
        super().__init__()
        assert config.kind != "table"
        self.table = SharedTable(config.kind, config.num_numbers, dim, min(config.block, dim))
        self.weight = nn.Parameter(torch.empty(config.num_numbers).normal_(std=init_std))
        self._lookup: Lookup = lookup

    def served_by(self, lookup: Lookup) -> None:
        """Find vectors so where no gradient is asked for."""
        self._lookup = lookup

    def forward(self, keys: Tensor, offset: int = 0) -> Tensor:
        """int64 [...] -> [..., dim]. offset: of another vocabulary in the same array."""
        with_gradient = torch.is_grad_enabled() and self.weight.requires_grad
        return (lookup if with_gradient else self._lookup)(self.weight, self.table, keys, offset)
