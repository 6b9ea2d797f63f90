"""Prefix and target attention are masked attention, at odd sizes and in every dtype; unwritten memory never shows."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import reference
from kernels.bias import RelativeBias, time_thresholds

SIZES = (0, 1, 63, 77, 129, 200)
HEADS, QK_DIM, V_DIM = 3, 5, 8
SCALE, NORM = 0.37, 50.0

BOUND = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Worst absolute difference; outputs are of order 1. float64, float32: sums in another order. bfloat16: 8 bits, so
logits of order 4
are off by 2^-7, silu passes that on, and the prefix of a target and its own term are rounded apart (2^-8 each)."""


@dataclass(frozen=True, slots=True)
class Tokens:
    q: Tensor
    k: Tensor
    v: Tensor
    times: Tensor
    bias: RelativeBias | None


def random_tokens(num_tokens: int, dtype: torch.dtype, with_bias: bool, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(1000 * num_tokens + seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    bias = RelativeBias(randn(HEADS, 90), randn(HEADS, 31), time_thresholds(30, 0.301, 1000)) if with_bias else None
    gaps = torch.randint(0, 10**6, (num_tokens,), generator=generator)
    times = 10**12 + (gaps * torch.randint(0, 2, (num_tokens,), generator=generator)).cumsum(0)
    q, k, v = randn(num_tokens, HEADS, QK_DIM), randn(num_tokens, HEADS, QK_DIM), randn(num_tokens, HEADS, V_DIM)
    return Tokens(q, k, v, times, bias)


def causal(tokens: Tokens) -> Tensor:
    """The oracle of a prefix: one dense forward under a causal mask, in the tokens' dtype."""
    n = len(tokens.q)
    positions = torch.arange(n)
    bias = None if tokens.bias is None else tokens.bias.matrix(positions, positions, tokens.times, tokens.times)
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    return reference.masked_attention(tokens.q, tokens.k, tokens.v, mask, bias, logit_scale=SCALE, norm=NORM)


def poisoned(tokens: Tensor) -> Tensor:
    """[n, H, d] -> a view [H, n, d] of a buffer that is NaN behind and between the tokens, as a KV buffer may be."""
    buffer = torch.full((tokens.shape[1], len(tokens) + 9, tokens.shape[2]), float("nan"), dtype=tokens.dtype)
    buffer[:, : len(tokens)] = tokens.transpose(0, 1)
    return buffer[:, : len(tokens)]


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    assert torch.isfinite(got).all()
    if got.numel():
        assert float((got.double() - expected.double()).abs().max()) <= BOUND[got.dtype]


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_tokens", SIZES)
def test_prefix_attention_is_causal_masked_attention(num_tokens: int, with_bias: bool, dtype: torch.dtype) -> None:
    tokens = random_tokens(num_tokens, dtype, with_bias)
    expected = causal(tokens)
    for num_queries in {num_tokens, num_tokens // 2, min(1, num_tokens), 0}:
        got = reference.prefix_attention(
            tokens.q[num_tokens - num_queries :],
            poisoned(tokens.k),
            poisoned(tokens.v),
            tokens.times,
            tokens.bias,
            logit_scale=SCALE,
            norm=NORM,
        )
        assert_close(got, expected[num_tokens - num_queries :])


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_targets", [0, 1, 77])
@pytest.mark.parametrize("n", SIZES)
def test_target_attention_is_masked_attention(n: int, num_targets: int, with_bias: bool, dtype: torch.dtype) -> None:
    assert_target_attention(n, num_targets, with_bias, dtype, 0)


@given(st.integers(0, 150), st.integers(0, 40), st.booleans(), st.integers(0, 1000))
def test_target_attention_anywhere(n: int, num_targets: int, with_bias: bool, seed: int) -> None:
    assert_target_attention(n, num_targets, with_bias, torch.float64, seed)


def assert_target_attention(n: int, num_targets: int, with_bias: bool, dtype: torch.dtype, seed: int) -> None:
    """Against one dense forward over [prefix, targets], in which all targets stand at position n and one time."""
    tokens = random_tokens(n + num_targets, dtype, with_bias, seed)
    now = 10**12 + 10**9
    times = torch.cat([tokens.times[:n], torch.full((num_targets,), now)])
    positions = torch.arange(n + num_targets).clamp(max=n)
    mask = torch.ones(n + num_targets, n + num_targets, dtype=torch.bool).tril()
    mask[n:, n:] = torch.eye(num_targets, dtype=torch.bool)
    matrix = None if tokens.bias is None else tokens.bias.matrix(positions, positions, times, times)
    dense = reference.masked_attention(tokens.q, tokens.k, tokens.v, mask, matrix, logit_scale=SCALE, norm=NORM)
    got = reference.target_attention(
        tokens.q[n:],
        tokens.k[n:],
        tokens.v[n:],
        poisoned(tokens.k[:n]),
        poisoned(tokens.v[:n]),
        None if tokens.bias is None else tokens.bias.vector(n, torch.arange(n), now, times[:n]),
        None if tokens.bias is None else tokens.bias.own(),
        logit_scale=SCALE,
        norm=NORM,
    )
    assert_close(got, dense[n:])


@given(st.integers(1, 300), st.data())
def test_prefix_attention_anywhere(n: int, data: st.DataObject) -> None:
    num_queries = data.draw(st.integers(0, n))
    tokens = random_tokens(n, torch.float64, True, num_queries)
    got = reference.prefix_attention(
        tokens.q[n - num_queries :],
        poisoned(tokens.k),
        poisoned(tokens.v),
        tokens.times,
        tokens.bias,
        logit_scale=SCALE,
        norm=NORM,
    )
    assert_close(got, causal(tokens)[n - num_queries :])


def test_a_prefix_may_be_split_and_its_partial_sums_added() -> None:
    """Silu attention has no softmax: the ground on which split-prefix kernels stand."""
    n, m, cut = 77, 13, 50
    tokens = random_tokens(n + m, torch.float64, False)
    prefix_k, prefix_v = tokens.k[:n].transpose(0, 1), tokens.v[:n].transpose(0, 1)

    def attend(k: Tensor, v: Tensor, own_v: Tensor) -> Tensor:
        return reference.target_attention(
            tokens.q[n:], tokens.k[n:], own_v, k, v, None, None, logit_scale=SCALE, norm=NORM
        )

    whole = attend(prefix_k, prefix_v, tokens.v[n:])
    first = attend(prefix_k[:, :cut], prefix_v[:, :cut], tokens.v[n:])
    second = attend(prefix_k[:, cut:], prefix_v[:, cut:], torch.zeros_like(tokens.v[n:]))
    assert_close(first + second, whole)


def test_inputs_stay_as_they_are() -> None:
    """The ops work in place on their own intermediates only."""
    tokens = random_tokens(77, torch.float64, True)
    k, v = tokens.k.transpose(0, 1).contiguous(), tokens.v.transpose(0, 1).contiguous()
    assert tokens.bias is not None
    vector = tokens.bias.vector(77, torch.arange(77), 10**13, tokens.times)
    own = tokens.bias.own()
    inputs = (tokens.q, tokens.k, tokens.v, k, v, vector, own, tokens.bias.position, tokens.bias.time)
    before = [t.clone() for t in inputs]
    reference.prefix_attention(tokens.q, k, v, tokens.times, tokens.bias, logit_scale=SCALE, norm=NORM)
    reference.target_attention(tokens.q, tokens.k, tokens.v, k, v, vector, own, logit_scale=SCALE, norm=NORM)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


def test_shapes_that_do_not_fit_are_refused() -> None:
    tokens = random_tokens(8, torch.float64, False)
    k, v = tokens.k.transpose(0, 1), tokens.v.transpose(0, 1)
    with pytest.raises(AssertionError, match=r"^v: shape"):
        reference.prefix_attention(tokens.q, k, v[:, :7], tokens.times, None, logit_scale=SCALE, norm=NORM)
    with pytest.raises(AssertionError, match=r"^times: shape"):
        reference.prefix_attention(tokens.q, k, v, tokens.times[:7], None, logit_scale=SCALE, norm=NORM)
    with pytest.raises(AssertionError, match=r"^q: shape"):
        reference.prefix_attention(tokens.q, k[:, :7], v[:, :7], tokens.times[:7], None, logit_scale=SCALE, norm=NORM)
    with pytest.raises(AssertionError, match=r"^prefix_bias: shape"):
        reference.target_attention(
            tokens.q, tokens.k, tokens.v, k, v, torch.zeros(HEADS, 7), None, logit_scale=SCALE, norm=NORM
        )
