"""Linear layers of the fused kernel's product: the definition in float64, for any sizes and any rows that lie apart."""

import os
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.cpu import build_library, check
from kernels.cpu.library import FusedUnavailable, Kernel, available
from kernels.cpu.linear import FusedLinear

SANITIZE = os.environ.get("MFALCON_SANITIZE", "")
POLICIES = [name for name in available(SANITIZE) if build_library.POLICIES[name].element == "float32"]
BOUND = 1e-5
"""Of float32 sums of up to 300 products of numbers about 1, relative to the largest."""

pytestmark = pytest.mark.skipif(not POLICIES, reason="no kernel of float32 is compiled")


@cache
def kernel(policy: str) -> Kernel:
    return check.load(policy, SANITIZE)


def layer(policy: str, weight: Tensor, bias: Tensor | None = None) -> FusedLinear:
    return FusedLinear(kernel(policy), weight, bias)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def apart(rows: Tensor, gap: int) -> Tensor:
    """The same rows with NaN between them."""
    wide = torch.full((len(rows), rows.shape[1] + gap), float("nan"))
    wide[:, : rows.shape[1]] = rows
    return wide[:, : rows.shape[1]]


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert float((found.double() - expected).abs().max()) <= BOUND * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from((1, 2, 5, 6, 7, 13, 31)),
    depth=st.sampled_from((1, 2, 15, 16, 64, 77, 300)),
    columns=st.sampled_from((1, 3, 8, 15, 16, 17, 63, 64, 65, 130)),
    gap=st.sampled_from((0, 1, 9)),
    kind=st.sampled_from(("plain", "relu", "cross", "in place")),
    with_bias=st.booleans(),
    given_bias=st.booleans(),
    seed=st.integers(0, 999),
)
def test_definition(
    policy: str,
    rows: int,
    depth: int,
    columns: int,
    gap: int,
    kind: str,
    with_bias: bool,
    given_bias: bool,
    seed: int,
) -> None:
    """And nothing is written beside the rows of the result."""
    x, weight = random(rows, depth, seed=seed), random(columns, depth, seed=seed + 1)
    bias = random(columns, seed=seed + 2) if with_bias else None
    other = random(columns, seed=seed + 3) if given_bias else None
    factor, before = random(rows, columns, seed=seed + 4), random(rows, columns, seed=seed + 5)
    start = other if other is not None else bias
    y = x.double() @ weight.double().t() + (0.0 if start is None else start.double())
    memory = torch.full((rows, columns + gap), 7.5)
    out = memory[:, :columns]
    made = layer(policy, weight, bias)
    if kind in ("plain", "relu"):
        found = made(apart(x, gap), out, relu=kind == "relu", bias=other)
        expected = y.relu() if kind == "relu" else y
    else:
        if kind == "in place":
            out.copy_(before)
        given_before = out if kind == "in place" else apart(before, gap)
        found = made(apart(x, gap), out, bias=other, factor=apart(factor, gap), before=given_before)
        expected = factor.double() * y + before.double()
    assert found is out and (memory[:, columns:] == 7.5).all()
    assert_close(out, expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_row_has_one_result_whatever_stands_beside_it(policy: str) -> None:
    """Any number of rows before and after it, and of threads: the same bits."""
    made, x = layer(policy, random(70, 33, seed=0), random(70, seed=1)), random(50, 33, seed=2)
    whole, threads = made(x), torch.get_num_threads()
    for first, last in ((0, 1), (3, 9), (11, 50), (49, 50)):
        assert torch.equal(made(x[first:last]), whole[first:last])
    try:
        torch.set_num_threads(3)
        assert torch.equal(made(x), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_not_finite_stays_in_its_row(policy: str) -> None:
    made, x = layer(policy, random(5, 4, seed=0)), random(9, 4, seed=1)
    x[3, 2], x[6, 0] = float("nan"), float("inf")
    for relu in (False, True):
        found = made(x, relu=relu)
        assert (
            found[3].isnan().all() and found[[0, 1, 2, 4, 5, 7, 8]].isfinite().all() and not found[6].isfinite().all()
        )
    assert made(x[:0]).shape == (0, 5)


@pytest.mark.parametrize("policy", POLICIES[:1])
def test_what_does_not_fit_is_refused(policy: str) -> None:
    made, x = layer(policy, random(5, 4, seed=0)), random(3, 4, seed=1)
    out = torch.empty(3, 5)
    for wrong in (
        lambda: made(x[:, :3]),
        lambda: made(x.double()),
        lambda: made(x[0]),
        lambda: made(x.t().contiguous().t()),
        lambda: made(x, out[:2]),
        lambda: made(x, bias=torch.zeros(4)),
        lambda: made(x, factor=out),
        lambda: made(x, before=out),
        lambda: made(x, factor=out, before=out, relu=True),
        lambda: layer(policy, torch.zeros(0, 4)),
        lambda: layer(policy, torch.zeros(4)),
        lambda: layer(policy, torch.zeros(5, 4), torch.zeros(4)),
    ):
        with pytest.raises(ValueError, match=r"must|not with|only one"):
            wrong()


def test_a_kernel_of_bfloat16_has_none() -> None:
    names = [name for name in available(SANITIZE) if build_library.POLICIES[name].element == "bfloat16"]
    if not names:
        pytest.skip("no kernel of bfloat16 is compiled")
    with pytest.raises(FusedUnavailable, match="float32"):
        layer(names[-1], torch.zeros(2, 2))
