"""The Hopper kernels' own code, run as plain Python, is the reference at odd sizes, in any order of its warps."""

import pytest

pytest.importorskip("triton", reason="no triton for this platform")

from dataclasses import replace

import torch
from torch import Tensor

from kernels import fp8_reference, paged_reference
from kernels.gpu.hopper import fp8_target_attention, prefix_attention, target_attention
from tests.device import INTERPRETED, poisoned
from tests.kernels.hopper_machine import Machine
from tests.kernels.paged_world import Case, World, world

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="computes on the CPU")

LOGIT_SCALE, NORM = 0.125, 7.0
TOLERANCE = 1e-5
"""In float32, relative to the largest output: sums in another order."""


def case(
    *users: tuple[int, int],
    splits: int = 1,
    bias: bool = True,
    page_tokens: int = 128,
    dims: int = 64,
    transposed: bool = False,
) -> Case:
    return Case(
        users,
        num_heads=2,
        qk_dim=64,
        v_dim=dims,
        page_tokens=page_tokens,
        tile_rows=128,
        splits=splits,
        num_positions=9 if bias else None,
        num_buckets=5,
        larger=1,
        slab=True,
        shared=True,
        seed=len(users),
        transposed=transposed,
    )


def aligned(x: Tensor) -> Tensor:
    """The same rows where a descriptor can find them: views of wider ones."""
    width = x.shape[1] * x.shape[2]
    wide = x.new_full((len(x), width + 8), torch.nan)
    wide[:, :width] = x.flatten(1)
    return wide[:, :width].view(len(x), *x.shape[1:])


def hopper_world(of: Case) -> World:
    w = world(of, torch.float32)
    return replace(w, q=aligned(w.q), k=aligned(w.k), v=aligned(w.v))


CASES = (
    case((5, 300)),
    case((130, 129), (3, 128), (1, 0), (0, 50), (2, 1)),
    case((7, 700), splits=3),
    case((7, 140), (1, 600), splits=4, bias=False),
    case((2, 127), page_tokens=64),
    case((2, 257), dims=128),
)


@pytest.mark.parametrize("of", CASES, ids=lambda of: f"{of.users} splits{of.splits}")
def test_target_attention_is_the_reference(of: Case) -> None:
    w = hopper_world(of)
    host = w.host()
    bias = own = None
    if host.bias is not None:
        bias = paged_reference.target_bias(host.kv, host.batch, host.times_ms, host.bias)
        own = host.bias.own()
    scale = {"logit_scale": LOGIT_SCALE, "norm": NORM}
    expected = paged_reference.target_attention(
        host.q, host.k, host.v, host.kv, host.batch, bias, own, logit_scale=LOGIT_SCALE, norm=NORM
    )
    op = Machine(seed=of.seed).wrapper(target_attention.target_attention_parts)
    with poisoned():
        parts = op(
            w.q,
            w.k,
            w.v,
            w.kv,
            w.batch,
            None if bias is None else bias.float(),
            None if own is None else own.float(),
            **scale,
        )
    got, expected = parts.sum(0)[: w.num_rows].double(), expected[: w.num_rows]
    assert parts[:, w.num_rows :].isnan().all()
    assert float((got - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


FP8_CASES = (
    case((5, 300), transposed=True),
    case((130, 129), (3, 128), (1, 0), (0, 50), (2, 1), transposed=True),
    case((7, 700), (2, 65), splits=3, transposed=True),
    case((7, 140), (1, 600), splits=4, bias=False, transposed=True),
    case((2, 257), dims=128, page_tokens=64, transposed=True),
)
FLIPPED, ANOTHER_BIT = 0.02, 2.0**-3
"""Rows in which some logit, a float32 here and a float64 in the definition, has another last bit of its weight's four;
and how much of a weight that bit is at most.
"""


@pytest.mark.parametrize("of", FP8_CASES, ids=lambda of: f"{of.users} splits{of.splits}")
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e10])
def test_target_attention_with_float8_products_is_the_reference(of: Case, scale: float) -> None:
    """scale: of the queries, which the logits take back, and of the values."""
    w = world(of, torch.float32, torch.float8_e4m3fn)
    assert w.kv.v_scales is not None
    q, kv = w.q * scale, replace(w.kv, v_scales=w.kv.v_scales * scale)
    host = replace(w, q=q, kv=kv).host()
    bias = own = None
    if host.bias is not None:
        bias = paged_reference.target_bias(host.kv, host.batch, host.times_ms, host.bias)
        own = host.bias.own()
    form = {"logit_scale": LOGIT_SCALE / scale, "norm": NORM}
    expected = fp8_reference.target_attention(host.q, host.k, host.v, host.kv, host.batch, bias, own, **form)
    op = Machine(seed=of.seed).wrapper(fp8_target_attention.target_attention_parts)
    with poisoned():
        parts = op(
            q,
            w.k,
            w.v,
            kv,
            w.batch,
            None if bias is None else bias.float(),
            None if own is None else own.float(),
            **form,
        )
    got, expected = parts.sum(0)[: w.num_rows].double(), expected[: w.num_rows]
    assert parts[:, w.num_rows :].isnan().all()
    off = (got - expected).abs().amax(-1) / expected.abs().max()  # of each row and head
    assert (off > TOLERANCE).double().mean() <= FLIPPED
    assert off.max() <= ANOTHER_BIT


PREFIX_CASES = (
    case((300, 300)),
    case((5, 300), (129, 129), (0, 40), (1, 1), (130, 400), bias=False),
    case((140, 257), (3, 129), splits=3),
    case((200, 500), splits=4, bias=False),
    case((70, 127), (128, 130), page_tokens=64),
    case((2, 257), dims=128),
)


@pytest.mark.parametrize("of", PREFIX_CASES, ids=lambda of: f"{of.users} splits{of.splits}")
def test_prefix_attention_is_the_reference(of: Case) -> None:
    w = hopper_world(of)
    host = w.host()
    scale = {"logit_scale": LOGIT_SCALE, "norm": NORM}
    expected = paged_reference.prefix_attention(
        host.q, host.kv, host.batch, host.bias, logit_scale=LOGIT_SCALE, norm=NORM
    )
    op = Machine(seed=of.seed).wrapper(prefix_attention.prefix_attention_parts)
    with poisoned():
        parts = op(w.q, w.kv, w.batch, w.bias, **scale)
    got, expected = parts.sum(0)[: w.num_rows].double(), expected[: w.num_rows]
    assert parts[:, w.num_rows :].isnan().all()
    assert float((got - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())
