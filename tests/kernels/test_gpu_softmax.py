"""Softmax attention and rotary positions on pages in Triton are the reference at odd sizes, however a prefix is split;
nothing that is nobody's is read or written.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from kernels import paged_reference
from kernels.gpu import softmax_attention
from kernels.gpu.rotary import rotate, speeds
from tests.device import DEVICE, INTERPRETED, poisoned, rounding
from tests.kernels.paged_world import Case, cases, world
from tests.kernels.test_gpu_attention import LOGIT_SCALE, on_device, own_bias, prefix_bias

KINDS = [(torch.float64, None), (torch.float32, torch.int8), (torch.bfloat16, None)]
if not INTERPRETED:
    KINDS = KINDS[1:]
BOUND = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3 * rounding(torch.bfloat16)}
"""Relative to the largest value, as outputs are means. bfloat16: weights and outputs are rounded."""


def check(case: Case, dtype: torch.dtype, codes: torch.dtype | None, *, of_targets: bool) -> None:
    w = world(replace(case, transposed=False), dtype, codes)
    host = w.host()
    if of_targets:
        bias, own = prefix_bias(host), own_bias(host)
        expected = paged_reference.target_attention(
            host.q, host.k, host.v, host.kv, host.batch, bias, own, logit_scale=LOGIT_SCALE, norm=1.0, softmax=True
        )
        biases = on_device(bias, dtype), on_device(own, dtype)
        with poisoned():
            got = softmax_attention.target_attention_parts(
                w.q, w.k, w.v, w.kv, w.batch, *biases, logit_scale=LOGIT_SCALE, norm=1.0
            )
    else:
        expected = paged_reference.prefix_attention(
            host.q, host.kv, host.batch, host.bias, logit_scale=LOGIT_SCALE, norm=1.0, softmax=True
        )
        with poisoned():
            got = softmax_attention.prefix_attention_parts(
                w.q, w.kv, w.batch, w.bias, logit_scale=LOGIT_SCALE, norm=1.0
            )
    assert got.shape == (1, *expected.shape)
    rows, rest = got[0, : w.num_rows].double().cpu(), got[0, w.num_rows :]
    assert torch.isfinite(rows).all()
    assert rest.isnan().all()
    if rows.numel():
        worst = float((rows - expected[: w.num_rows]).abs().max())
        assert worst <= BOUND[dtype] * max(1.0, float(expected[: w.num_rows].abs().max()))


@pytest.mark.parametrize(("dtype", "codes"), KINDS, ids=lambda kind: str(kind).removeprefix("torch."))
@settings(max_examples=3)
@given(case=cases(small=True))
def test_targets_are_the_reference(case: Case, dtype: torch.dtype, codes: torch.dtype | None) -> None:
    check(case, dtype, codes, of_targets=True)


@pytest.mark.parametrize(("dtype", "codes"), KINDS, ids=lambda kind: str(kind).removeprefix("torch."))
@settings(max_examples=3)
@given(case=cases(own_rows=True, small=True))
def test_a_prefix_is_the_reference(case: Case, dtype: torch.dtype, codes: torch.dtype | None) -> None:
    check(case, dtype, codes, of_targets=False)


@pytest.mark.parametrize("of_targets", [False, True])
def test_rotary_positions_are_the_reference(of_targets: bool) -> None:
    """In all four quarters of a turn; rows of nobody stay as they are."""
    case = Case(((17, 40), (0, 3), (5, 33)), 2, 6, 4, 16, 16, 1, None, 1, 2, slab=False, shared=False, seed=0)
    for dtype, codes in KINDS:
        w = world(case, dtype, None)
        host = w.host()
        before = host.q.clone()
        rotate(w.q, w.batch, speeds(6, 40.0, DEVICE), of_targets=of_targets)
        paged_reference.rotate(host.q, host.batch, 40.0, of_targets=of_targets)
        assert float((host.q - before)[: w.num_rows].abs().max()) > 0.1
        assert float((w.q.cpu().double() - host.q)[: w.num_rows].abs().max()) <= 5 * BOUND[dtype], codes
        assert w.q[w.num_rows :].isnan().all()
