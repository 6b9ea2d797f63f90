"""The fused CPU kernel computes the torch stack over pages anywhere in memory, in every form of layer; what must be
exact is exact.

`MFALCON_SANITIZE=address,undefined` runs all of it over the instrumented libraries (make sanitize).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.bias import RelativeBias, time_thresholds
from kernels.cpu import build_library, check, library
from kernels.cpu.library import FusedUnavailable, Kernel
from kernels.cpu.stack import FusedStack
from kernels.reference import masked_attention, target_attention
from kernels.stack import LayerWeights, StackConfig
from mfalcon.attention import AttentionForm
from mfalcon.backends.weights import layer_weights, stack_config
from mfalcon.masked_attention import FullAttention
from mfalcon.models.config_layers import AlibiConfig, LayerConfig, RelativeBiasConfig, RopeConfig
from mfalcon.models.layer import Stack
from tests.test_golden import golden, research, target_mask, v3

__all__ = ["golden", "research", "v3"]

SANITIZE = os.environ.get("MFALCON_SANITIZE", "")
FLAGS = build_library.cpu_flags()
POLICIES = [
    pytest.param(name, marks=() if policy.cpu_flags <= FLAGS else pytest.mark.skip(reason="not on this processor"))
    for name, policy in build_library.POLICIES.items()
]

BOUND = {"float32": 1e-5, "bfloat16": 1e-1}
"""Worst difference from the float64 stack, relative to its largest output. float32: law 1's. bfloat16: 8 bits in q, k,
v, weights and gates, added up over three layers, where a norm of three values makes 2% into 6%."""

INT8_BOUND = 5e-2
"""Of scores over int8 pages, relative to the largest: each K and V is off by up to 1/254 of its head's largest."""

PAGE_TOKENS = st.sampled_from((32, 64, 128, 192, 320))
"""Smaller and larger than a block of keys of any policy, and no part of one."""

NOW = 10**12 + 10**9


@cache
def kernel(policy: str) -> Kernel:
    compiler = build_library.find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    build_library.compile_policy(compiler, build_library.POLICIES[policy], SANITIZE)
    return check.load(policy, SANITIZE)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory holds NaN, and the largest integer: what is not written shows."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def empty(*args: object, **kwargs: object) -> Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else 2**63 - 1)

        return empty

    with (
        mock.patch.object(torch, "empty", poisoned(torch.empty)),
        mock.patch.object(torch, "empty_like", poisoned(torch.empty_like)),
    ):
        yield


def random_stack(config: LayerConfig, num_layers: int, seed: int) -> Stack:
    """Weights of an order at which every part matters; float32 values in float64."""
    stack = Stack(config, num_layers).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in stack.named_parameters():
        if name.endswith(("uvqk.weight", "output.weight")):
            parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
        else:
            parameter.normal_(std=0.5, generator=generator)
    return stack.double()


@dataclass(frozen=True, slots=True)
class Case:
    config: LayerConfig
    num_layers: int
    n: int
    m: int
    seed: int

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Prefix tokens [n, dim] and times [n], targets [m, dim]."""
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.n, self.config.dim, generator=generator)
        gaps = torch.randint(0, 10**7, (self.n,), generator=generator)
        times = 10**12 + (gaps * torch.randint(0, 2, (self.n,), generator=generator)).cumsum(0)
        return x, times, torch.randn(self.m, self.config.dim, generator=generator)


SIZES = st.sampled_from((0, 1, 2, 5, 63, 64, 77, 130, 300))
HEAD_DIMS = st.sampled_from((1, 7, 16, 24, 64, 128))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    positions, buckets = draw(st.sampled_from((None, 1, 9, 400))), draw(st.sampled_from((1, 40)))
    num_heads, v_dim = draw(st.integers(1, 3)), draw(HEAD_DIMS)
    # Two or three values may be almost equal, and their norm multiplies a rounding by up to 1 / sqrt(eps).
    norm_eps = st.sampled_from((1e-6, 1e-3)) if num_heads * v_dim > 3 else st.just(1e-3)
    qk_dim, attention = draw(HEAD_DIMS), draw(st.sampled_from(("pointwise", "softmax")))
    rope = RopeConfig(base=draw(st.sampled_from((100.0, 1e4)))) if qk_dim % 2 == 0 and draw(st.booleans()) else None
    falls = positions is None and rope is None and draw(st.booleans())
    config = LayerConfig(
        dim=draw(st.sampled_from((5, 16, 40, 64))),
        num_heads=num_heads,
        qk_dim=qk_dim,
        v_dim=v_dim,
        attention=attention,
        attention_norm=1.0 if attention == "softmax" else draw(st.sampled_from((1.0, 50.0))),
        logit_scale=draw(st.sampled_from((None, 0.2))),
        activation=draw(st.sampled_from(("uvqk", "u"))),
        norm_affine=draw(st.booleans()),
        norm_eps=draw(norm_eps),
        uvqk_bias=draw(st.booleans()),
        output=draw(st.sampled_from(("gated", "concat"))),
        output_bias=draw(st.booleans()),
        bias=None if positions is None else RelativeBiasConfig(num_positions=positions, num_time_buckets=buckets),
        rope=rope,
        alibi=AlibiConfig(num_positions=200) if falls else None,
    )
    m = draw(st.sampled_from((1, 2, 6, 7, 63, 77)))
    return Case(config, draw(st.integers(1, 3)), draw(SIZES), m, draw(st.integers(0, 1000)))


class Watched(FullAttention):
    """Keeps the keys and values of the first n tokens as they pass: per layer K [H, n, qk_dim] and V [H, n, v_dim]."""

    def __init__(self, n: int, *grid: Tensor) -> None:
        super().__init__(*grid)
        self.kept: list[tuple[Tensor, Tensor]] = []
        self._n = n

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        turned = form.turned(k[: self._n], torch.arange(self._n))
        self.kept.append((turned.transpose(0, 1), v[: self._n].transpose(0, 1)))
        return super().__call__(layer, q, k, v, form)


def in_one_forward(
    stack: Stack, x: Tensor, times: Tensor, targets: Tensor, now: int, query_times: Tensor | None = None
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """The definition, in float64: prefix and targets under one mask. Per layer K and V of the prefix; the targets."""
    n, m = len(x), len(targets)
    request = torch.full((m,), now)
    grid = (
        target_mask(n, m),
        torch.arange(n + m).clamp(max=n),
        torch.cat([times if query_times is None else query_times, request]),
        torch.cat([times, request]),
    )
    watched = Watched(n, *grid)
    out = stack(torch.cat([x, targets]).double(), watched)
    return watched.kept, out[n:]


class OverGiven:
    """A prefix that attends to given keys and values instead of its own, which it keeps."""

    def __init__(self, given_layers: Sequence[tuple[Tensor, Tensor]], times: Tensor) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []
        self._given = given_layers
        self._times = times

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        self.keep(layer, k, v, form)
        given_k, given_v = (t.double().transpose(0, 1) for t in self._given[layer])
        positions, mask = torch.arange(len(q)), torch.ones(len(q), len(q), dtype=torch.bool).tril()
        bias = None if form.bias is None else form.bias.matrix(positions, positions, self._times, self._times)
        turned, scale = form.turned(q, positions), form.logit_scale
        return masked_attention(
            turned, given_k, given_v, mask, bias, logit_scale=scale, norm=form.norm, softmax=form.softmax
        )

    def keep(self, layer: int, k: Tensor, v: Tensor, form: AttentionForm) -> None:
        turned = form.turned(k, torch.arange(len(k)))
        self.kept.append((turned.transpose(0, 1), v.transpose(0, 1)))


class TargetsOverGiven:
    """Targets over the given keys and values of a prefix, and exactly themselves."""

    def __init__(self, given_layers: Sequence[tuple[Tensor, Tensor]], times: Tensor) -> None:
        self._given = given_layers
        self._times = times

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        given_k, given_v = (t.double() for t in self._given[layer])
        n, rab = len(self._times), form.bias
        bias = None if rab is None else (rab.vector(n, torch.arange(n), NOW, self._times), rab.own())
        vector, own = bias or (None, None)
        q, k = (form.turned(t, torch.tensor(n)) for t in (q, k))
        form_of = {"logit_scale": form.logit_scale, "norm": form.norm}
        return target_attention(q, k, v, given_k, given_v, vector, own, **form_of, softmax=form.softmax)


@dataclass(frozen=True, slots=True)
class Paged:
    """A KV state in pages that lie in no order, with strangers between and one more page than it needs."""

    stack: FusedStack
    memory: Tensor
    pages: Tensor
    times: Tensor

    def extend(self, x: Tensor, threads: int = 1, first: int = 0, query_times: Tensor | None = None) -> None:
        self.stack.extend(self.pages, first, x, threads, query_times)

    def score(self, targets: Tensor, now: int, threads: int = 1, microbatch: int = 96) -> Tensor:
        return self.stack.score(self.pages, len(self.times), targets, now, threads, microbatch)

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        return [self.stack.read(self.pages, layer, 0, len(self.times)) for layer in range(self.stack.num_layers)]

    def strangers(self) -> Tensor:
        """All bytes of the pages that are not the state's."""
        mine = (self.pages - self.memory.data_ptr()) // self.stack.page_bytes
        others = torch.ones(len(self.memory), dtype=torch.bool)
        others[mine] = False
        return self.memory[others]


def paged(stack: FusedStack, times: Tensor, seed: int = 0) -> Paged:
    """Memory for tokens of these times, all of it 0xff before: NaN as a number, NaN as an int8 scale."""
    num_pages = len(times) // stack.page_tokens + 1
    memory = torch.full((2 * num_pages + 1, stack.page_bytes), 255, dtype=torch.uint8)
    order = torch.randperm(len(memory), generator=torch.Generator().manual_seed(seed))[:num_pages]
    for place, part in zip(order, times.split(stack.page_tokens), strict=False):
        memory[place].view(torch.int64)[: len(part)] = part
    return Paged(stack, memory, memory.data_ptr() + order * stack.page_bytes, times)


def packed(policy: str, stack: Stack, page_tokens: int = 64, int8: bool = False) -> FusedStack:
    return FusedStack(kernel(policy), stack_config(stack), layer_weights(stack), page_tokens, int8)


def assert_close(got: Tensor, expected: Tensor, policy: str) -> None:
    assert got.shape == expected.shape
    assert torch.isfinite(got).all()
    if got.numel():
        worst = float((got - expected).abs().max()) / max(1.0, float(expected.abs().max()))
        assert worst <= BOUND[build_library.POLICIES[policy].element]


def same_state(one: Paged, other: Paged) -> bool:
    layers = zip(one.layers(), other.layers(), strict=True)
    return all(torch.equal(x, y) for pair in layers for x, y in zip(*pair, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40)
@given(cases(), st.integers(1, 3), st.sampled_from((1, 5, 6, 13, 96)), PAGE_TOKENS)
def test_prefill_and_score_are_the_torch_stack(
    policy: str, case: Case, threads: int, microbatch: int, page_tokens: int
) -> None:
    reference = random_stack(case.config, case.num_layers, case.seed)
    x, times, targets = case.inputs()
    state = paged(packed(policy, reference, page_tokens), times, case.seed)
    with poisoned_memory():
        state.extend(x, threads)
        got, plain = state.score(targets, NOW, threads, microbatch), state.layers()
    kept, expected = in_one_forward(reference, x, times, targets, NOW)
    for (k, v), (expected_k, expected_v) in zip(plain, kept, strict=True):
        assert_close(k, expected_k, policy)
        assert_close(v, expected_v, policy)
    assert_close(got, expected, policy)
    assert (state.strangers() == 255).all()


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=30)
@given(cases(), st.integers(1, 3), PAGE_TOKENS)
def test_int8_is_the_torch_stack_over_what_stands_in_the_pages(
    policy: str, case: Case, threads: int, page_tokens: int
) -> None:
    """Every token's keys and values are those of a prefix that attends to the pages, to half a code."""
    reference = random_stack(case.config, case.num_layers, case.seed)
    x, times, targets = case.inputs()
    state = paged(packed(policy, reference, page_tokens, int8=True), times, case.seed)
    with poisoned_memory():
        state.extend(x, threads)
        got, plain = state.score(targets, NOW, threads, 13), state.layers()
    prefix = OverGiven(plain, times)
    reference.encode(x.double(), prefix)
    bound = BOUND[state.stack.kernel.policy.element]
    for pair, exact_pair in zip(plain, prefix.kept, strict=True):
        for t, exact in zip(pair, exact_pair, strict=True):
            assert torch.isfinite(t).all()
            half_a_code = t.abs().amax(-1, keepdim=True) / 254 * 1.0001
            rounding = bound * max(1.0, float(exact.abs().max())) if exact.numel() else 0.0
            assert ((t - exact).abs() <= half_a_code + 2 * rounding).all()
    assert_close(got, reference(targets.double(), TargetsOverGiven(plain, times)), policy)
    assert (state.strangers() == 255).all()


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25)
@given(cases(), PAGE_TOKENS, st.booleans(), st.data())
def test_append_is_prefill_to_the_bit(
    policy: str, case: Case, page_tokens: int, int8: bool, data: st.DataObject
) -> None:
    """However a history is cut, and wherever and how large its pages are."""
    reference = random_stack(case.config, case.num_layers, case.seed)
    x, times, targets = case.inputs()
    cuts = sorted(data.draw(st.lists(st.integers(0, case.n), max_size=3)))
    whole = paged(packed(policy, reference, 64, int8), times)
    whole.extend(x, 2)
    state = paged(packed(policy, reference, page_tokens, int8), times, case.seed)
    with poisoned_memory():
        for start, stop in zip([0, *cuts], [*cuts, case.n], strict=True):
            state.extend(x[start:stop], data.draw(st.integers(1, 3)), start)
        assert same_state(state, whole)
        assert torch.equal(state.score(targets, NOW), whole.score(targets, NOW))


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15)
@given(cases(), st.sampled_from(((32, 128), (64, 32), (128, 64), (32, 192))), st.booleans(), st.data())
def test_a_state_is_the_same_on_pages_of_another_size(
    policy: str, case: Case, sizes: tuple[int, int], int8: bool, data: st.DataObject
) -> None:
    """To the bit, codes and scales included, and what is appended there too; weights are packed once."""
    reference = random_stack(case.config, case.num_layers, case.seed)
    x, times, targets = case.inputs()
    num_copied = data.draw(st.integers(0, case.n))
    stack = packed(policy, reference, sizes[0], int8)
    whole, other = paged(stack, times, case.seed), paged(stack.on_pages(sizes[1]), times, case.seed + 1)
    other.memory.view(torch.int64)[:, : sizes[1]] = -1
    with poisoned_memory():
        whole.extend(x)
        stack.copy(whole.pages, other.stack, other.pages, num_copied)
        page, slot = torch.arange(case.n).div(sizes[1], rounding_mode="floor"), torch.arange(case.n) % sizes[1]
        mine = (other.pages - other.memory.data_ptr()) // other.stack.page_bytes
        assert torch.equal(other.memory.view(torch.int64)[mine[page], slot][:num_copied], times[:num_copied])
        assert (other.memory.view(torch.int64)[mine[page], slot][num_copied:] == -1).all()
        other.memory.view(torch.int64)[mine[page], slot] = times
        other.extend(x[num_copied:], 1, num_copied)
        assert same_state(other, whole)
        del whole, stack  # the weights are still the other's
        assert torch.equal(other.score(targets, NOW), fresh_score(policy, reference, int8, case))
    assert other.memory.view(torch.int64)[:, : sizes[1]].eq(-1).sum() == other.memory.shape[0] * sizes[1] - case.n


def fresh_score(policy: str, reference: Stack, int8: bool, case: Case) -> Tensor:
    x, times, targets = case.inputs()
    state = paged(packed(policy, reference, 64, int8), times)
    state.extend(x)
    return state.score(targets, NOW)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15)
@given(cases(), st.booleans())
def test_no_score_moves_by_its_company(policy: str, case: Case, int8: bool) -> None:
    """Microbatch size, threads, order and number of the targets: exactly the same sums."""
    x, times, targets = case.inputs()
    state = paged(packed(policy, random_stack(case.config, case.num_layers, case.seed), int8=int8), times)
    state.extend(x)
    scores = state.score(targets, NOW)
    for threads, microbatch in ((1, 1), (2, 3), (1, 6), (2, 32), (3, 1000)):
        assert torch.equal(state.score(targets, NOW, threads, microbatch), scores)
    shuffled = torch.randperm(case.m, generator=torch.Generator().manual_seed(case.seed))
    assert torch.equal(state.score(targets[shuffled], NOW), scores[shuffled])
    twice = torch.cat([targets, targets[:1]])
    assert torch.equal(state.score(twice, NOW)[-1], scores[0])
    assert torch.equal(state.score(targets[-1:], NOW), scores[-1:])


def small(num_layers: int = 2, **changes: object) -> tuple[Case, Stack]:
    fields = {"dim": 12, "num_heads": 2, "qk_dim": 4, "v_dim": 7, "attention_norm": 9.0}
    bias = RelativeBiasConfig(num_positions=30)
    config = LayerConfig.model_validate({**fields, "bias": bias, **changes})
    return Case(config, num_layers, 41, 9, 0), random_stack(config, num_layers, 0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("n", [21, 22])
def test_what_stands_behind_a_state_is_nothing_to_it(policy: str, int8: bool, n: int) -> None:
    """Also where it shares the last page, and a step of a product, with tokens that are not numbers."""
    case, reference = small()
    x, times, targets = case.inputs()
    state = paged(packed(policy, reference, int8=int8), times[:n])
    state.extend(x[:n])
    before = state.score(targets, NOW)
    held = state.layers()
    for behind in (x[n:], torch.full_like(x[n:], float("nan"))):
        state.stack.extend(state.pages, n, behind)
        assert torch.equal(state.score(targets, NOW), before)
        after = state.layers()
        assert all(torch.equal(a, b) for pair in zip(held, after, strict=True) for a, b in zip(*pair, strict=True))
    again, whole = paged(state.stack, times), paged(state.stack, times)
    again.extend(x[:n])
    again.extend(torch.full_like(x[n:], float("nan")), 1, n)
    again.extend(x[n:], 1, n)
    whole.extend(x)
    assert same_state(again, whole)


def quantised(t: Tensor) -> Tensor:
    """Rows [..., dim] as int8 pages give them back."""
    scale = t.abs().amax(-1, keepdim=True) / 127
    return torch.where(scale > 0, (t * (1 / scale)).round().clamp(-127, 127) * scale, 0.0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("page_tokens", [32, 64, 128])
@pytest.mark.parametrize(("first", "num_tokens"), [(0, 0), (0, 1), (0, 63), (63, 2), (5, 77), (64, 64), (1, 199)])
def test_plain_keys_and_values_come_back(
    policy: str, int8: bool, page_tokens: int, first: int, num_tokens: int
) -> None:
    """Any range, to the bit of what pages hold; nothing else is written."""
    _, reference = small()
    state = paged(packed(policy, reference, page_tokens, int8), torch.arange(200))
    stack, generator = state.stack, torch.Generator().manual_seed(first)
    bytes_before = state.memory.clone()
    for layer in range(2):
        k, v = (torch.randn(2, num_tokens, dim, generator=generator) for dim in (4, 7))
        k[:, 1:2] = 0.0  # a token of no magnitude
        stack.write(state.pages, layer, first, k, v)
        got = stack.read(state.pages, layer, first, first + num_tokens)
        for back, t in zip(got, (k, v), strict=True):
            rounded = t.to(stack.kernel.dtype).float()
            assert torch.equal(back, quantised(rounded) if int8 else rounded)
        middle = slice(num_tokens // 3, num_tokens - num_tokens // 3)
        part = stack.read(state.pages, layer, first + middle.start, first + middle.stop)
        assert all(torch.equal(a, b[:, middle]) for a, b in zip(part, got, strict=True))
        if int8:  # the codes come back the same, a scale to a rounding
            stack.write(state.pages, layer, first, *got)
            for again, back in zip(stack.read(state.pages, layer, first, first + num_tokens), got, strict=True):
                bound = 3e-7 if stack.kernel.dtype == torch.float32 else 1e-2
                assert ((again - back).abs() <= bound * back.abs().amax(-1, keepdim=True)).all()
    if num_tokens == 0:
        assert torch.equal(state.memory, bytes_before)
    for token in {max(first - 1, 0), min(first + num_tokens, 199)} - set(range(first, first + num_tokens)):
        for t in stack.read(state.pages, 0, token, token + 1):
            assert t.isnan().all()
    assert torch.equal(state.memory.view(torch.int64)[:, :page_tokens], bytes_before.view(torch.int64)[:, :page_tokens])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_seen(policy: str, int8: bool, bad: float) -> None:
    """In any place of any token, and only in its own: what stands around it in memory is NaN and nobody's."""
    _, reference = small()
    generator, num_tokens = torch.Generator().manual_seed(0), 135
    clean = [torch.randn(2, num_tokens, dim, generator=generator) for dim in (4, 7)]
    for first in (0, 1, 62, 63):
        state = paged(packed(policy, reference, 64, int8), torch.arange(200))
        state.stack.write(state.pages, 1, first, *clean)
        stop = first + num_tokens
        assert state.stack.is_finite(state.pages, 1, first, stop)
        assert state.stack.is_finite(state.pages, 1, stop, stop)
        assert not state.stack.is_finite(state.pages, 0, first, stop)
        for which, head, token, column in ((0, 0, 0, 0), (0, 1, 134, 3), (1, 0, 67, 6), (1, 1, 134, 2), (1, 1, 1, 0)):
            spoilt = [numbers.clone() for numbers in clean]
            spoilt[which][head, token, column] = bad
            state.stack.write(state.pages, 1, first, *spoilt)
            at = first + token
            assert not state.stack.is_finite(state.pages, 1, first, stop)
            assert not state.stack.is_finite(state.pages, 1, at, at + 1)
            assert state.stack.is_finite(state.pages, 1, first, at)
            assert state.stack.is_finite(state.pages, 1, at + 1, stop)


@pytest.mark.parametrize("policy", POLICIES)
def test_int8_scores_are_near_those_of_float(policy: str) -> None:
    case, reference = small(num_layers=3)
    x, times, targets = case.inputs()
    state = paged(packed(policy, reference, int8=True), times)
    state.extend(x)
    _, expected = in_one_forward(reference, x, times, targets, NOW)
    worst = float((state.score(targets, NOW) - expected).abs().max() / expected.abs().max())
    assert worst <= INT8_BOUND


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e-45, 3e38])
def test_int8_of_extreme_numbers(policy: str, bad: float) -> None:
    """What is not finite stays not finite, alone in its token; what is too small for a scale is zero or near."""
    _, reference = small()
    state = paged(packed(policy, reference, int8=True), torch.arange(9))
    k, v = torch.ones(2, 3, 4), torch.ones(2, 3, 7)
    k[0, 1, 2] = v[1, 1, 3] = bad
    state.stack.write(state.pages, 0, 4, k, v)
    got_k, got_v = state.stack.read(state.pages, 0, 4, 7)
    hit = torch.zeros(2, 3, dtype=torch.bool)
    hit[0, 1] = True
    finite = torch.isfinite(torch.tensor(bad))
    assert torch.isfinite(got_k[~hit]).all() and torch.isfinite(got_v[~hit.flip(0)]).all()
    assert torch.isfinite(got_k[hit]).all() == finite and torch.isfinite(got_v[hit.flip(0)]).all() == finite
    if finite:
        assert (got_k - k).abs().max() <= k.abs().max() / 100


@pytest.mark.parametrize("int8", [False, True])
def test_calls_of_several_threads_are_each_their_own(int8: bool) -> None:
    """No call leaves anything in a stack: scores over one state and prefills of many, all at once."""
    case, reference = small()
    x, times, targets = case.inputs()
    stack = packed(runnable(), reference, int8=int8)
    shared = paged(stack, times)
    shared.extend(x)
    expected = shared.score(targets, NOW)

    def work(seed: int) -> bool:
        own = paged(stack, times, seed)
        own.extend(x[:30])
        own.extend(x[30:], 1, 30)
        same = torch.equal(own.score(targets, NOW), expected)
        return same and torch.equal(shared.score(targets, NOW), expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("ascending", [False, True])
def test_times_in_any_order(policy: str, ascending: bool) -> None:
    """Buckets by definition, also where time runs backwards or further than int64 can subtract."""
    case, reference = small()
    x, times, targets = case.inputs()
    times = times[torch.randperm(case.n, generator=torch.Generator().manual_seed(1))]
    times[3], times[5] = -(2**62), 2**62
    if ascending:
        times = times.sort().values
    state = paged(packed(policy, reference), times)
    state.extend(x)
    for now in (NOW, -(2**60), 2**62):
        _, wanted = in_one_forward(reference, x, times, targets, now)
        assert_close(state.score(targets, now), wanted, policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("buckets", [2, 40])
def test_a_row_has_one_result_however_its_biases_are_read(policy: str, buckets: int) -> None:
    """Where many keys share a bucket and where few do, in whole tiles of rows and in single ones."""
    bias = RelativeBiasConfig(num_positions=400, num_time_buckets=buckets)
    case = Case(small(bias=bias)[0].config, 2, 290, 7, 3)
    reference = random_stack(case.config, case.num_layers, case.seed)
    x, times, targets = case.inputs()
    whole, single = (paged(packed(policy, reference, page), times) for page in (64, 256))
    whole.extend(x)
    for start, stop in ((0, 6), (6, 127), *((at, at + 1) for at in range(127, 140)), (140, 143), (143, case.n)):
        single.extend(x[start:stop], 1, start)
    assert same_state(single, whole)
    kept, _ = in_one_forward(reference, x, times, targets, NOW)
    for (k, v), (expected_k, expected_v) in zip(whole.layers(), kept, strict=True):
        assert_close(k, expected_k, policy)
        assert_close(v, expected_v, policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("descending", [False, True])
def test_every_edge_of_every_bucket(policy: str, descending: bool) -> None:
    """A difference of exactly a threshold belongs to the bucket above it, whichever way time runs."""
    _, reference = small(bias=RelativeBiasConfig(num_positions=30, num_time_buckets=40))
    thresholds = time_thresholds(40, 0.301, 1000)
    times = (NOW - (thresholds.unsqueeze(1) + torch.tensor([-1, 0, 1])).flatten()).sort(descending=descending).values
    case = Case(small()[0].config, 2, len(times), 9, 0)
    x, _, targets = case.inputs()
    query_times = torch.full_like(times, NOW)
    state = paged(packed(policy, reference), times)
    state.extend(x, query_times=query_times)
    kept, expected = in_one_forward(reference, x, times, targets, NOW, query_times)
    assert_close(state.score(targets, NOW), expected, policy)
    for (k, _), (expected_k, _) in zip(state.layers(), kept, strict=True):
        assert_close(k, expected_k, policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_targets_and_no_tokens(policy: str) -> None:
    case, reference = small()
    x, _, targets = case.inputs()
    stack = packed(policy, reference)
    no_pages = torch.zeros(0, dtype=torch.int64)
    stack.extend(no_pages, 0, x[:0])
    assert stack.score(no_pages, 0, targets[:0], NOW).shape == (0, 12)
    alone = torch.cat([stack.score(no_pages, 0, target.unsqueeze(0), NOW) for target in targets])
    assert torch.equal(stack.score(no_pages, 0, targets, NOW), alone)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("microbatch", [1, 4, 11])
def test_golden_research(policy: str, microbatch: int, request: pytest.FixtureRequest) -> None:
    vectors, reference = request.getfixturevalue("golden"), request.getfixturevalue("research")
    times, request_time = vectors["research.history_time"], vectors["research.request_time"]
    state = paged(packed(policy, reference), times)
    shifted = torch.cat([times[1:], request_time])
    state.extend(vectors["research.history"].float(), 2, query_times=shifted)
    out = state.score(vectors["research.candidates"].float(), int(request_time), 2, microbatch)
    assert_close(out, vectors["research.candidate_outputs"], policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cuts", [(37,), (1, 37), (20, 21, 37)])
def test_golden_v3(policy: str, cuts: tuple[int, ...], request: pytest.FixtureRequest) -> None:
    vectors, reference = request.getfixturevalue("golden"), request.getfixturevalue("v3")
    history = vectors["v3.history"].float()
    state, start = paged(packed(policy, reference), torch.zeros(37, dtype=torch.int64)), 0
    for stop in cuts:
        state.extend(history[start:stop], 1, start)
        start = stop
    out = state.score(vectors["v3.candidates"].float(), 0, 2, 4)
    assert_close(out, vectors["v3.candidate_outputs"], policy)


def runnable() -> str:
    return next(name for name, policy in build_library.POLICIES.items() if policy.cpu_flags <= FLAGS)


@pytest.mark.parametrize("int8", [False, True])
def test_a_page_holds_its_times_and_every_head(int8: bool) -> None:
    stack = packed("portable_f32", small()[1], 128, int8)
    of_head = 128 * (4 + 8) * (1 if int8 else 4) + (2 * 128 * 4 if int8 else 0)  # padded to vectors of four
    assert stack.page_bytes == 128 * 8 + 2 * 2 * of_head
    assert stack.page_bytes % 64 == 0


def test_refuses_what_does_not_fit() -> None:
    case, reference = small()
    x, times, targets = case.inputs()
    state = paged(packed(runnable(), reference), times)
    stack, pages = state.stack, state.pages
    state.extend(x)
    with pytest.raises(ValueError, match=r"^x: shape \(9, 11\), must be \(9, 12\)"):
        state.score(targets[:, :11], NOW)
    with pytest.raises(ValueError, match=r"^x: torch.float64"):
        state.score(targets.double(), NOW)
    with pytest.raises(ValueError, match=r"^query_times: shape \(40,\), must be \(41,\)"):
        state.extend(x, query_times=times[:40])
    with pytest.raises(ValueError, match=r"^threads 0"):
        state.score(targets, NOW, threads=0)
    with pytest.raises(ValueError, match=r"^pages: torch.int32, must be torch.int64"):
        stack.extend(pages.int(), 0, x)
    with pytest.raises(ValueError, match=r"^pages: shape \(1, 1\), must be \(1,\)"):
        stack.score(pages.unsqueeze(0), 41, targets, NOW)
    with pytest.raises(ValueError, match=r"^pages: 1 of 64 tokens, too few for 65"):
        stack.extend(pages, 64, x[:1])
    with pytest.raises(ValueError, match=r"^pages: 1 of 64 tokens, too few for 65"):
        stack.score(pages, 65, targets, NOW)
    with pytest.raises(ValueError, match=r"^tokens: 41 behind -1, must not be negative"):
        stack.extend(pages, -1, x)
    with pytest.raises(ValueError, match=r"^tokens: -1 behind 3, must not be negative"):
        stack.read(pages, 0, 3, 2)
    with pytest.raises(ValueError, match=r"^layer: 2, must be one of 2"):
        stack.read(pages, 2, 0, 3)
    with pytest.raises(ValueError, match=r"^k: shape \(2, 3, 5\), must be \(2, 3, 4\)"):
        stack.write(pages, 0, 0, torch.zeros(2, 3, 5), torch.zeros(2, 3, 7))
    with pytest.raises(ValueError, match=r"^v: shape \(2, 2, 7\), must be \(2, 3, 7\)"):
        stack.write(pages, 0, 0, torch.zeros(2, 3, 4), torch.zeros(2, 2, 7))
    for page_tokens in (0, -64, 16, 96):
        expected = rf"^page_tokens: {page_tokens}, must be 32 or a positive multiple of 64"
        with pytest.raises(ValueError, match=expected):
            packed(runnable(), reference, page_tokens)
        with pytest.raises(ValueError, match=expected):
            stack.on_pages(page_tokens)
    with pytest.raises(ValueError, match=r"^pages: 1 of 64 tokens, too few for 65"):
        stack.copy(pages, stack.on_pages(32), torch.cat([pages] * 3), 65)
    with pytest.raises(ValueError, match=r"^pages: 1 of 32 tokens, too few for 33"):
        stack.copy(pages, stack.on_pages(32), pages, 33)
    form = StackConfig(2, 12, 4, 7, 9.0, 0.5, 1e-6, activate_all=True, concat=False)
    weights = LayerWeights(uvqk=torch.zeros(44, 12), output=torch.zeros(12, 14))
    with pytest.raises(ValueError, match=r"^output: shape \(12, 13\), must be \(12, 14\)"):
        FusedStack(stack.kernel, form, [LayerWeights(uvqk=weights.uvqk, output=torch.zeros(12, 13))])
    bias = RelativeBias(torch.zeros(2, 5), torch.zeros(2, 4), time_thresholds(3, 1.0, 1))
    biased = LayerWeights(uvqk=weights.uvqk, output=weights.output, bias=bias)
    with pytest.raises(ValueError, match=r"^bias: only some layers|^bias: layers differ"):
        FusedStack(stack.kernel, form, [biased, weights])


def test_a_kernel_that_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = runnable()
    kernel(policy)
    monkeypatch.setattr(check, "checked", check.checked.__wrapped__)  # anew, though it has agreed before
    monkeypatch.setattr(check, "SELF_CHECK_BOUND", dict.fromkeys(check.SELF_CHECK_BOUND, 0.0))
    with pytest.raises(FusedUnavailable, match="differs from the reference"):
        check.load(policy, SANITIZE)
    monkeypatch.setattr(check, "SELF_CHECK_BOUND", {"float32": 1.0, "bfloat16": 1.0, "int8": 0.0})
    with pytest.raises(FusedUnavailable, match="over int8 pages: differs from the reference"):
        check.load(policy, SANITIZE)
    monkeypatch.setattr(check, "deviation", lambda *_, **__: float("nan"))
    with pytest.raises(FusedUnavailable, match="differs from the reference by nan"):
        check.load(policy, SANITIZE)


def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel("portable_f32")
    monkeypatch.setattr(build_library, "cpu_flags", frozenset)
    assert {name.partition("_")[0] for name in library.available(SANITIZE)} == {"portable"}
    assert check.load(sanitize=SANITIZE).policy.name == "portable_f32"
    with pytest.raises(FusedUnavailable, match="this processor lacks avx2, fma"):
        check.load("avx2_f32", SANITIZE)
