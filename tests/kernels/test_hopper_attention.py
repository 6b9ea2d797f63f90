"""The Hopper kernels' own code, run as plain Python, is the reference at odd sizes, in any order of its warps."""

import pytest

pytest.importorskip("triton", reason="no triton for this platform")

from dataclasses import replace

import torch
from torch import Tensor

from kernels import paged_reference
from kernels.gpu.hopper import prefix_attention, target_attention
from tests.device import INTERPRETED, poisoned
from tests.kernels.hopper_machine import Machine
from tests.kernels.paged_world import Case, World, world

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="computes on the CPU")

LOGIT_SCALE, NORM = 0.125, 7.0
TOLERANCE = 1e-5
"""In float32, relative to the largest output: sums in another order."""


def case(*users: tuple[int, int], splits: int = 1, bias: bool = True, page_tokens: int = 128, dims: int = 64) -> Case:
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
    expected = paged_reference.target_attention(host.q, host.k, host.v, host.kv, host.batch, bias, own, **scale)
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
    expected = paged_reference.prefix_attention(host.q, host.kv, host.batch, host.bias, **scale)
    op = Machine(seed=of.seed).wrapper(prefix_attention.prefix_attention_parts)
    with poisoned():
        parts = op(w.q, w.kv, w.batch, w.bias, **scale)
    got, expected = parts.sum(0)[: w.num_rows].double(), expected[: w.num_rows]
    assert parts[:, w.num_rows :].isnan().all()
    assert float((got - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())
