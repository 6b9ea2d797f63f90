"""How far products of float8 are from exact ones on the same pages: bounds that hold for every number, and what random
ones come to (docs/kernels.md states it).
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kernels import fp8_reference, paged_reference
from kernels.fp8_reference import in_codes, shortened
from tests.kernels.paged_world import Case, World, world

CODES = torch.float8_e4m3fn
HALF_A_STEP = 2.0**-4
"""Of a number's magnitude: the most that four significant bits are off."""
LEAST = 2.0**-17
"""Of a row's largest query: the most that its codes are off beside that, where they are smallest."""
STEEPEST = 1.0999
"""Of SiLU."""
LOGIT_SCALE, NORM = 0.125, 7.0


def case(*users: tuple[int, int], bias: bool = True, dims: int = 64, seed: int = 0) -> Case:
    return Case(
        users,
        num_heads=2,
        qk_dim=dims,
        v_dim=dims,
        page_tokens=128,
        tile_rows=128,
        splits=1,
        num_positions=9 if bias else None,
        num_buckets=5,
        larger=1,
        slab=True,
        shared=True,
        seed=seed,
        transposed=True,
    )


def hostile(w: World, kind: str) -> World:
    """The same world with queries, and scales of its pages, that are hard to round. Whatever is nobody's stays NaN."""
    generator = torch.Generator().manual_seed(7)
    assert w.kv.k_scales is not None and w.kv.v_scales is not None
    q, k_scales, v_scales = w.q.clone(), w.kv.k_scales.clone(), w.kv.v_scales.clone()
    match kind:
        case "large":
            q, k_scales, v_scales = q * 1e3, k_scales * 1e2, v_scales * 1e4
        case "zeros":
            q[::2], k_scales[:, :, ::3], v_scales[:, :, ::5] = 0.0, 0.0, 0.0
        case "denormal":
            q, v_scales = q * 1e-41, v_scales * 1e-36
        case "uneven":  # within a row, and from token to token
            q = q * 10 ** (12 * torch.rand(q.shape, generator=generator) - 6)
            k_scales = k_scales * 10 ** (6 * torch.rand(k_scales.shape, generator=generator) - 3)
            v_scales = v_scales * 10 ** (12 * torch.rand(v_scales.shape, generator=generator) - 6)
        case _:
            assert kind == "random"
    return replace(w, q=q, kv=replace(w.kv, k_scales=k_scales, v_scales=v_scales))


def most_error(w: World, bias: Tensor | None) -> Tensor:
    """Of each output [num_rows, num_heads, v_dim], whatever the numbers are."""
    out = torch.zeros(w.num_rows, *w.v.shape[1:], dtype=torch.float64)
    for user in paged_reference.users(w.batch):
        n, first = user.prefix_len, user.first_page * w.kv.page_tokens
        keys, values = paged_reference.gather(w.kv, user.pages, n, torch.float64)
        q = w.q[user.rows]
        logits = torch.einsum("mhd,hnd->hmn", q, keys) * LOGIT_SCALE
        if bias is not None:
            logits += bias[:, None, first : first + n]
        off = HALF_A_STEP * q.abs() + LEAST * q.abs().amax(-1, keepdim=True)
        of_weights = STEEPEST * torch.einsum("mhd,hnd->hmn", off, keys.abs()) * LOGIT_SCALE
        of_weights += HALF_A_STEP * (functional.silu(logits).abs() + of_weights)
        out[user.rows] = torch.einsum("hmn,hnd->mhd", of_weights, values.abs()) / NORM
    return out


def both(w: World) -> tuple[Tensor, Tensor, Tensor]:
    """With float8 products, exact, and the most that they may differ by."""
    bias = own = None
    if w.bias is not None:
        bias, own = paged_reference.target_bias(w.kv, w.batch, w.times_ms, w.bias), w.bias.own()
    found, exact = (
        op(w.q, w.k, w.v, w.kv, w.batch, bias, own, logit_scale=LOGIT_SCALE, norm=NORM)[: w.num_rows]
        for op in (fp8_reference.target_attention, paged_reference.target_attention)
    )
    return found, exact, most_error(w, bias)


@pytest.mark.parametrize("kind", ["random", "large", "zeros", "denormal", "uneven"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_error_has_a_bound_whatever_the_numbers_are(kind: str, bias: bool) -> None:
    """Padding too: rows, slots of pages and biases that are nobody's are NaN."""
    w = hostile(world(case((40, 300), (1, 0), (3, 129), bias=bias), torch.float32, CODES).host(), kind)
    found, exact, most = both(w)
    assert torch.isfinite(found).all()
    assert ((found - exact).abs() <= most + 1e-12 * exact.abs()).all()
    assert kind == "denormal" or (found - exact).abs().max() > 0


@pytest.mark.parametrize("dims", [64, 128])
def test_what_the_error_comes_to(dims: int) -> None:
    """Of independent normal numbers: relative to the outputs, both as roots of mean squares. It does not grow with the
    prefix, as what is summed does not get fewer bits.
    """
    found = []
    for n in (128, 2048):
        error, exact = (torch.zeros(()), torch.zeros(()))
        result, exact, _ = both(world(case((64, n), bias=False, dims=dims, seed=n), torch.float32, CODES).host())
        error = result - exact
        found.append(float(error.square().mean().sqrt() / exact.square().mean().sqrt()))
    assert all(0.02 < relative < 0.05 for relative in found)


def test_codes_of_rows() -> None:
    """The largest has all bits; zeros and the smallest numbers are kept as far as a step goes."""
    x = torch.tensor([[1.0, -1.9375, 2.0**-16, 0.0], [0.0, 0.0, 0.0, 0.0], [3e38, 1.0, 0.0, -3e38], [1e-44, 0, 0, 0]])
    codes, steps = in_codes(x)
    assert (codes.float().abs() <= 256).all()
    assert torch.equal((codes.float() * steps.unsqueeze(-1))[0], torch.tensor([1.0, -1.875 - 0.125, 2.0**-16, 0.0]))
    assert (codes[1].float() == 0).all() and codes[2, 0].float() >= 128
    assert (steps >= 2.0**-126).all() and torch.equal(torch.frexp(steps).mantissa, torch.full((4,), 0.5))


def test_four_bits_are_kept() -> None:
    x = torch.tensor([0.0, 1.0, 1.0625, 1.1875, -1.9, 2.0**-40 * 1.1, 1e30])
    expected = torch.tensor([0.0, 1.0, 1.0, 1.25, -1.875, 2.0**-40 * 1.125, 1e30])
    assert torch.equal(shortened(x)[:-1], expected[:-1])
    assert ((shortened(x) - x).abs() <= HALF_A_STEP * x.abs()).all()
