"""The Triton kernels around attention are the reference at odd sizes: norms, projections, what is written to pages,
the bias of scoring.

On a CUDA device where there is one, else in Triton's interpreter (tests/conftest.py).
"""

from bisect import bisect_right
from dataclasses import fields, replace
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import paged_reference
from kernels.bias import RelativeBias, time_thresholds
from kernels.gpu import kv_write, linear, norms, target_bias, tile
from kernels.gpu.launch import accumulator
from kernels.paged import PagedKV, batch
from kernels.quantise import MAX_CODE
from tests.device import DEVICE, INTERPRETED, dtypes, poisoned, rounding
from tests.kernels.paged_world import KINDS, Case, cases, layout_of, on_host, views, world

DTYPE = pytest.mark.parametrize("dtype", dtypes(), ids=lambda dtype: str(dtype).removeprefix("torch."))


def tolerance(dtype: torch.dtype) -> float:
    """float64 and float32: sums of a hundred terms in another order. Below: one rounding of the result, with SiLU by a
    tanh of 11 bits on a device.
    """
    if dtype in (torch.float64, torch.float32):
        return {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    return rounding(dtype) + (1e-5 if INTERPRETED else 2.0**-11)


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype, scale: float | None = None) -> None:
    """scale: what errors are relative to; the largest of what is expected if not given."""
    assert got.dtype == dtype and got.shape == expected.shape
    assert torch.isfinite(got).all()
    if got.numel():
        scale = float(expected.abs().max()) if scale is None else scale
        assert float((got.double().cpu() - expected).abs().max()) <= tolerance(dtype) * scale


class Random:
    """Numbers of a seed, as views of wider rows that are NaN beyond."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype = dtype

    def rows(self, num_rows: int, width: int) -> Tensor:
        wide = torch.full((num_rows, width + 7), float("nan"))
        wide[:, 3 : width + 3] = torch.randn(num_rows, width, generator=self._generator)
        return wide.to(DEVICE, self._dtype)[:, 3 : width + 3]

    def row(self, width: int) -> Tensor:
        return torch.randn(width, generator=self._generator).to(DEVICE, self._dtype)


def exact(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.cpu().double() for x in tensors]


ROWS = st.sampled_from((1, 2, 5, 16, 17, 33, 65))
WIDTHS = st.sampled_from((1, 5, 40, 64, 77, 130))


@DTYPE
@settings(max_examples=12)
@given(st.sampled_from((0, 1, 5)), st.sampled_from((2, 5, 64, 77, 300)), st.booleans(), st.integers(0, 99))
def test_layer_norm(dtype: torch.dtype, num_rows: int, dim: int, affine: bool, seed: int) -> None:
    random = Random(seed, dtype)
    x = random.rows(num_rows, dim)
    weight, bias = (random.row(dim), random.row(dim)) if affine else (None, None)
    with poisoned():
        got = norms.layer_norm(x, weight, bias, 1e-5)
    wide, wide_weight, wide_bias = exact(x, weight, bias)
    assert wide is not None
    assert_close(got, paged_reference.layer_norm(wide, wide_weight, wide_bias, 1e-5), dtype)


@DTYPE
@settings(max_examples=12)
@given(
    st.sampled_from((0, 1, 5)),
    st.sampled_from((2, 5, 64, 77, 300)),
    st.booleans(),
    st.sampled_from((1, 3, 16)),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_norm_gate(
    dtype: torch.dtype, num_rows: int, dim: int, affine: bool, splits: int, concat: bool, few: bool, seed: int
) -> None:
    """Of attention in any number of parts; without parts it is [num_rows, width]. The sums of these parts are exact in
    every type, as their rounding would be magnified by the norm.
    """
    random = Random(seed, dtype)
    u = random.rows(num_rows, dim)
    weight, bias = (random.row(dim), random.row(dim)) if affine else (None, None)
    most = 120 // splits
    sixteenths = torch.randint(-most, most + 1, (splits, num_rows, dim), generator=torch.Generator().manual_seed(seed))
    parts = (sixteenths / 16).to(DEVICE, accumulator(dtype))
    attended, (wide, wide_weight, wide_bias) = parts.double().cpu().sum(0), exact(u, weight, bias)
    assert wide is not None
    expected = paged_reference.norm_gate(attended, wide, wide_weight, wide_bias, 1e-5, concat=concat)
    with poisoned(), patch.object(norms, "FEW_ROWS", norms.FEW_ROWS if few else 0):
        got = norms.norm_gate(parts, u, weight, bias, 1e-5, concat=concat)
        assert_close(got, expected, dtype)
        if splits == 1:
            assert torch.equal(norms.norm_gate(parts[0], u, weight, bias, 1e-5, concat=concat), got)
    if concat:
        assert torch.equal(got[:, :dim], u)
        assert torch.equal(got[:, dim : 2 * dim].double().cpu(), attended)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_norm_gate_rounds_what_attention_gives(dtype: torch.dtype) -> None:
    """As if attention gave numbers of the compute dtype."""
    parts = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    got = norms.norm_gate(parts, Random(2, dtype).rows(3, 40), None, None, 1e-5, concat=True)
    assert torch.equal(got[:, 40:80], parts.sum(0).to(dtype))


@DTYPE
@settings(max_examples=12)
@given(ROWS, WIDTHS, WIDTHS, st.booleans(), st.booleans(), st.sampled_from((0, 0.4, 1)), st.integers(0, 99))
def test_linear(
    dtype: torch.dtype,
    num_rows: int,
    num_in: int,
    num_out: int,
    with_bias: bool,
    with_residual: bool,
    silu: float,
    seed: int,
) -> None:
    random = Random(seed, dtype)
    x, weight = random.rows(num_rows, num_in), random.rows(num_out, num_in).contiguous()
    bias = random.row(num_out) if with_bias else None
    residual = random.rows(num_rows, num_out) if with_residual else None
    num_silu = int(silu * num_out)
    with poisoned():
        got = linear.linear(x, weight, bias, residual, num_silu)
    wide_x, wide_weight, wide_bias, wide_residual = exact(x, weight, bias, residual)
    assert wide_x is not None and wide_weight is not None
    expected = paged_reference.linear(wide_x, wide_weight, wide_bias, wide_residual, num_silu)
    magnitudes = [None if t is None else t.abs() for t in (wide_x, wide_weight, wide_bias, wide_residual)]
    largest = paged_reference.linear(magnitudes[0], magnitudes[1], *magnitudes[2:])  # type: ignore[arg-type]
    assert_close(got, expected, dtype, float(largest.max()))


def test_linear_of_no_rows() -> None:
    x, weight = torch.empty(0, 5, device=DEVICE), torch.empty(7, 5, device=DEVICE)
    assert linear.linear(x, weight).shape == (0, 7)


@pytest.mark.parametrize(("dtype", "codes"), KINDS, ids=lambda kind: str(kind).removeprefix("torch."))
@settings(max_examples=10)
@given(cases(own_rows=True), st.sampled_from((1.0, 0.0, 1e-30, 1e4)), st.booleans())
def test_kv_write_is_the_reference_to_the_bit(
    dtype: torch.dtype, codes: torch.dtype | None, case: Case, factor: float, with_times: bool
) -> None:
    """Numbers, or codes and scales, and times where they are given; nothing else of the pool changes: other slots,
    layers and pages, and the times where they are not.
    """
    case = replace(case, slab=True, shared=False)
    w = world(case, dtype, codes)
    if w.num_rows > 1:
        w.k[1], w.v[0] = w.k[1] * factor, w.v[0] * factor
    expected, before = w.slab.cpu().clone(), w.slab.clone()
    times = torch.arange(len(w.k), device=DEVICE) - 2**40 if with_times else None
    of_host = None if times is None else times.cpu()
    kv = views(expected, layout_of(case, dtype, codes))
    paged_reference.kv_write(w.k.cpu(), w.v.cpu(), kv, w.host().batch, of_host)
    kv_write.kv_write(w.k, w.v, w.kv, w.batch, times)
    assert torch.equal(w.slab.cpu(), expected)
    assert w.num_rows == 0 or not torch.equal(w.slab, before)


def corners(codes: torch.dtype) -> Tensor:
    """Every code, every middle between two, and the numbers beside them; both zeros. float32."""
    everything = torch.arange(256, dtype=torch.uint8).view(codes).float()
    every = everything[everything.isfinite()].sort().values
    middles = (every[1:] + every[:-1]) / 2
    infinity = torch.tensor(float("inf"))
    numbers = torch.cat([every, middles, torch.tensor([0.0, -0.0])])
    return torch.cat([numbers, numbers.nextafter(infinity), numbers.nextafter(-infinity)])


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn], ids=["int8", "float8"])
@pytest.mark.parametrize("factor", [1.0, 3.0, 2.0**-140, 1e30])
def test_codes_are_the_references_at_every_corner(codes: torch.dtype, factor: float) -> None:
    """Rows that begin with the largest code, so that a scale is the factor and numbers come to lie between codes; a
    row of zeros; the largest number there is.
    """
    largest = MAX_CODE[codes]
    numbers = corners(codes).clamp(-largest, largest) * factor
    rows = torch.cat([numbers, numbers.new_zeros(-len(numbers) % 15)]).view(-1, 15)
    rows = torch.cat([torch.full((len(rows), 1), largest * factor), rows], 1)
    extremes = torch.zeros(2, 16)
    extremes[1, :4] = torch.finfo(torch.float32).max * torch.tensor([1.0, -1.0, 0.5, 1e-3])
    rows = torch.cat([rows, extremes])
    k, v = rows.unsqueeze(1).to(DEVICE), -rows.unsqueeze(1).to(DEVICE)
    num_pages = -(-len(rows) // 64)
    pages = torch.full((2, num_pages, 1, 64, 16), 7, dtype=torch.uint8).view(codes)
    scales, times = torch.full((2, num_pages, 1, 64), 7.0), torch.zeros(num_pages, 64, dtype=torch.int64)
    table = [list(range(num_pages))[::-1]]
    kv = PagedKV(*(x.to(DEVICE) for x in (pages[0], pages[1], times, scales[0], scales[1])))
    kv_write.kv_write(k, v, kv, batch([len(rows)], [len(rows)], table, device=DEVICE))
    expected = PagedKV(pages[0], pages[1], times, scales[0], scales[1])
    paged_reference.kv_write(k.cpu(), v.cpu(), expected, batch([len(rows)], [len(rows)], table))
    got = on_host(kv)
    for field in fields(PagedKV):
        one, other = (getattr(x, field.name) for x in (got, expected))
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), field.name


@DTYPE
@settings(max_examples=12)
@given(cases(small=True))
def test_target_bias_is_the_reference_exactly(dtype: torch.dtype, case: Case) -> None:
    """On every token of a prefix; all else is as it was, the columns of pages beyond the users' too."""
    w = world(replace(case, num_positions=case.num_positions or 3), dtype)
    assert w.bias is not None
    host = w.host()
    assert host.bias is not None
    narrow = RelativeBias(w.bias.position.cpu(), w.bias.time.cpu(), w.bias.thresholds.cpu())
    expected = paged_reference.target_bias(host.kv, host.batch, host.times_ms, narrow)
    with poisoned():
        got = target_bias.target_bias(w.kv, w.batch, w.times_ms, w.bias)
    assert got.dtype == accumulator(dtype) and got.shape == expected.shape
    at, alive = 0, torch.zeros(got.shape[1], dtype=torch.bool)
    for (_, prefix_len), own in zip(case.users, w.pages, strict=True):
        alive[at : at + prefix_len] = True
        at += len(own) * case.page_tokens
    assert torch.equal(got.cpu()[:, alive], expected[:, alive].to(got.dtype))
    assert got.cpu()[:, ~alive].isnan().all()


GRIDS = [(n, 0.301, 1000) for n in (1, 2, 3, 4, 5, 63, 64, 65, 130)] + [(64, 0.05, 1), (2048, 0.5, 1000)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_time_buckets_at_every_threshold(grid: tuple[int, float, int]) -> None:
    """And beside it, at zero, below zero, and where int64 ends; thresholds may be equal."""
    thresholds = time_thresholds(*grid)
    last = 2**63 - 1
    edges = {edge + d for edge in thresholds.tolist() for d in (-1, 0, 1)} | {0, -1, 1, -(2**62), 2**62, last}
    differences = sorted(difference for difference in edges if difference <= last)
    num_buckets, n = len(thresholds), len(differences)
    num_pages = -(-n // 64)
    times = torch.zeros(num_pages * 64, dtype=torch.int64)
    times[:n] = -torch.tensor(differences)
    nothing = torch.zeros(num_pages, 1, 64, 1, dtype=torch.float64 if INTERPRETED else torch.float32, device=DEVICE)
    bias = RelativeBias(
        torch.zeros(1, 1, dtype=nothing.dtype, device=DEVICE),
        torch.arange(num_buckets + 1, dtype=nothing.dtype, device=DEVICE).unsqueeze(0),
        thresholds.to(DEVICE),
    )
    kv = PagedKV(nothing, nothing, times.view(num_pages, 64).to(DEVICE))
    users = batch([1], [n], [list(range(num_pages))], device=DEVICE)
    got = target_bias.target_bias(kv, users, torch.zeros(1, dtype=torch.int64, device=DEVICE), bias)
    assert got[0, :n].tolist() == [bisect_right(thresholds.tolist(), difference) for difference in differences]


@pytest.mark.parametrize("error", [2.0**-11, -(2.0**-11), 0.0])
def test_fast_silu_is_off_by_no_more_than_it_says(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """`silu`'s own formula, over a tanh that is off by all that PTX allows tanh.approx.f32: 2**-11 of itself.

    Below by 2**-12 of |x|, to the rounding of float32; so a large negative logit gets a weight of that order, not 0.
    """

    def tanh(_: str, __: str, arguments: list[np.ndarray], **___: object) -> np.ndarray:
        return (np.tanh(arguments[0].astype(np.float64)) * (1 + error)).astype(np.float32)

    monkeypatch.setattr(tile, "tl", SimpleNamespace(inline_asm_elementwise=tanh, float32=None))
    x = np.linspace(-20, 20, 400_001).astype(np.float32)
    wide = x.astype(np.float64)
    off = np.abs(tile.silu.fn(x, True) - wide / (1 + np.exp(-wide)))
    assert (off <= (2.0**-12 + 2.0**-23) * np.abs(wide)).all()
    if error:
        assert off.max() > 0.9 * 2.0**-12 * 20
