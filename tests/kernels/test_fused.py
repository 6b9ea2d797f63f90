"""The fused CPU kernel computes the torch stack, at odd sizes and in every form of layer; what must be exact is exact.

`MFALCON_SANITIZE=address,undefined` runs all of it over the instrumented libraries (make sanitize).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import cpu_build, fused, fused_library
from kernels.bias import RelativeBias, time_thresholds
from kernels.fused import FusedStack, FusedUnavailable, Kernel, LayerWeights, PackedKV, StackConfig
from mfalcon.attention import PrefixAttention, TargetAttention
from mfalcon.kv import KVShape, KVState, empty_state
from mfalcon.models.config import LayerConfig, RelativeBiasConfig
from mfalcon.models.fused import fused_stack
from mfalcon.models.layer import Stack
from tests.test_golden import ShiftedPrefix, golden, research, v3

__all__ = ["golden", "research", "v3"]

SANITIZE = os.environ.get("MFALCON_SANITIZE", "")
CPU = torch.device("cpu")
FLAGS = fused_library.cpu_flags()
POLICIES = [
    pytest.param(name, marks=() if policy.cpu_flags <= FLAGS else pytest.mark.skip(reason="not on this processor"))
    for name, policy in cpu_build.POLICIES.items()
]

BOUND = {"float32": 1e-5, "bfloat16": 5e-2}
"""Worst difference from the float64 stack, relative to its largest output. float32: law 1's. bfloat16: 8 bits in q, k,
v, weights and gates, added up over three layers."""

NOW = 10**12 + 10**9


@cache
def kernel(policy: str) -> Kernel:
    compiler = cpu_build.find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    cpu_build.compile_policy(compiler, cpu_build.POLICIES[policy], SANITIZE)
    return fused.load(policy, SANITIZE)


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
    positions = draw(st.sampled_from((None, 1, 9, 400)))
    config = LayerConfig(
        dim=draw(st.sampled_from((5, 16, 40, 64))),
        num_heads=draw(st.integers(1, 3)),
        qk_dim=draw(HEAD_DIMS),
        v_dim=draw(HEAD_DIMS),
        attention_norm=draw(st.sampled_from((1.0, 50.0))),
        logit_scale=draw(st.sampled_from((None, 0.2))),
        activation=draw(st.sampled_from(("uvqk", "u"))),
        norm_affine=draw(st.booleans()),
        norm_eps=draw(st.sampled_from((1e-6, 1e-3))),
        uvqk_bias=draw(st.booleans()),
        output=draw(st.sampled_from(("gated", "concat"))),
        output_bias=draw(st.booleans()),
        bias=None if positions is None else RelativeBiasConfig(num_positions=positions, num_time_buckets=40),
    )
    m = draw(st.sampled_from((1, 2, 6, 7, 63, 77)))
    return Case(config, draw(st.integers(1, 3)), draw(SIZES), m, draw(st.integers(0, 1000)))


def torch_state(case: Case, stack: Stack, x: Tensor, times: Tensor) -> KVState:
    config = case.config
    shape = KVShape(case.num_layers, config.num_heads, config.qk_dim, config.v_dim, torch.float64, CPU)
    state = empty_state(shape).extend(times)
    stack.encode(x.double(), PrefixAttention(state))
    return state


def assert_close(got: Tensor, expected: Tensor, policy: str) -> None:
    assert got.shape == expected.shape
    assert torch.isfinite(got).all()
    if got.numel():
        worst = float((got - expected).abs().max()) / max(1.0, float(expected.abs().max()))
        assert worst <= BOUND[cpu_build.POLICIES[policy].element]


def same_state(a: FusedStack, one: PackedKV, other: PackedKV) -> bool:
    layers = zip(a.to_plain(one), a.to_plain(other), strict=True)
    same = all(torch.equal(x, y) for pair in layers for x, y in zip(*pair, strict=True))
    return same and torch.equal(one.times, other.times)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40)
@given(cases(), st.integers(1, 3), st.sampled_from((1, 5, 6, 13, 96)))
def test_prefill_and_score_are_the_torch_stack(policy: str, case: Case, threads: int, microbatch: int) -> None:
    reference = random_stack(case.config, case.num_layers, case.seed)
    x, times, targets = case.inputs()
    with poisoned_memory():
        stack = fused_stack(kernel(policy), reference)
        state = stack.extend(stack.empty(), x, times, threads)
        got = stack.score(state, targets, NOW, threads, microbatch)
        plain = stack.to_plain(state)
    expected = torch_state(case, reference, x, times)
    for layer, (k, v) in enumerate(plain):
        assert_close(k, expected.k(layer), policy)
        assert_close(v, expected.v(layer), policy)
    assert_close(got, reference(targets.double(), TargetAttention(expected, NOW)), policy)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25)
@given(cases(), st.data())
def test_append_is_prefill_to_the_bit(policy: str, case: Case, data: st.DataObject) -> None:
    stack = fused_stack(kernel(policy), random_stack(case.config, case.num_layers, case.seed))
    x, times, targets = case.inputs()
    cuts = sorted(data.draw(st.lists(st.integers(0, case.n), max_size=3)))
    with poisoned_memory():
        whole = stack.extend(stack.empty(), x, times, 2)
        state = stack.empty(data.draw(st.sampled_from((0, case.n))))
        for start, stop in zip([0, *cuts], [*cuts, case.n], strict=True):
            state = stack.extend(state, x[start:stop], times[start:stop], data.draw(st.integers(1, 2)))
        assert state.num_tokens == case.n
        assert same_state(stack, state, whole)
        assert torch.equal(stack.score(state, targets, NOW), stack.score(whole, targets, NOW))


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15)
@given(cases())
def test_no_score_moves_by_its_company(policy: str, case: Case) -> None:
    """Microbatch size, threads, order and number of the targets: exactly the same sums."""
    stack = fused_stack(kernel(policy), random_stack(case.config, case.num_layers, case.seed))
    x, times, targets = case.inputs()
    state = stack.extend(stack.empty(), x, times)
    scores = stack.score(state, targets, NOW)
    for threads, microbatch in ((1, 1), (2, 3), (1, 6), (2, 32), (3, 1000)):
        assert torch.equal(stack.score(state, targets, NOW, threads, microbatch), scores)
    shuffled = torch.randperm(case.m, generator=torch.Generator().manual_seed(case.seed))
    assert torch.equal(stack.score(state, targets[shuffled], NOW), scores[shuffled])
    twice = torch.cat([targets, targets[:1]])
    assert torch.equal(stack.score(state, twice, NOW)[-1], scores[0])
    assert torch.equal(stack.score(state, targets[-1:], NOW), scores[-1:])


def small(num_layers: int = 2, **changes: object) -> tuple[Case, Stack]:
    fields = {"dim": 12, "num_heads": 2, "qk_dim": 4, "v_dim": 7, "attention_norm": 9.0}
    bias = RelativeBiasConfig(num_positions=30)
    config = LayerConfig.model_validate({**fields, "bias": bias, **changes})
    return Case(config, num_layers, 41, 9, 0), random_stack(config, num_layers, 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_held_state_never_changes(policy: str) -> None:
    case, reference = small()
    stack = fused_stack(kernel(policy), reference)
    x, times, targets = case.inputs()
    base = stack.extend(stack.empty(64), x[:21], times[:21])
    before = stack.score(base, targets, NOW)
    longer = stack.extend(base, x[21:], times[21:])
    assert longer.buffer is base.buffer  # in place behind the newest
    other = stack.extend(base, x[21:].neg(), times[21:])
    assert other.buffer is not base.buffer  # an older one is copied
    assert torch.equal(stack.score(base, targets, NOW), before)
    assert same_state(stack, longer, stack.extend(stack.empty(), x, times))
    altered = torch.cat([x[:21], x[21:].neg()])
    assert same_state(stack, other, stack.extend(stack.empty(), altered, times))
    nan = stack.extend(base, torch.full_like(x[:9], float("nan")), times[:9])
    assert nan.num_tokens == 30
    assert torch.equal(stack.score(base, targets, NOW), before)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("n", [0, 1, 63, 77])
def test_plain_keys_and_values_come_back_the_same(policy: str, n: int) -> None:
    case, reference = small()
    stack = fused_stack(kernel(policy), reference)
    generator = torch.Generator().manual_seed(n)
    dtype = stack.kernel.dtype
    plain = [tuple(torch.randn(2, n, dim, generator=generator).to(dtype).float() for dim in (4, 7)) for _ in range(2)]
    times = torch.arange(n)
    with poisoned_memory():
        state = stack.from_plain([(k, v) for k, v in plain], times, capacity=100)
        back = stack.to_plain(state)
    assert torch.equal(state.times, times)
    for given_layer, got in zip(plain, back, strict=True):
        assert torch.equal(got[0], given_layer[0]) and torch.equal(got[1], given_layer[1])
    x, new_times, targets = case.inputs()
    assert torch.isfinite(stack.score(stack.extend(state, x, new_times + 100), targets, NOW)).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_times_in_any_order(policy: str) -> None:
    """Buckets by definition, also where time runs backwards or further than int64 can subtract."""
    case, reference = small()
    stack = fused_stack(kernel(policy), reference)
    x, times, targets = case.inputs()
    times = times[torch.randperm(case.n, generator=torch.Generator().manual_seed(1))]
    times[3], times[5] = -(2**62), 2**62
    state = stack.extend(stack.empty(), x, times)
    expected = torch_state(case, reference, x, times)
    for now in (NOW, -(2**60), 2**62):
        wanted = reference(targets.double(), TargetAttention(expected, now))
        assert_close(stack.score(state, targets, now), wanted, policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("descending", [False, True])
def test_every_edge_of_every_bucket(policy: str, descending: bool) -> None:
    """A difference of exactly a threshold belongs to the bucket above it, whichever way time runs."""
    _, reference = small(bias=RelativeBiasConfig(num_positions=30, num_time_buckets=40))
    thresholds = time_thresholds(40, 0.301, 1000)
    times = (NOW - (thresholds.unsqueeze(1) + torch.tensor([-1, 0, 1])).flatten()).sort(descending=descending).values
    case = Case(small()[0].config, 2, len(times), 9, 0)
    x, _, targets = case.inputs()
    stack = fused_stack(kernel(policy), reference)
    query_times = torch.full_like(times, NOW)
    state = stack.extend(stack.empty(), x, times, query_times=query_times)
    plain = torch_state(case, reference, x[:0], times[:0]).extend(times)
    reference.encode(x.double(), ShiftedPrefix(plain, query_times))
    expected = reference(targets.double(), TargetAttention(plain, NOW))
    assert_close(stack.score(state, targets, NOW), expected, policy)
    for layer, (k, _) in enumerate(stack.to_plain(state)):
        assert_close(k, plain.k(layer), policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_targets_and_no_tokens(policy: str) -> None:
    case, reference = small()
    stack = fused_stack(kernel(policy), reference)
    x, times, targets = case.inputs()
    state = stack.extend(stack.empty(), x[:0], times[:0])
    assert state.num_tokens == 0
    assert stack.score(state, targets[:0], NOW).shape == (0, 12)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("microbatch", [1, 4, 11])
def test_golden_research(policy: str, microbatch: int, request: pytest.FixtureRequest) -> None:
    vectors, reference = request.getfixturevalue("golden"), request.getfixturevalue("research")
    stack = fused_stack(kernel(policy), reference)
    times, request_time = vectors["research.history_time"], vectors["research.request_time"]
    shifted = torch.cat([times[1:], request_time])
    state = stack.extend(stack.empty(), vectors["research.history"].float(), times, 2, query_times=shifted)
    out = stack.score(state, vectors["research.candidates"].float(), int(request_time), 2, microbatch)
    assert_close(out, vectors["research.candidate_outputs"], policy)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cuts", [(37,), (1, 37), (20, 21, 37)])
def test_golden_v3(policy: str, cuts: tuple[int, ...], request: pytest.FixtureRequest) -> None:
    vectors, reference = request.getfixturevalue("golden"), request.getfixturevalue("v3")
    stack = fused_stack(kernel(policy), reference)
    history = vectors["v3.history"].float()
    state, start = stack.empty(), 0
    for stop in cuts:
        state = stack.extend(state, history[start:stop], torch.zeros(stop - start, dtype=torch.int64))
        start = stop
    out = stack.score(state, vectors["v3.candidates"].float(), 0, 2, 4)
    assert_close(out, vectors["v3.candidate_outputs"], policy)


def runnable() -> str:
    return next(name for name, policy in cpu_build.POLICIES.items() if policy.cpu_flags <= FLAGS)


def test_refuses_what_does_not_fit() -> None:
    case, reference = small()
    stack = fused_stack(kernel(runnable()), reference)
    x, times, targets = case.inputs()
    state = stack.extend(stack.empty(), x, times)
    with pytest.raises(ValueError, match=r"^x: shape \(9, 11\), must be \(9, 12\)"):
        stack.score(state, targets[:, :11], NOW)
    with pytest.raises(ValueError, match=r"^x: torch.float64"):
        stack.score(state, targets.double(), NOW)
    with pytest.raises(ValueError, match=r"^times: shape \(40,\), must be \(41,\)"):
        stack.extend(state, x, times[:40])
    with pytest.raises(ValueError, match=r"^threads 0"):
        stack.score(state, targets, NOW, threads=0)
    with pytest.raises(ValueError, match=r"^k: shape"):
        stack.from_plain([(torch.zeros(2, 3, 5), torch.zeros(2, 3, 7))] * 2, torch.arange(3))
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
    monkeypatch.setattr(fused, "SELF_CHECK_BOUND", {"float32": 0.0, "bfloat16": 0.0})
    with pytest.raises(FusedUnavailable, match="differs from the reference"):
        fused.load(policy, SANITIZE)
    monkeypatch.setattr(fused, "deviation", lambda *_: float("nan"))
    with pytest.raises(FusedUnavailable, match="differs from the reference by nan"):
        fused.load(policy, SANITIZE)


def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel("portable_f32")
    monkeypatch.setattr(fused_library, "cpu_flags", frozenset)
    assert {name.partition("_")[0] for name in fused.available(SANITIZE)} == {"portable"}
    assert fused.load(sanitize=SANITIZE).policy.name == "portable_f32"
    with pytest.raises(FusedUnavailable, match="compile with: python -m kernels"):
        fused.load("avx2_f32", SANITIZE)
