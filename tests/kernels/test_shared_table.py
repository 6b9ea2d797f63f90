"""Rows of a shared table: the published places, one definition in Python's own numbers, the same bits everywhere."""

import os
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import shared_table
from kernels.cpu import check
from kernels.cpu.library import Kernel, available
from kernels.cpu.shared_table import FusedLookup
from kernels.gpu.shared_table import shared_rows
from kernels.shared_table import HASHES, Hash, SharedTable, block_starts, lookup
from tests.device import DEVICE

SANITIZE = os.environ.get("MFALCON_SANITIZE", "")
EXTREMES = (0, 1, -1, 2**63 - 1, -(2**63), shared_table.PRIME, -shared_table.PRIME, 2**32 - 1, 2**53 + 1)
tables = st.builds(
    SharedTable,
    hash=st.sampled_from(HASHES),
    num_numbers=st.sampled_from((64, 65, 1_013, 100_003)),
    dim=st.sampled_from((1, 2, 7, 8, 64, 77, 130)),
    block=st.sampled_from((1, 4, 7, 32, 64)),
)
keys_of = st.lists(st.integers(-(2**63), 2**63 - 1) | st.sampled_from(EXTREMES), min_size=0, max_size=40)
offsets = st.sampled_from((0, 1, -(2**63), 2**63 - 1, 77_777_777_777))


@cache
def kernel(policy: str) -> Kernel:
    return check.load(policy, SANITIZE)


def memory_of(table: SharedTable, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of which each tells its place, as bits."""
    places = torch.arange(table.num_numbers)
    return places.to(torch.int32).view(torch.float32) if dtype == torch.float32 else places.to(dtype)


def start_of(table: SharedTable, key: int, block: int, offset: int) -> int:
    """The definition in numbers without an end."""
    if table.hash == "robe-v0":
        r = [int(number) for number in np.random.RandomState(1024).randint(0, shared_table.PRIME, 10)]
        return ((key + offset) * r[2] + block * r[1] + r[0]) % shared_table.PRIME % table.span
    wrap = 2**64
    x = ((key + offset) * 0x9E3779B97F4A7C15 + block * 0xBF58476D1CE4E5B9 + 1024) % wrap
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % wrap
    x = (x ^ x >> 27) * 0x94D049BB133111EB % wrap
    return (x ^ x >> 31) * table.span >> 64


def test_the_published_places() -> None:
    table = SharedTable("robe-v0", 1_000, 8, 4)
    rows = lookup(torch.arange(1_000), table, torch.arange(3))
    assert [(row[0].item(), row[4].item()) for row in rows] == [(730, 839), (567, 676), (40, 149)]
    assert torch.equal(rows.view(3, 2, 4) - rows.view(3, 2, 4)[..., :1], torch.arange(4).expand(3, 2, 4))


@settings(max_examples=60, deadline=None)
@given(table=tables, keys=keys_of, offset=offsets)
def test_definition(table: SharedTable, keys: list[int], offset: int) -> None:
    starts = block_starts(table, torch.tensor(keys, dtype=torch.int64), offset)
    assert starts.tolist() == [[start_of(table, key, b, offset) for b in range(table.num_blocks)] for key in keys]
    rows = lookup(torch.arange(table.num_numbers), table, torch.tensor(keys, dtype=torch.int64), offset)
    assert rows.shape == (len(keys), table.dim)
    within = torch.arange(table.dim) % table.block
    assert torch.equal(rows, starts.repeat_interleave(table.block, dim=1)[:, : table.dim] + within)


@pytest.mark.parametrize("policy", available(SANITIZE))
@settings(max_examples=40, deadline=None)
@given(table=tables, keys=keys_of, offset=offsets, dtype=st.sampled_from((torch.float32, torch.bfloat16)))
def test_the_fused_kernel(policy: str, table: SharedTable, keys: list[int], offset: int, dtype: torch.dtype) -> None:
    memory, asked = memory_of(table, dtype), torch.tensor(keys, dtype=torch.int64)
    found = FusedLookup(kernel(policy))(memory, table, asked, offset)
    expected = lookup(memory, table, asked, offset)
    assert found.dtype == dtype and found.shape == expected.shape
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))


@pytest.mark.skipif(not available(SANITIZE), reason="no kernel is compiled")
def test_the_fused_kernel_keeps_shapes_and_refuses_others() -> None:
    fused, table = FusedLookup(kernel(available(SANITIZE)[0])), SharedTable("robe-mix", 100, 6, 4)
    memory, keys = torch.randn(100), torch.arange(12).view(3, 4)
    assert torch.equal(fused(memory, table, keys.t()), lookup(memory, table, keys.t()))
    for bad in (torch.randn(99), torch.randn(100, 1), torch.randn(200)[::2]):
        with pytest.raises(ValueError, match="must be"):
            fused(bad, table, keys)
    with pytest.raises(ValueError, match="int64"):
        fused(memory, table, keys.int())


@settings(max_examples=15, deadline=None)
@given(table=tables, keys=keys_of, offset=offsets)
def test_the_triton_kernel(table: SharedTable, keys: list[int], offset: int) -> None:
    memory, asked = memory_of(table).to(DEVICE), torch.tensor(keys, dtype=torch.int64, device=DEVICE)
    found, expected = shared_rows(memory, table, asked, offset), lookup(memory, table, asked, offset)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("name", HASHES)
def test_gradients_meet_where_rows_share(name: Hash) -> None:
    table = SharedTable(name, 40, 10, 4)
    memory = torch.randn(40, dtype=torch.float64, requires_grad=True)
    keys = torch.tensor([[3, 7, 3], [2**62, 0, -9]])
    assert torch.autograd.gradcheck(lambda of: lookup(of, table, keys), memory)


def test_rows_of_the_mixed_hash_are_spread_evenly_and_share_no_whole_row() -> None:
    keys = torch.arange(200_000)
    starts = block_starts(SharedTable("robe-mix", 10_031, 64, 32), keys)
    for block in range(2):
        counts = torch.bincount(starts[:, block], minlength=10_000).double()
        assert float(((counts - 20) ** 2 / 20).sum()) / 10_000 == pytest.approx(1, abs=0.05)
    assert len(starts.unique(dim=0)) > 199_000  # 10**8 pairs of places: 200 of the 200,000 meet
    whole = block_starts(SharedTable("robe-v0", 10_031, 64, 32), keys).unique(dim=0)
    assert len(whole) < 30_000  # the published hash has about as many rows as places
