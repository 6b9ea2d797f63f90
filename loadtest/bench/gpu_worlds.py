"""The stacks of `mfalcon bench score --device`: their sizes, the least work of each phase, and users on real pages.

Needs pydantic beside torch, triton and numpy. Weights and tokens are random; embeddings and heads are left out.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from loadtest.bench.gpu_timing import generator_on, relative_error
from loadtest.bench.peer import DenseAttention
from mfalcon.backends.base import ReferenceBackend, StackBackend
from mfalcon.backends.triton import TritonBackend
from mfalcon.kvcache.state import PAGE_TOKENS, KVPool, KVShape, KVState
from mfalcon.models.config_layers import LayerConfig
from mfalcon.models.layer import Stack

BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 5e-2}
"""|found - expected| / |expected - input| of hidden targets: sums in another order; 8 bits, and the rounding of the
stream that every layer adds to.
"""
REQUEST_TIME_MS = 1_700_000_000_000
_FEW_TARGETS, _SHORT = 16, 257
_STD = 0.25
"""Of tokens: so that what the layers add is not lost in the rounding of what it is added to."""
_SPARE_PAGES = 8


@dataclass(frozen=True, slots=True)
class StackSpec:
    """Layers of one width, head_dim of queries and values alike."""

    name: str
    num_layers: int
    dim: int
    num_heads: int
    head_dim: int
    activation: Literal["uvqk", "u"]
    output: Literal["gated", "concat"]

    @property
    def width(self) -> int:
        """Of all heads."""
        return self.num_heads * self.head_dim

    def layer(self, norm: float) -> LayerConfig:
        """As the model takes it: no relative bias."""
        return LayerConfig(
            dim=self.dim,
            num_heads=self.num_heads,
            qk_dim=self.head_dim,
            v_dim=self.head_dim,
            attention_norm=norm,
            activation=self.activation,
            output=self.output,
            output_bias=self.output == "gated",
        )


DLRM_V3 = StackSpec("dlrm-v3", 5, 512, 4, 128, "u", "concat")
"""Meta's generative-recommenders, DLRM-v3; its kernels' layer is `concat` (tests/test_golden.py)."""
NVIDIA = StackSpec("nvidia", 8, 1024, 4, 256, "uvqk", "gated")
"""The block of NVIDIA's recsys-examples inference benchmark."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Users of a stack with histories of these lengths and m candidates each. cached: tokens of every history that
    have a state already. microbatches: to score in. norm: of attention; one for all lengths, as a model has it, since
    kernels are compiled for it.
    """

    name: str
    spec: StackSpec
    lens: tuple[int, ...]
    m: int
    cached: tuple[int, ...] = (0,)
    microbatches: tuple[int, ...] = ()
    norm: float = 4_096.0

    @property
    def num_targets(self) -> int:
        """Of all users."""
        return self.m * len(self.lens)


MIXED = tuple(int(n) for n in np.random.default_rng(0).integers(512, 1537, 32))
NVIDIA_CACHED = (0, 512, 1024, 2048, 3072, 3584, 3840, 3968)
SCENARIOS = (
    Scenario("n=6673 m=2048", DLRM_V3, (6673,), 2048),
    Scenario("n=6673 m=512", DLRM_V3, (6673,), 512),
    Scenario("n=6673 m=256", DLRM_V3, (6673,), 256),
    Scenario("32 users n=1024 m=2048", DLRM_V3, (1024,) * 32, 2048, microbatches=(65536, 16384, 4096)),
    *(Scenario(f"{b} of 4096 m=256", NVIDIA, (4096,) * b, 256, cached=NVIDIA_CACHED) for b in (1, 8, 2, 4)),
    Scenario("32 users n=512..1536 m=2048", DLRM_V3, MIXED, 2048, microbatches=(65536, 4096)),
)
TINY = (
    Scenario("tiny mixed", StackSpec("tiny-concat", 1, 16, 2, 16, "u", "concat"), (9, 20), 3, norm=20.0),
    Scenario(
        "tiny appended", StackSpec("tiny-gated", 2, 24, 1, 16, "uvqk", "gated"), (24,), 3, cached=(0, 16), norm=24.0
    ),
)


@dataclass(frozen=True, slots=True)
class Least:
    """Floating-point operations of the products, and bytes: weights, keys and values of every layer once, and the
    rows that come and go.
    """

    flops: int
    num_bytes: int

    def __add__(self, other: "Least") -> "Least":
        return Least(self.flops + other.flops, self.num_bytes + other.num_bytes)


def encode_work(spec: StackSpec, lens: Sequence[int], cached: int, itemsize: int = 2) -> Least:
    """The tokens of every history behind the first `cached`; the last layer makes keys and values alone."""
    d, width, full = spec.dim, spec.width, spec.num_layers - 1
    rows = sum(n - cached for n in lens)
    pairs = sum((n - cached) * cached + (n - cached) * (n - cached + 1) // 2 for n in lens)
    weights = full * _weights(spec) + 2 * d * width
    kv = 2 * width * (rows * spec.num_layers + len(lens) * cached * full)
    flops = full * (2 * rows * _weights(spec) + 4 * width * pairs) + 2 * rows * 2 * d * width
    return Least(flops, itemsize * (weights + kv + rows * d))


def score_work(spec: StackSpec, lens: Sequence[int], m: int, itemsize: int = 2) -> Least:
    """m targets of every user on its cached prefix."""
    rows, pairs = m * len(lens), sum(m * (n + 1) for n in lens)
    numbers = spec.num_layers * (_weights(spec) + 2 * spec.width * sum(lens)) + 2 * rows * spec.dim
    return Least(spec.num_layers * (2 * rows * _weights(spec) + 4 * spec.width * pairs), itemsize * numbers)


def _weights(spec: StackSpec) -> int:
    """Numbers of one layer's two projections."""
    outputs = 3 if spec.output == "concat" else 1
    return spec.dim * 4 * spec.width + outputs * spec.width * spec.dim


class World:
    """Users of a scenario on one pool: their tokens, states and targets."""

    def __init__(
        self, scenario: Scenario, device: torch.device, dtype: torch.dtype, seed: int = 0, *, plain: bool = False
    ) -> None:
        self.scenario, self.device, self.dtype = scenario, device, dtype
        spec, lens = scenario.spec, scenario.lens
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stack = Stack(spec.layer(scenario.norm), spec.num_layers)
        self.stack.to(device, dtype).eval().requires_grad_(False)
        self._shape = KVShape(spec.num_layers, spec.num_heads, spec.head_dim, spec.head_dim, dtype, device)
        self.backend = TritonBackend(self.stack, self._shape, ahead=device.type != "cpu", plain=plain)
        pages = sum(-(-n // PAGE_TOKENS) for n in lens)
        self.pool = KVPool(self.backend.layout, 2 * pages + _SPARE_PAGES)
        generator = generator_on(device, seed)

        def random(rows: int) -> Tensor:
            return (_STD * torch.randn(rows, spec.dim, generator=generator, device=device)).to(dtype)

        self.tokens, self.targets = random(sum(lens)), random(scenario.num_targets)
        self.times_ms = [REQUEST_TIME_MS] * len(lens)
        self.states = [self._times(self.pool.empty(), n) for n in lens]

    def encode(self, cached: int = 0) -> None:
        """What stands behind the first `cached` tokens of every user, which are encoded already."""
        self.backend.encode(self.states, self._behind(cached), [n - cached for n in self.scenario.lens])

    def score(self, microbatch: int) -> Tensor:
        """All targets of all users, [num_targets, dim]."""
        counts = [self.scenario.m] * len(self.states)
        return self.backend.hidden(self.states, self.targets, counts, self.times_ms, microbatch)

    def masked(self) -> Tensor:
        """The same by one forward over [history, candidates] in plain torch, for users of one length."""
        n, m, users = self.scenario.lens[0], self.scenario.m, len(self.states)
        x = torch.cat([self.tokens.view(users, n, -1), self.targets.view(users, m, -1)], 1)
        index = torch.arange(n + m, device=self.device)
        seen = (index[:, None] >= index) & ((index < n) | (index[:, None] == index))
        attend = DenseAttention(seen.to(self.dtype), index, index)
        return self.stack(x, attend)[:, n:].flatten(0, 1)  # type: ignore[no-any-return]

    def masked_gib(self) -> float:
        """Of three score matrices of `masked`, which are alive at once."""
        size = self.scenario.lens[0] + self.scenario.m
        num_scores = 3 * len(self.states) * self.scenario.spec.num_heads * size**2
        return num_scores * self.dtype.itemsize / 2**30

    def wrong(self, found: Tensor, expected: Tensor, targets: Tensor) -> float:
        """Error of hidden targets, relative to what the layers have added to them."""
        return relative_error(found - targets.to(found.dtype), expected - targets.to(expected.dtype))

    def expected(self, user: int, num_targets: int) -> Tensor:
        """Hidden targets of one user by the reference ops in float32, on this world's own weights."""
        first, n = sum(self.scenario.lens[:user]), self.scenario.lens[user]
        backend = ReferenceBackend(deepcopy(self.stack).float(), replace(self._shape, dtype=torch.float32))
        state = self._times(KVPool(backend.layout, -(-n // PAGE_TOKENS)).empty(), n)
        tokens = self.tokens[first : first + n].float()
        return _scored(backend, state, tokens, self._targets(user, num_targets).float(), 0)

    def checks(self, num_targets: int) -> Iterator[tuple[str, float]]:
        """What must hold of the first and last user before anything is timed, and by how much it is off."""
        lens, m = self.scenario.lens, min(num_targets, self.scenario.m)
        self.encode()
        alone = []
        for user in sorted({0, len(lens) - 1}):
            targets, state = self._targets(user, m), self.states[user]
            found = self.backend.hidden([state], targets, [m], [REQUEST_TIME_MS], m)
            alone.append(found)
            expected = self.expected(user, m)
            yield f"user {user}: prefill and score = reference in float32", self.wrong(found, expected, targets)
        everybody = self.score(self.scenario.num_targets)
        yield "batch-mates move no score", self.wrong(everybody[:m], alone[0], self._targets(0, m))
        n = lens[0]
        half = -(-n // 2) + 1
        state = self._times(self.pool.empty(), half)
        self.backend.encode([state], self.tokens[:half], [half])
        state = self._times(state, n - half, half)
        self.backend.encode([state], self.tokens[half:n], [n - half])
        found = self.backend.hidden([state], self._targets(0, m), [m], [REQUEST_TIME_MS], m)
        yield "append to a prefill = prefill", self.wrong(found, alone[0], self._targets(0, m))

    def replayed(self, microbatch: int) -> float:
        """How far scoring by recorded graphs is from scoring launch by launch; records them."""
        before = self.score(microbatch)
        self.backend.prepare(self.pool, microbatch)
        return self.wrong(self.score(microbatch), before, self.targets)

    def _targets(self, user: int, num_targets: int) -> Tensor:
        first = user * self.scenario.m
        return self.targets[first : first + num_targets]

    def _behind(self, cached: int) -> Tensor:
        return torch.cat([own[cached:] for own in self.tokens.split(list(self.scenario.lens))])

    def _times(self, state: KVState, num_new: int, first: int = 0) -> KVState:
        times = REQUEST_TIME_MS - 10**9 + torch.arange(first, first + num_new, device=self.device)
        return state.extend(times)


def float32_error(spec: StackSpec, device: torch.device, length: int = _SHORT) -> float:
    """Of the stack in float32 on a short history, where rounding hides nothing."""
    world = World(Scenario("float32", spec, (length,), _FEW_TARGETS, norm=float(length)), device, torch.float32)
    world.encode()
    return world.wrong(world.score(_FEW_TARGETS), world.expected(0, _FEW_TARGETS), world.targets)


def _scored(backend: StackBackend, state: KVState, tokens: Tensor, targets: Tensor, first: int) -> Tensor:
    backend.encode([state], tokens[first:], [len(tokens) - first])
    return backend.hidden([state], targets, [len(targets)], [REQUEST_TIME_MS], len(targets))
