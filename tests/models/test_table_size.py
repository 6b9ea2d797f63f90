"""What a shared table is said to share is what its places share."""

import pytest
import torch

from kernels.shared_table import Hash, SharedTable, block_starts
from mfalcon.models.config_features import EmbeddingConfig
from mfalcon.models.table_size import table_size


@pytest.mark.parametrize(
    ("kind", "num_numbers", "dim", "block"),
    [
        ("robe-v0", 20_000, 128, 32),
        ("robe-v0", 3_000, 64, 8),
        ("robe-v0", 400_000, 16, 16),
        ("robe-mix", 20_000, 128, 32),
        ("robe-mix", 200, 64, 32),
        ("robe-mix", 400_000, 16, 16),
    ],
)
def test_odds_are_those_of_random_ids(kind: Hash, num_numbers: int, dim: int, block: int) -> None:
    num_ids = 40_000
    keys = torch.randint(-(2**62), 2**62, (num_ids,), generator=torch.Generator().manual_seed(0))
    starts = block_starts(SharedTable(kind, num_numbers, dim, block), keys)
    _, inverse, counts = starts.unique(dim=0, return_inverse=True, return_counts=True)
    shared = float((counts[inverse] > 1).double().mean())
    size = table_size(EmbeddingConfig(kind=kind, memory_mb=4 * num_numbers / 1e6, block=block), dim, num_ids)
    assert size.vector_shared == pytest.approx(shared, abs=0.01)
    _, first, counts = starts[:, 0].unique(return_inverse=True, return_counts=True)
    assert size.block_shared == pytest.approx(float((counts[first] > 1).double().mean()), abs=0.01)


def test_a_table_of_billions() -> None:
    size = table_size(EmbeddingConfig(kind="robe-mix", memory_mb=10), 128, 195_312_500)
    assert size.virtual_parameters == 25_000_000_000 and size.virtual_bytes == 10**11
    assert size.array_bytes == 10**7 and size.compression == 10_000
    assert size.vector_shared < 1e-10 and size.block_shared == pytest.approx(1)
    assert size.two_hashes_equal == pytest.approx(0.00103, rel=0.01)
    assert table_size(EmbeddingConfig(kind="robe-v0", memory_mb=10), 128, 195_312_500).vector_shared > 0.99
    assert table_size(EmbeddingConfig(kind="robe-mix", memory_mb=10), 128, 0).vector_shared == 0
