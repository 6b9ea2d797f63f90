"""Parity with Meta's two public HSTU layers (golden/README.md): our layer, configured to each, reproduces their
outputs.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kernels.reference import masked_attention
from mfalcon.attention import AttentionForm, PrefixAttention, TargetAttention
from mfalcon.kvcache.state import KVPool, KVShape, KVState, PlainLayout
from mfalcon.masked_attention import FullAttention
from mfalcon.models.config_layers import LayerConfig, RelativeBiasConfig
from mfalcon.models.layer import RelativeBiasWeights, Stack

LAYERS, DIM, HEADS, HEAD_DIM, NORM = 2, 48, 3, 16, 64
RESEARCH_BOUND = 1e-10  # float64 on both sides, sums in another order
V3_BOUND = 1e-6  # Meta's v3 code computes its norms in float32
CPU = torch.device("cpu")

Vectors = dict[str, Tensor]


@pytest.fixture(scope="module")
def golden() -> Vectors:
    return load_file(Path(__file__).parent / "golden" / "meta_hstu.safetensors")


@pytest.fixture(scope="module")
def research(golden: Vectors) -> Stack:
    config = LayerConfig(
        dim=DIM,
        num_heads=HEADS,
        qk_dim=HEAD_DIM,
        v_dim=HEAD_DIM,
        attention_norm=NORM,
        logit_scale=1.0,
        norm_affine=False,
        uvqk_bias=False,
        bias=RelativeBiasConfig(num_positions=NORM, num_time_buckets=128, time_bucket_width=0.301, time_unit_ms=1),
    )
    stack = Stack(config, LAYERS).double().requires_grad_(False)
    for index, layer in enumerate(stack.layers):
        of_layer = f"research.layer{index}."
        weights = {name.removeprefix(of_layer): t for name, t in golden.items() if name.startswith(of_layer)}
        layer.get_parameter("uvqk.weight").copy_(weights["uvqk"].T)
        layer.get_parameter("output.weight").copy_(weights["o_weight"])
        layer.get_parameter("output.bias").copy_(weights["o_bias"])
        rab = layer.get_submodule("bias")
        assert isinstance(rab, RelativeBiasWeights)
        rab.position.copy_(weights["rab_pos_w"][:NORM].flip(0).expand(HEADS, -1))  # by distance d: [(N - 1) - d]
        rab.time.copy_(weights["rab_time_w"].expand(HEADS, -1))
    return stack


@pytest.fixture(scope="module")
def v3(golden: Vectors) -> Stack:
    config = LayerConfig(
        dim=DIM,
        num_heads=HEADS,
        qk_dim=HEAD_DIM,
        v_dim=HEAD_DIM,
        attention_norm=NORM,
        activation="u",
        output="concat",
        output_bias=False,
    )
    stack = Stack(config, LAYERS).double().requires_grad_(False)
    names = {
        "norm_in.weight": "input_norm_weight",
        "norm_in.bias": "input_norm_bias",
        "norm_out.weight": "output_norm_weight",
        "norm_out.bias": "output_norm_bias",
        "uvqk.bias": "uvqk_beta",
    }
    for index, layer in enumerate(stack.layers):
        of_layer = f"v3.layer{index}."
        for ours, theirs in names.items():
            layer.get_parameter(ours).copy_(golden[of_layer + theirs])
        layer.get_parameter("uvqk.weight").copy_(golden[of_layer + "uvqk_weight"].T)
        layer.get_parameter("output.weight").copy_(golden[of_layer + "output_weight"].T)
    return stack


def worst(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    assert float(expected.abs().max()) > 0.1  # or the bound would say nothing
    return float((got - expected).abs().max())


def target_mask(n: int, m: int) -> Tensor:
    mask = torch.ones(n + m, n + m, dtype=torch.bool).tril()
    mask[n:, n:] = torch.eye(m, dtype=torch.bool)
    return mask


def empty(dtype: torch.dtype = torch.float64) -> KVState:
    return KVPool(PlainLayout(KVShape(LAYERS, HEADS, HEAD_DIM, HEAD_DIM, dtype, CPU))).empty()


def test_research_in_one_masked_forward(golden: Vectors, research: Stack) -> None:
    history, candidates = golden["research.history"], golden["research.candidates"]
    n, m = len(history), len(candidates)
    request_time = golden["research.request_time"]
    key_times = torch.cat([golden["research.history_time"], request_time.expand(m)])
    query_times = torch.cat([key_times[1 : n + 1], request_time.expand(m)])
    positions = torch.arange(n + m).clamp(max=n)
    attend = FullAttention(target_mask(n, m), positions, query_times, key_times)
    out = research(torch.cat([history, candidates]), attend)
    assert worst(out[:n], golden["research.history_outputs"]) <= RESEARCH_BOUND
    assert worst(out[n:], golden["research.candidate_outputs"]) <= RESEARCH_BOUND


class ShiftedPrefix:
    """Prefill of the research variant: a row's bias reads the time of the next row, the last one's the request time.

    Its state is good for one request only, which is why it lives in this test and not in `mfalcon.attention`.
    """

    def __init__(self, state: KVState, query_times: Tensor) -> None:
        self._state = state
        self._query_times = query_times

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        self.keep(layer, k, v, form)
        assert form.bias is not None
        n = len(q)
        positions = torch.arange(n)
        bias = form.bias.matrix(positions, positions, self._query_times, self._state.times)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        return masked_attention(q, k, v, mask, bias, logit_scale=form.logit_scale, norm=form.norm)

    def keep(self, layer: int, k: Tensor, v: Tensor, form: AttentionForm) -> None:
        self._state.write(layer, k.transpose(0, 1), v.transpose(0, 1))


@pytest.mark.parametrize("microbatch", [1, 4, 11])
def test_research_by_prefill_and_score(golden: Vectors, research: Stack, microbatch: int) -> None:
    times, request_time = golden["research.history_time"], golden["research.request_time"]
    state = empty().extend(times)
    research.encode(golden["research.history"], ShiftedPrefix(state, torch.cat([times[1:], request_time])))
    attend = TargetAttention(state, int(request_time))
    out = torch.cat([research(chunk, attend) for chunk in golden["research.candidates"].split(microbatch)])
    assert worst(out, golden["research.candidate_outputs"]) <= RESEARCH_BOUND


def test_v3_in_one_masked_forward(golden: Vectors, v3: Stack) -> None:
    history, candidates = golden["v3.history"], golden["v3.candidates"]
    n, m = len(history), len(candidates)
    nothing = torch.zeros(n + m, dtype=torch.int64)
    out = v3(torch.cat([history, candidates]), FullAttention(target_mask(n, m), nothing, nothing, nothing))
    assert worst(out[n:], golden["v3.candidate_outputs"]) <= V3_BOUND


@pytest.mark.parametrize("cuts", [(37,), (1, 37), (20, 21, 37)])
def test_v3_by_prefill_append_and_score(golden: Vectors, v3: Stack, cuts: tuple[int, ...]) -> None:
    history, candidates = golden["v3.history"], golden["v3.candidates"]
    state, start = empty(), 0
    for stop in cuts:
        state = state.extend(torch.zeros(stop - start, dtype=torch.int64))
        v3.encode(history[start:stop], PrefixAttention(state))
        start = stop
    attend = TargetAttention(state, 0)
    out = torch.cat([v3(chunk, attend) for chunk in candidates.split(4)])
    assert worst(out, golden["v3.candidate_outputs"]) <= V3_BOUND
