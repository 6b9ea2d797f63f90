"""The compiled end of a model: its definition in float64, for any sizes; and what is refused."""

import os
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cpu import build_library, check
from kernels.cpu.library import Kernel, available
from kernels.cpu.readout import FusedReadout, ReadoutWeights
from kernels.cpu.sample_readout import ReadoutSize, readout_deviation

SANITIZE = os.environ.get("MFALCON_SANITIZE", "")
POLICIES = [name for name in available(SANITIZE) if build_library.POLICIES[name].element == "float32"]
BOUND = 3e-6
"""Of a score that is a probability, or relative: float32's rounding over sums of up to 130 products."""

pytestmark = pytest.mark.skipif(not POLICIES, reason="no kernel of float32 is compiled")


@cache
def kernel(policy: str) -> Kernel:
    return check.load(policy, SANITIZE)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None)
@given(
    num_targets=st.sampled_from((0, 1, 5, 6, 47, 48, 49, 200)),
    dim=st.sampled_from((1, 8, 15, 16, 64, 77, 130)),
    hidden=st.sampled_from((1, 3, 16, 65)),
    num_tasks=st.sampled_from((1, 2, 8, 9, 17)),
    dense=st.sampled_from((0, 1, 9, 33)),
    own_context=st.booleans(),
)
def test_definition(
    policy: str, num_targets: int, dim: int, hidden: int, num_tasks: int, dense: int, own_context: bool
) -> None:
    size = ReadoutSize(num_targets, dim, hidden, num_tasks, dense, own_context)
    if num_targets:
        assert readout_deviation(kernel(policy), size) <= BOUND


def small(policy: str, item_bias: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)) -> FusedReadout:
    """dim 4, hidden 3, one binary task, 5 items, one context feature of 2 codes."""
    torch.manual_seed(0)
    weights = ReadoutWeights(
        norm=(torch.ones(4), torch.zeros(4)),
        norm_eps=1e-5,
        first=(torch.randn(3, 4), torch.randn(3)),
        last=(torch.randn(1, 3), torch.randn(1)),
        dense=None,
        item_bias=torch.tensor(item_bias)[:, None],
        context=torch.randn(2, 4),
        first_codes=[0],
        is_binary=[True],
        centers=[0.0],
    )
    return FusedReadout(kernel(policy), weights)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("row", "code"), [(-1, 0), (5, 0), (0, -1), (0, 2), (2**62, 0), (0, -(2**62))])
def test_what_there_is_not_is_refused(policy: str, row: int, code: int) -> None:
    with pytest.raises(IndexError, match="out of range"):
        small(policy)(torch.zeros(1, 4), torch.tensor([row]), torch.tensor([code]), None)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_does_not_fit_is_refused(policy: str) -> None:
    readout, rows, codes = small(policy), torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="hidden"):
        readout(torch.zeros(2, 5), rows, codes, None)
    with pytest.raises(ValueError, match="rows"):
        readout(torch.zeros(2, 4), rows.int(), codes, None)
    with pytest.raises(ValueError, match="codes"):
        readout(torch.zeros(2, 4), rows, torch.zeros(3, 1, dtype=torch.int64), None)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_bad_target_spoils_no_other(policy: str) -> None:
    readout, hidden = small(policy), torch.randn(99, 4)
    rows, codes = torch.arange(99) % 5, torch.zeros(1, dtype=torch.int64)
    expected = readout(hidden, rows, codes, None)
    hidden[41] = float("nan")
    hidden[57] = float("inf")
    found = readout(hidden, rows, codes, None)
    bad = torch.tensor([41, 57])
    assert found[bad].isnan().all()
    good = torch.ones(99, dtype=torch.bool)
    good[bad] = False
    assert torch.equal(found[good], expected[good])
    one = torch.cat([readout(hidden[i : i + 1], rows[i : i + 1], codes, None) for i in range(99)])
    assert torch.equal(one[good], expected[good])


@pytest.mark.parametrize("policy", POLICIES)
def test_extreme_logits_are_probabilities(policy: str) -> None:
    readout = small(policy, (-1e30, -90.0, 0.0, 90.0, float("inf")))
    found = readout(torch.randn(5, 4), torch.arange(5), torch.zeros(1, dtype=torch.int64), None)[:, 0]
    assert found.isfinite().all()
    assert found[:2].max() < 1e-30
    assert found[3:].min() == 1
