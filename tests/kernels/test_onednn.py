"""oneDNN's linears compute the torch stack, at odd sizes and in every form of layer, or are refused."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import onednn
from kernels.onednn import OneDnnStack, OneDnnUnavailable
from mfalcon.attention import AttentionForm, FullAttention
from mfalcon.backends.weights import layer_weights, stack_config
from mfalcon.models.config import LayerConfig, RelativeBiasConfig
from mfalcon.models.layer import Stack
from tests.test_golden import golden, research, target_mask, v3

__all__ = ["golden", "research", "v3"]

BOUND = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Worst difference from the float64 stack, relative to its largest output. float32: law 1's. bfloat16: 8 bits in q, k,
v, weights and gates, added up over three layers."""

NOW = 10**12 + 10**9


def refused(dtype: torch.dtype) -> bool:
    try:
        onednn.check(dtype)
    except OneDnnUnavailable:
        return True
    return False


DTYPES = [
    pytest.param(dtype, marks=pytest.mark.skipif(refused(dtype), reason="not on this processor"), id=str(dtype)[6:])
    for dtype in BOUND
]


@dataclass(slots=True)
class Prefix:
    """Keys and values by layer, and how often each layer's were asked for."""

    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)

    def kv(self, layer: int) -> tuple[Tensor, Tensor]:
        self.asked.append(layer)
        return self.kept[layer]

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        new = (k.transpose(0, 1), v.transpose(0, 1))
        old = self.kept.get(layer, tuple(t[:, :0] for t in new))
        self.kept[layer] = (torch.cat([old[0], new[0]], 1).contiguous(), torch.cat([old[1], new[1]], 1).contiguous())

    @staticmethod
    def empty(config: LayerConfig, num_layers: int, dtype: torch.dtype) -> "Prefix":
        dims = (config.qk_dim, config.v_dim)
        k, v = (torch.zeros(config.num_heads, 0, dim, dtype=dtype) for dim in dims)
        return Prefix({layer: (k, v) for layer in range(num_layers)})


class Recorded(FullAttention):
    """The dense masked forward over prefix [n] and targets [m], which remembers every layer's keys and values."""

    def __init__(self, times: Tensor, num_targets: int, now: int) -> None:
        n = len(times)
        all_times = torch.cat([times, torch.full((num_targets,), now)])
        positions = torch.arange(n + num_targets).clamp(max=n)
        super().__init__(target_mask(n, num_targets), positions, all_times, all_times)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        self.kept[layer] = (k, v)
        return super().__call__(layer, q, k, v, form)


@dataclass(frozen=True, slots=True)
class Case:
    config: LayerConfig
    num_layers: int
    n: int
    m: int
    seed: int

    def stack(self) -> Stack:
        """Weights of an order at which every part matters; float32 values in float64."""
        stack = Stack(self.config, self.num_layers).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(self.seed)
        for name, parameter in stack.named_parameters():
            matrix = name.endswith(("uvqk.weight", "output.weight"))
            parameter.normal_(std=parameter.shape[1] ** -0.5 if matrix else 0.5, generator=generator)
        return stack.double()

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Prefix tokens [n, dim] and times [n], targets [m, dim]."""
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.n, self.config.dim, generator=generator)
        gaps = torch.randint(0, 10**7, (self.n,), generator=generator)
        times = 10**12 + (gaps * torch.randint(0, 2, (self.n,), generator=generator)).cumsum(0)
        return x, times, torch.randn(self.m, self.config.dim, generator=generator)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    positions = draw(st.sampled_from((None, 1, 9, 400)))
    head_dims = st.sampled_from((1, 7, 16, 24, 64))
    config = LayerConfig(
        dim=draw(st.sampled_from((5, 16, 40))),
        num_heads=draw(st.integers(1, 3)),
        qk_dim=draw(head_dims),
        v_dim=draw(head_dims),
        attention_norm=draw(st.sampled_from((1.0, 100.0))),
        activation=draw(st.sampled_from(("uvqk", "u"))),
        norm_affine=draw(st.booleans()),
        uvqk_bias=draw(st.booleans()),
        output=draw(st.sampled_from(("gated", "concat"))),
        output_bias=draw(st.booleans()),
        bias=None if positions is None else RelativeBiasConfig(num_positions=positions),
    )
    n = draw(st.sampled_from((0, 1, 2, 63, 77, 128, 255, 256, 300, 513)))
    return Case(
        config, draw(st.integers(1, 3)), n, draw(st.sampled_from((1, 2, 77, 129, 200))), draw(st.integers(0, 99))
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def packed(stack: Stack, dtype: torch.dtype) -> OneDnnStack:
    return OneDnnStack(stack_config(stack), layer_weights(stack), dtype)


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == expected.shape
    if expected.numel():
        worst = float((got.double() - expected).abs().max() / expected.abs().max())
        assert worst <= BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_prefill_append_and_score_are_the_dense_forward(dtype: torch.dtype, case: Case, data: st.DataObject) -> None:
    stack = case.stack()
    x, times, targets = case.inputs()
    dense = Recorded(times, case.m, NOW)
    expected = stack(torch.cat([x, targets]).double(), dense)[case.n :]
    onednn_stack, prefix = packed(stack, dtype), Prefix.empty(case.config, case.num_layers, dtype)
    cuts = sorted(data.draw(st.lists(st.integers(0, case.n), max_size=2)))
    for start, stop in zip([0, *cuts], [*cuts, case.n], strict=True):
        onednn_stack.extend(prefix.kv, prefix.keep, times[:stop], x[start:stop])
    for layer, (k, v) in prefix.kept.items():
        dense_k, dense_v = dense.kept[layer]
        assert_close(k.transpose(0, 1), dense_k[: case.n], dtype)
        assert_close(v.transpose(0, 1), dense_v[: case.n], dtype)
    prefix.asked.clear()
    out = onednn_stack.score(prefix.kv, times, targets, NOW, data.draw(st.sampled_from((1, 50, 150, 512))))
    assert prefix.asked == list(range(case.num_layers))
    assert out.dtype == torch.float32
    assert_close(out, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("microbatch", [1, 4, 11])
def test_golden_research(dtype: torch.dtype, microbatch: int, golden: dict[str, Tensor], research: Stack) -> None:
    stack, prefix = packed(research, dtype), Prefix()
    times, request_time = golden["research.history_time"], golden["research.request_time"]
    shifted = torch.cat([times[1:], request_time])
    stack.extend(prefix.kv, prefix.keep, times, golden["research.history"].float(), shifted)
    out = stack.score(prefix.kv, times, golden["research.candidates"].float(), int(request_time), microbatch)
    assert_close(out, golden["research.candidate_outputs"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", [(37,), (1, 37), (20, 21, 37)])
def test_golden_v3(dtype: torch.dtype, cuts: tuple[int, ...], golden: dict[str, Tensor], v3: Stack) -> None:
    stack, prefix, start = packed(v3, dtype), Prefix(), 0
    times = torch.zeros(37, dtype=torch.int64)
    for stop in cuts:
        stack.extend(prefix.kv, prefix.keep, times[:stop], golden["v3.history"][start:stop].float())
        start = stop
    out = stack.score(prefix.kv, times, golden["v3.candidates"].float(), 0, 4)
    assert_close(out, golden["v3.candidate_outputs"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_targets_and_no_tokens(dtype: torch.dtype) -> None:
    case = Case(LayerConfig(dim=12, num_heads=2, qk_dim=4, v_dim=7, attention_norm=9.0), 2, 0, 0, 0)
    stack, prefix = packed(case.stack(), dtype), Prefix.empty(case.config, 2, dtype)
    x, times, targets = case.inputs()
    stack.extend(prefix.kv, prefix.keep, times, x)
    assert prefix.asked == []
    assert stack.score(prefix.kv, times, targets, NOW, 128).shape == (0, 12)


def test_refuses_other_dtypes() -> None:
    stack = Case(LayerConfig(dim=12, num_heads=2, qk_dim=4, v_dim=7, attention_norm=9.0), 1, 0, 0, 0).stack()
    with pytest.raises(ValueError, match=r"^dtype: torch.float64, must be one of torch.float32, torch.bfloat16"):
        packed(stack, torch.float64)


@pytest.fixture
def fresh_check() -> Iterator[None]:
    """`check` forgets before and after."""
    onednn._objection.cache_clear()
    yield
    onednn._objection.cache_clear()


class Lies:
    """The op, but for one of its parts."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._op = torch.ops.mkldnn._linear_pointwise.default

    def default(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, attr: str, scalars: list[float], algorithm: str
    ) -> Tensor:
        if self._part == "bias":
            bias = None
        if self._part == "activation":
            attr = "none"
        out: Tensor = self._op(x, weight, bias, attr, scalars, algorithm)
        return {"scale": out * 1.001, "nan": out * float("nan")}.get(self._part, out)


@pytest.mark.skipif(refused(torch.float32), reason="not on this processor")
@pytest.mark.usefixtures("fresh_check")
@pytest.mark.parametrize("part", ["bias", "activation", "scale", "nan"])
def test_an_op_that_lies_is_refused(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", Lies(part))
    with pytest.raises(OneDnnUnavailable, match=r"^oneDNN in torch.float32: differs from the reference by"):
        onednn.check(torch.float32)


@pytest.mark.usefixtures("fresh_check")
@pytest.mark.parametrize("op", ["_linear_pointwise", "_reorder_linear_weight"])
def test_a_missing_op_is_said(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"_linear_pointwise", "_reorder_linear_weight"} - {op}
    ops = SimpleNamespace(**{name: getattr(torch.ops.mkldnn, name) for name in others})
    monkeypatch.setattr(torch.ops, "mkldnn", ops)
    with pytest.raises(OneDnnUnavailable, match=op):
        onednn.check(torch.float32)


@pytest.mark.usefixtures("fresh_check")
def test_a_torch_without_onednn_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(OneDnnUnavailable, match="built without it"):
        onednn.check(torch.float32)


@pytest.mark.usefixtures("fresh_check")
def test_a_check_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []

    def deviation(dtype: torch.dtype) -> float:
        calls.append(dtype)
        return 1.0

    monkeypatch.setattr(onednn, "_deviation", deviation)
    for _ in range(2):
        with pytest.raises(OneDnnUnavailable, match="at most 2e-05 is allowed"):
            onednn.check(torch.float32)
    assert calls == [torch.float32]
