"""Softmax, rotary positions and ALiBi against a definition of their own: one token, one head and one key at a time in
float64, as the papers write them. Every phase computes it, and the fused kernel where logits are hostile.
"""

import cmath
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor

from kernels.alibi import linear_bias
from kernels.bias import RelativeBias
from mfalcon.attention import AttentionForm, PrefixAttention, TargetAttention
from mfalcon.kvcache.state import KVPool, KVShape, PlainLayout
from mfalcon.masked_attention import BatchPrefixAttention, BatchTargetAttention, FullAttention
from mfalcon.models.layer import HSTULayer
from tests.kernels.test_fused import NOW, POLICIES, in_one_forward, packed, paged, small
from tests.test_golden import target_mask

N, M, HEADS, QK_DIM, V_DIM, BASE, SCALE = 23, 5, 2, 6, 3, 30.0, 0.7
NO_TIMES = torch.zeros(N, dtype=torch.int64)
BOUND = 1e-12
"""Of float64: sums in another order."""


@dataclass(frozen=True, slots=True)
class Form:
    softmax: bool
    rope: bool
    alibi: bool

    def of_a_layer(self) -> AttentionForm:
        bias: RelativeBias | None = None
        if self.alibi:
            falls = linear_bias(HEADS, 100)
            bias = RelativeBias(falls.position.double(), falls.time.double(), falls.thresholds)
        norm, base = 1.0 if self.softmax else 9.0, BASE if self.rope else None
        return AttentionForm(SCALE, norm, bias, softmax=self.softmax, rotary_base=base)

    def logit(self, q: Sequence[float], k: Sequence[float], head: int, q_at: int, k_at: int) -> float:
        """Of a query and a key of one head at their positions."""
        if self.rope:
            q, k = rotated(q, q_at), rotated(k, k_at)
        falls = 2.0 ** (-8 * (head + 1) / HEADS) * (q_at - k_at) if self.alibi else 0.0
        return SCALE * sum(a * b for a, b in zip(q, k, strict=True)) - falls

    def weights(self, logits: Sequence[float]) -> list[float]:
        """Of all that a token sees."""
        if not self.softmax:
            return [x / (1 + math.exp(-x)) / 9.0 for x in logits]
        total = sum(map(math.exp, logits))
        return [math.exp(x) / total for x in logits]


def rotated(numbers: Sequence[float], position: int) -> list[float]:
    """Pairs as complex numbers, times e^(i position theta) (RoFormer, equation 12)."""
    found = list[float]()
    for first in range(0, len(numbers), 2):
        turn = cmath.exp(1j * position * BASE ** (-first / len(numbers)))
        number = complex(numbers[first], numbers[first + 1]) * turn
        found += [number.real, number.imag]
    return found


def textbook(form: Form, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """N tokens of a prefix, each of which sees those before it and itself, and M targets at the position behind them,
    each of which sees all of the prefix and itself: [N + M, HEADS, V_DIM].
    """
    out = torch.zeros(N + M, HEADS, V_DIM, dtype=torch.float64)
    for token in range(N + M):
        seen = [*range(min(token, N)), token]
        for head in range(HEADS):
            query = q[token, head].tolist()
            logits = [form.logit(query, k[key, head].tolist(), head, min(token, N), min(key, N)) for key in seen]
            for weight, key in zip(form.weights(logits), seen, strict=True):
                out[token, head] += weight * v[key, head]
    return out


FORMS = [Form(*options) for options in product((False, True), repeat=3)]


@pytest.mark.parametrize("form", FORMS)
def test_every_phase_computes_the_definition(form: Form) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, N + M, HEADS, QK_DIM, dtype=torch.float64, generator=generator)
    v = torch.randn(N + M, HEADS, V_DIM, dtype=torch.float64, generator=generator)
    expected, of_layer = textbook(form, q, k, v), form.of_a_layer()
    assert float(expected.abs().max()) > 0.1

    positions = torch.arange(N + M).clamp(max=N)
    at_once = FullAttention(target_mask(N, M), positions, positions * 0, positions * 0)(0, q, k, v, of_layer)
    torch.testing.assert_close(at_once, expected, rtol=0, atol=BOUND)

    state = KVPool(PlainLayout(KVShape(1, HEADS, QK_DIM, V_DIM, torch.float64, torch.device("cpu")))).empty()
    for start, stop in ((0, 1), (1, 16), (16, N)):
        state = state.grown(stop - start)
        state.write_times(NO_TIMES[start:stop])
        part = slice(start, stop)
        got = PrefixAttention(state)(0, q[part], k[part], v[part], of_layer)
        torch.testing.assert_close(got, expected[part], rtol=0, atol=BOUND)
    got = TargetAttention(state, 0)(0, q[N:], k[N:], v[N:], of_layer)
    torch.testing.assert_close(got, expected[N:], rtol=0, atol=BOUND)

    def rows(t: Tensor) -> Tensor:  # of two users, one of whom has no history at all
        return torch.stack([t, t.flip(0)])

    valid = torch.stack([torch.ones(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)])
    prefix = BatchPrefixAttention(NO_TIMES.expand(2, N), valid)
    got = prefix(0, rows(q[:N]), rows(k[:N]), rows(v[:N]), of_layer)
    torch.testing.assert_close(got[0], expected[:N], rtol=0, atol=BOUND)
    assert torch.isfinite(got).all()
    targets = BatchTargetAttention(prefix, torch.tensor([[N] * M, [0] * M]), torch.zeros(2, M, dtype=torch.int64))
    got = targets(0, rows(q[N:]), rows(k[N:]), rows(v[N:]), of_layer)
    torch.testing.assert_close(got[0], expected[N:], rtol=0, atol=BOUND)
    if form.softmax:  # who sees nothing else sees itself
        torch.testing.assert_close(got[1], v[N:].flip(0), rtol=0, atol=BOUND)


def test_padding_gives_no_gradient_that_is_no_number() -> None:
    q, k, v = torch.randn(3, 2, N, HEADS, QK_DIM, generator=torch.Generator().manual_seed(0)).requires_grad_().unbind()
    valid = torch.arange(N) < torch.tensor([[7], [0]])
    form = AttentionForm(SCALE, 1.0, None, softmax=True, rotary_base=BASE)
    out = BatchPrefixAttention(NO_TIMES.expand(2, N), valid)(0, q, k, v, form)
    [gradient] = torch.autograd.grad(out.square().sum(), [q])
    assert torch.isfinite(gradient).all() and float(gradient.abs().max()) > 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("int8", [False, True])
def test_no_logit_is_too_large_for_the_kernel(policy: str, int8: bool) -> None:
    """Logits of tens of thousands, either sign: what a token sees is one key, and no sum overflows."""
    case, reference = small(attention="softmax", attention_norm=1.0, logit_scale=1e4, rope={})
    x, times, targets = case.inputs()
    state = paged(packed(policy, reference, int8=int8), times)
    state.extend(x, 2)
    got = state.score(targets, NOW)
    assert torch.isfinite(got).all()
    assert all(torch.isfinite(t).all() for pair in state.layers() for t in pair)
    state.extend(x[30:], 1, 30)
    assert torch.equal(state.score(targets, NOW, 1, 1), got)
    if (
        policy.endswith("f32") and not int8
    ):  # of one layer: another one's logits would be off by what this is, times 1e4
        case, reference = small(1, attention="softmax", attention_norm=1.0, logit_scale=1e4, rope={})
        state = paged(packed(policy, reference), times)
        state.extend(x)
        _, expected = in_one_forward(reference, x, times, targets, NOW)
        torch.testing.assert_close(state.score(targets, NOW).double(), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_logits_are_a_mean(policy: str) -> None:
    """Of 300 keys, more than a block of some policies: each weighs the same, and the target as much as a key."""
    _, reference = small(1, attention="softmax", attention_norm=1.0, logit_scale=0.0, bias=None, norm_eps=1e-3)
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(300, 12, generator=generator), torch.randn(1, 12, generator=generator)
    state = paged(packed(policy, reference), torch.zeros(300, dtype=torch.int64))
    state.extend(x)
    got = state.score(target, NOW)

    def mean(layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        return v.mean(0, keepdim=True).expand(len(v), -1, -1)

    expected = reference(torch.cat([x, target]).double(), mean)[-1:]
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5 if policy.endswith("f32") else 5e-2)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_target_that_is_no_number_moves_no_other(policy: str) -> None:
    case, reference = small(attention="softmax", attention_norm=1.0, rope={})
    x, times, targets = case.inputs()
    state = paged(packed(policy, reference), times)
    state.extend(x)
    clean, targets[4] = state.score(targets, NOW), float("nan")
    got = state.score(targets, NOW)
    assert got[4].isnan().all()
    others = torch.arange(len(targets)) != 4
    assert torch.equal(got[others], clean[others])


def test_far_positions_turn_as_the_definition() -> None:
    """At a million tokens float32 would be off by a sixteenth of a turn: angles are made in float64."""
    case, reference = small(1, attention="softmax", attention_norm=1.0, rope={}, bias=None)
    stack = packed("portable_f32", reference, 128)
    x = case.inputs()[0][:1]
    page = torch.full((stack.page_bytes,), 255, dtype=torch.uint8)
    first = (1 << 20) + 77
    pages = torch.full((first // 128 + 1,), page.data_ptr())
    stack.extend(pages, first, x)
    k, _ = stack.read(pages, 0, first, first + 1)
    [layer] = reference.layers
    assert isinstance(layer, HSTULayer)
    pool = KVPool(PlainLayout(KVShape(1, 2, 4, 7, torch.float64, torch.device("cpu"))))
    at_zero = pool.empty().grown(1)
    layer.keep(x.double(), PrefixAttention(at_zero))
    expected = layer.form().turned(at_zero.read(0)[0].transpose(0, 1), torch.tensor([first])).transpose(0, 1)
    torch.testing.assert_close(k.double(), expected, rtol=0, atol=1e-5)
