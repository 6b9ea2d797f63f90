"""Hopper's kernels are used on Hopper alone, only for what they can take, and only after they agreed there."""

from collections.abc import Callable
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="no triton for this platform")

import torch

from kernels.gpu import prefix_attention, target_attention
from kernels.gpu.hopper import fp8_target_attention, pipeline, self_check
from kernels.gpu.hopper import prefix_attention as hopper_prefix
from kernels.gpu.hopper import target_attention as hopper_target
from kernels.gpu.hopper.choice import BOUND, FP8_BOUND, agrees
from kernels.gpu.hopper.launch import takes, takes_fp8
from kernels.gpu.hopper.self_check import Kind
from kernels.paged import PagedKV, batch
from tests.device import INTERPRETED
from tests.kernels.hopper_machine import Machine, changed

KIND = Kind("target_attention", torch.bfloat16, 128, 128, True)


def never(_: Kind) -> float:
    raise AssertionError("checked where it is not used")


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)])
def test_other_devices_are_not_even_asked(capability: tuple[int, int], capfd: pytest.CaptureFixture[str]) -> None:
    assert not agrees(KIND, capability, never)
    assert capfd.readouterr() == ("", "")


def test_one_that_agrees_is_used_silently(capfd: pytest.CaptureFixture[str]) -> None:
    assert agrees(KIND, (9, 0), lambda _: BOUND)
    assert capfd.readouterr() == ("", "")


def test_products_of_float8_have_a_bound_of_their_own() -> None:
    assert agrees(replace(KIND, fp8=True), (9, 0), lambda _: FP8_BOUND)
    assert not agrees(KIND, (9, 0), lambda _: FP8_BOUND)


@pytest.mark.parametrize("worst", [2 * BOUND, float("inf"), float("nan")])
def test_one_that_differs_is_told_in_one_line(worst: float, capfd: pytest.CaptureFixture[str]) -> None:
    assert not agrees(KIND, (9, 0), lambda _: worst)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("triton: the Hopper kernel of target_attention (bfloat16, 128x128, bias) differs by ")


def test_one_that_fails_is_told_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def fails(_: Kind) -> float:
        raise RuntimeError("no such instruction\nat line 3")

    assert not agrees(KIND, (9, 0), fails)
    (line,) = capfd.readouterr().err.splitlines()
    assert "failed (RuntimeError: no such instruction" in line


WIDE = torch.zeros(9, 3 * 2 * 64 + 8, dtype=torch.bfloat16)
ROWS = tuple(x.unflatten(1, (2, 64)) for x in WIDE[:, :384].split(128, 1))
SLAB = torch.zeros(3, 2, 128, 64, dtype=torch.bfloat16)
KV = PagedKV(SLAB, SLAB, torch.zeros(3, 128, dtype=torch.int64))
BATCH = batch([9], [300], [[0, 1, 2]], tile_rows=128)


def test_what_is_taken() -> None:
    assert takes(ROWS, KV, BATCH)
    assert takes(ROWS, KV, BATCH, torch.zeros(2, 384))
    half = PagedKV(KV.k.half(), KV.v.half(), KV.times)
    assert takes(tuple(x.half() for x in ROWS), half, BATCH)


def test_what_is_not_taken() -> None:
    """Small tiles, other types, codes, other heads, and what no descriptor can describe."""
    q, k, v = ROWS
    assert not takes(ROWS, KV, replace(BATCH, tile_rows=64))
    small = PagedKV(KV.k[:, :, :32].clone(), KV.v[:, :, :32].clone(), KV.times[:, :32])
    assert not takes(ROWS, small, BATCH)
    assert not takes(tuple(x.float() for x in ROWS), PagedKV(KV.k.float(), KV.v.float(), KV.times), BATCH)
    assert not takes(ROWS, PagedKV(KV.k.to(torch.int8), KV.v.to(torch.int8), KV.times), BATCH)
    assert not takes((q[:, :, :32], k[:, :, :32], v), PagedKV(KV.k[..., :32].clone(), KV.v, KV.times), BATCH)
    assert not takes((WIDE[:, 1:129].unflatten(1, (2, 64)), k, v), KV, BATCH)
    narrow = torch.zeros(9, 129, dtype=torch.bfloat16)[:, :128].unflatten(1, (2, 64))
    assert not takes((narrow, k, v), KV, BATCH)
    assert not takes(ROWS, KV, BATCH, torch.zeros(2, 385)[:, 1:])
    wide_v = torch.zeros(3, 2, 128, 128, dtype=torch.bfloat16)
    assert not takes((q, k, torch.zeros(9, 2, 128, dtype=torch.bfloat16)), PagedKV(SLAB, wide_v, KV.times), BATCH)


CODES = SLAB.to(torch.float8_e4m3fn)
SCALES = torch.ones(3, 2, 128)
FP8 = PagedKV(CODES, CODES.mT.contiguous().mT, KV.times, SCALES, SCALES)


def test_what_is_multiplied_in_float8() -> None:
    """Pages of float8 with V transposed, which only a setting asks for, in the highest tiles; no others."""
    assert takes_fp8(ROWS, FP8, BATCH) and takes_fp8(ROWS, FP8, BATCH, torch.zeros(2, 384))
    assert not takes(ROWS, FP8, BATCH)
    assert not takes_fp8(ROWS, KV, BATCH)
    assert not takes_fp8(ROWS, replace(FP8, v=CODES), BATCH)
    assert not takes_fp8(ROWS, replace(FP8, k=KV.k.to(torch.int8)), BATCH)
    assert not takes_fp8(ROWS, FP8, replace(BATCH, tile_rows=64))
    assert not takes_fp8(tuple(x.float() for x in ROWS), FP8, BATCH)
    assert not takes_fp8(ROWS, FP8, BATCH, torch.zeros(2, 385)[:, 1:])
    k, v, scales = CODES[:, :, :32], CODES[:, :, :32].mT.contiguous().mT, SCALES[..., :32]
    assert not takes_fp8(ROWS, PagedKV(k, v, KV.times[:, :32], scales, scales), BATCH)
    wide_v = torch.zeros(3, 2, 128, 128).to(torch.float8_e4m3fn).mT
    assert not takes_fp8(ROWS, replace(FP8, v=wide_v), BATCH)


TARGET = (hopper_target.target_attention_parts, target_attention.target_attention_parts)
PREFIX = (hopper_prefix.prefix_attention_parts, prefix_attention.prefix_attention_parts)


@pytest.mark.skipif(not INTERPRETED, reason="computes on the CPU")
@pytest.mark.parametrize(
    ("op", "one", "other", "bias"),
    [
        pytest.param("target_attention", *TARGET, False, id="target"),
        pytest.param("target_attention", *TARGET, True, id="target, bias"),
        pytest.param("prefix_attention", *PREFIX, False, id="prefix"),
        pytest.param("prefix_attention", *PREFIX, True, id="prefix, bias", marks=pytest.mark.thorough),
    ],
)
def test_the_check_finds_both_equal(
    op: str, one: Callable[..., torch.Tensor], other: Callable[..., torch.Tensor], bias: bool
) -> None:
    """Both as they run on a CPU: the plain kernel in Triton's interpreter, the other in the machine of these tests."""
    kind = Kind(op, torch.float16, 64, 64, bias)
    assert self_check.difference(torch.device("cpu"), kind, Machine().wrapper(one), other) <= BOUND / 4


@pytest.mark.skipif(not INTERPRETED, reason="computes on the CPU")
@pytest.mark.parametrize("bias", [False, True])
def test_the_check_finds_products_of_float8_as_they_are_defined(bias: bool) -> None:
    kind = Kind("target_attention", torch.bfloat16, 64, 64, bias, fp8=True)
    one = Machine().wrapper(fp8_target_attention.target_attention_parts)
    assert self_check.difference(torch.device("cpu"), kind, one, self_check.defined_in_fp8) <= FP8_BOUND / 10


@pytest.mark.skipif(not INTERPRETED, reason="computes on the CPU")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("V, [page, head, 0, slot]", "V, [page, head, 0, 0]"),
        ("V_SCALES, [page, head, slot]", "V_SCALES, [page, head, 0]"),
        ("K_SCALES, [page, head, slot]", "V_SCALES, [page, head, slot]"),
    ],
)
def test_the_check_finds_a_fault_in_products_of_float8(old: str, new: str) -> None:
    wrong = changed(fp8_target_attention._produce, old, new)
    kind = Kind("target_attention", torch.bfloat16, 64, 64, False, fp8=True)
    one = Machine(changed=wrong).wrapper(fp8_target_attention.target_attention_parts)
    assert not self_check.difference(torch.device("cpu"), kind, one, self_check.defined_in_fp8) <= FP8_BOUND


@pytest.mark.skipif(not INTERPRETED, reason="computes on the CPU")
def test_the_check_finds_a_fault() -> None:
    wrong = changed(pipeline.produce, "slot = end - BLOCK_N - in_order * PAGE", "slot = 0")
    one, other = Machine(changed=wrong).wrapper(hopper_target.target_attention_parts), target_attention
    kind = Kind("target_attention", torch.float16, 64, 64, False)
    assert not self_check.difference(torch.device("cpu"), kind, one, other.target_attention_parts) <= BOUND
