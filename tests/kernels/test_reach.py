"""What a layer sees of a prefix, against its definition in plain numbers: the reference ops, a dense forward under a
mask, and the fused kernel at every boundary of a reach, of pages and of appends.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.bias import RelativeBias
from kernels.cpu.stack import FusedStack
from kernels.reach import Reach, seen
from mfalcon.attention import AttentionForm
from mfalcon.backends.weights import layer_weights, stack_config
from mfalcon.masked_attention import BatchPrefixAttention, BatchTargetAttention, FullAttention
from mfalcon.models.config_layers import LayerConfig, ReachConfig, RelativeBiasConfig, RopeConfig
from mfalcon.models.layer import Stack
from tests.kernels.test_fused import BOUND, INT8_BOUND, NOW, POLICIES, kernel, random_stack
from tests.kernels.test_reference import NORM, SCALE, V_DIM, Tokens, poisoned, random_tokens

REACHES = (Reach(1, 1), Reach(5, 9), Reach(9, 5, 3), Reach(64, 64), Reach(7, 40, 13), Reach(500, 500, 2))
BOUNDARIES = (0, 1, 4, 5, 6, 9, 14, 63, 77)
EXACT = 1e-12
"""float64: sums in another order."""


def by_definition(tokens: Tokens, num_targets: int, reach: Reach) -> Tensor:
    """Attention of a prefix and of targets behind it, number by number: outputs [n + num_targets, H, v_dim]."""
    n = len(tokens.q) - num_targets
    out = torch.zeros(len(tokens.q), *tokens.v.shape[1:], dtype=torch.float64)
    for i in range(len(tokens.q)):
        for j in visible(i, n, reach):
            for head in range(tokens.q.shape[1]):
                logit = SCALE * float(tokens.q[i, head] @ tokens.k[j, head])
                if tokens.bias is not None:
                    logit += one_bias(tokens.bias, head, min(i, n) - min(j, n), int(tokens.times[i] - tokens.times[j]))
                weight = logit / (1 + math.exp(-logit)) / NORM
                out[i, head] += weight * tokens.v[j, head]
    return out


def visible(i: int, n: int, reach: Reach) -> Iterator[int]:
    """The keys that token i sees: a prefix has n tokens, and targets behind it stand at position n."""
    position, back = (n, reach.targets) if i >= n else (i, reach.tokens)
    for j in range(position):
        if position - j <= back or j < reach.first:
            yield j
    yield i


def one_bias(bias: RelativeBias, head: int, distance: int, difference_ms: int) -> float:
    bucket = int((bias.thresholds <= difference_ms).sum())
    return float(bias.position[head, min(distance, bias.position.shape[1] - 1)] + bias.time[head, bucket])


def with_targets(n: int, num_targets: int, with_bias: bool) -> Tokens:
    """All targets are of one time."""
    tokens = random_tokens(n + num_targets, torch.float64, with_bias)
    tokens.times[n:] = NOW
    return tokens


@pytest.mark.parametrize("reach", REACHES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 6, 33])
def test_the_ops_are_their_definition(n: int, reach: Reach) -> None:
    with_bias = n != 6
    tokens = with_targets(n, 3, with_bias)
    expected, form = by_definition(tokens, 3, reach), AttentionForm(SCALE, NORM, tokens.bias, reach)
    positions, is_target = torch.arange(n + 3).clamp(max=n), torch.arange(n + 3) >= n
    mask = torch.ones(n + 3, n + 3, dtype=torch.bool).tril()
    mask[n:, n:] = torch.eye(3, dtype=torch.bool)
    dense = FullAttention(mask, positions, tokens.times, tokens.times, is_target)
    assert_close(dense(0, tokens.q, tokens.k, tokens.v, form), expected)

    k, v, times = poisoned(tokens.k[:n]), poisoned(tokens.v[:n]), tokens.times[:n]
    for cut in {0, n // 2, max(0, n - 1), n}:  # a prefill, and what was appended
        got = reference.prefix_attention(
            tokens.q[cut:n], k, v, times, tokens.bias, logit_scale=SCALE, norm=NORM, reach=reach
        )
        assert_close(got, expected[cut:n])
    prefix = BatchPrefixAttention(times.unsqueeze(0), torch.ones(1, n, dtype=torch.bool))
    assert_close(prefix(0, *batch_of(tokens, slice(n)), form)[0], expected[:n])
    targets = BatchTargetAttention(prefix, torch.full((1, 3), n), torch.full((1, 3), NOW))
    assert_close(targets(0, *batch_of(tokens, slice(n, None)), form)[0], expected[n:])


def batch_of(tokens: Tokens, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    return tokens.q[part].unsqueeze(0), tokens.k[part].unsqueeze(0), tokens.v[part].unsqueeze(0)


def test_a_target_amid_a_history_sees_what_it_would_at_its_end() -> None:
    """Training: each event of a window is a target with so many tokens before it."""
    reach, tokens = Reach(4, 6, 2), with_targets(20, 1, True)
    form = AttentionForm(SCALE, NORM, tokens.bias, reach)
    prefix = BatchPrefixAttention(tokens.times[:20].unsqueeze(0), torch.ones(1, 20, dtype=torch.bool))
    prefix(0, *batch_of(tokens, slice(20)), form)
    for n in (0, 1, 5, 6, 9, 19):
        chosen = torch.tensor([*range(n), 20])
        alone = Tokens(tokens.q[chosen], tokens.k[chosen], tokens.v[chosen], tokens.times[chosen], tokens.bias)
        targets = BatchTargetAttention(prefix, torch.tensor([[n]]), torch.full((1, 1), NOW))
        got = targets(0, *batch_of(tokens, slice(20, None)), form)[0]
        assert_close(got, by_definition(alone, 1, reach)[n:])


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_what_targets_see_is_cut_out(reach: Reach) -> None:
    for n in BOUNDARIES:
        keys = seen(torch.arange(n), reach.of_targets(n), n, 0).tolist()
        assert keys == list(visible(n, n, reach))[:-1]
        assert len(keys) == reach.num_seen(n)


LAYERS = (ReachConfig(tokens=5, targets=9), None, ReachConfig(tokens=70, first=3), ReachConfig(tokens=30, targets=130))
LAYER = LayerConfig(
    dim=20,
    num_heads=2,
    qk_dim=7,
    v_dim=16,
    attention_norm=20.0,
    bias=RelativeBiasConfig(num_positions=90, num_time_buckets=40),
)

FORMS = [
    pytest.param(LAYER, id="pointwise"),
    pytest.param(
        LAYER.model_copy(update={"attention": "softmax", "attention_norm": 1.0, "qk_dim": 8, "rope": RopeConfig()}),
        id="softmax",
    ),
]


def reaching_stack(layer: LayerConfig, seed: int = 3) -> Stack:
    stack = random_stack(layer, len(LAYERS), seed)
    other = Stack(layer, len(LAYERS), LAYERS).requires_grad_(False).double()
    other.load_state_dict(stack.state_dict())
    return other


def dense(stack: Stack, x: Tensor, times: Tensor, targets: Tensor) -> Tensor:
    """The hidden targets of one forward in float64."""
    n, m = len(x), len(targets)
    mask = torch.ones(n + m, n + m, dtype=torch.bool).tril()
    mask[n:, n:] = torch.eye(m, dtype=torch.bool)
    positions, all_times = torch.arange(n + m).clamp(max=n), torch.cat([times, torch.full((m,), NOW)])
    attend = FullAttention(mask, positions, all_times, all_times, torch.arange(n + m) >= n)
    hidden: Tensor = stack(torch.cat([x, targets]).double(), attend)[n:]
    return hidden


def inputs(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * n + m)
    times = 10**12 + torch.randint(0, 10**6, (n,), generator=generator).cumsum(0)
    return torch.randn(n, 20, generator=generator), times, torch.randn(m, 20, generator=generator)


def on_pages(stack: FusedStack, times: Tensor) -> tuple[Tensor, Tensor]:
    """Memory of NaN with the times of a state, and the addresses of its pages."""
    num_pages = -(-max(1, len(times)) // stack.page_tokens)
    memory = torch.empty(num_pages, stack.page_bytes, dtype=torch.uint8).fill_(255)
    for index, of_page in enumerate(times.split(stack.page_tokens)):
        memory.view(torch.int64)[index, : len(of_page)] = of_page
    return memory, memory.data_ptr() + stack.page_bytes * torch.arange(num_pages)


@pytest.mark.parametrize("layer", FORMS)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_fused_kernel_is_the_dense_forward(policy: str, int8: bool, layer: LayerConfig) -> None:
    stack = reaching_stack(layer)
    for n, page_tokens, threads in ((0, 128, 1), (4, 32, 1), (77, 32, 2), (470, 128, 2)):
        x, times, targets = inputs(n, 13)
        fused = FusedStack(kernel(policy), stack_config(stack), layer_weights(stack), page_tokens, int8)
        memory, pages = on_pages(fused, times)
        for start, stop in ((0, n // 2), (n // 2, n // 2 + n // 3), (n // 2 + n // 3, n)):
            fused.extend(pages, start, x[start:stop], threads)
        got, expected = fused.score(pages, n, targets, NOW, threads, 7), dense(stack, x, times, targets)
        bound = INT8_BOUND if int8 else BOUND[fused.kernel.policy.element]
        assert float((got.double() - expected).abs().max() / expected.abs().max()) <= bound
        assert len(memory)


@pytest.mark.parametrize("layer", FORMS)
def test_no_cut_of_a_history_moves_a_bit(layer: LayerConfig) -> None:
    """Law 3 on the fused kernel in float32: a prefill, appends at every boundary of a reach, and token by token."""
    stack, n = reaching_stack(layer), 150
    x, times, targets = inputs(n, 5)
    fused = FusedStack(kernel("portable_f32"), stack_config(stack), layer_weights(stack), 64)
    memory, pages = on_pages(fused, times)
    fused.extend(pages, 0, x, 2)
    whole = fused.score(pages, n, targets, NOW)
    cuts = (4, 5, 6, 9, 10, 64, 70, 71, 73, 130, 131, *range(140, n + 1))
    other, again = on_pages(fused, times)
    start = 0
    for stop in cuts:
        fused.extend(again, start, x[start:stop])
        start = stop
    assert torch.equal(fused.score(again, n, targets, NOW), whole)
    for index in range(len(LAYERS)):
        for one, two in zip(fused.read(pages, index, 0, n), fused.read(again, index, 0, n), strict=True):
            assert torch.equal(one, two)
    assert len(memory) == len(other)


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape and got.shape[-1] == V_DIM
    if got.numel():
        assert float((got - expected).abs().max()) <= EXACT
