"""The split rule: what fits a multiprocessor, the number that ends soonest, and no split without work."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton", reason="no triton for this platform")

from kernels.gpu import configs, limits, splits
from kernels.gpu.configs import Device

H100 = Device("an H100", 90, 132)
TARGET = "target_attention"
HEADS = 4


def splits_of(num_rows: int, prefix_len: int, head_dim: int = 128, tile_rows: int = 128) -> int:
    return splits.splits_on(H100, TARGET, -(-num_rows // tile_rows) * HEADS, prefix_len, 2, head_dim, tile_rows)


@pytest.mark.parametrize(
    ("num_rows", "prefix_len", "wanted"),
    [(2048, 6673, 2), (1024, 4096, 4), (512, 6673, 8), (256, 6673, 15), (4096, 6673, 1), (65_536, 6673, 1)],
)
def test_a_large_tile_has_a_multiprocessor_to_itself(num_rows: int, prefix_len: int, wanted: int) -> None:
    """2,048 targets at n=6,673 came to 320 programs, in three rounds of 132; 1,024 at n=4,096 to 9 splits, 8 with
    work; 4,096 to 3, where 1 ends sooner.
    """
    assert splits_of(num_rows, prefix_len) == wanted


@given(st.integers(1, 600), st.integers(0, 20_000), st.sampled_from((16, 64, 128)), st.sampled_from((64, 128)))
def test_every_split_has_work(num_programs: int, prefix_len: int, tile_rows: int, head_dim: int) -> None:
    found = splits.splits_on(H100, TARGET, num_programs, prefix_len, 2, head_dim, tile_rows)
    block_n = configs.attention(TARGET, H100, 2, head_dim, tile_rows).block_n
    blocks = -(-prefix_len // block_n)
    each = -(-blocks // found)
    assert 1 <= found <= splits.MOST
    assert found == 1 or (found - 1) * each < blocks


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("case", [(64, 16), (64, 64), (128, 16), (128, 64), (128, 128), (256, 64)], ids=str)
def test_what_fits_is_what_was_compiled(architecture: int, case: tuple[int, int]) -> None:
    """The estimate comes to the number that registers and shared memory of the machine code allow."""
    head_dim, tile_rows = case
    where = Device("", architecture, 108)
    config = configs.attention(TARGET, where, 2, head_dim, tile_rows)
    granted = limits.read(limits.path_of("3.7"))[
        f"{architecture} {TARGET} bfloat16 {head_dim}x{head_dim} rows{tile_rows}"
    ]
    by_shared = 1024 * (configs.SHARED_KIB[architecture] + 1) // (granted.shared + 1024)
    by_registers = 65_536 // (32 * config.num_warps * granted.registers)
    found = splits.programs_that_fit(where, config, 2, head_dim, tile_rows)
    assert found == min(by_shared, by_registers)


def test_a_shape_knows_every_number_that_its_prefixes_call_for() -> None:
    """So that a graph is there for each: off a device only one multiprocessor counts."""
    numbers = splits.Numbers(4, 16, torch.device("cpu"))
    found = splits.classes(TARGET, 1, 65_536, 16, numbers)
    each = {splits.num_splits(TARGET, 1, n, 16, numbers) for n in (256, 512, 1024, 2048, 4096, 65_536)}
    assert found == sorted(each)
    assert len(found) > 1
