"""A stack of layers for the fused CPU kernel: weights packed once, KV states in its layout, a call per phase."""

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.bias import RelativeBias
from kernels.fused_library import CCache, CConfig, CLayer, Kernel

_GROWTH = 64
"""Spare tokens of a cache that grows: one copy per so many appended ones."""


@dataclass(frozen=True, slots=True)
class StackConfig:
    """What every layer of a stack shares. activate_all: SiLU on v, q and k, not on u alone.

    concat: output([u, av, u * LN(av)]) instead of output(u * LN(av)).
    """

    num_heads: int
    dim: int
    qk_dim: int
    v_dim: int
    attention_norm: float
    logit_scale: float
    norm_eps: float
    activate_all: bool
    concat: bool


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights of one layer. Absent ones are None; a norm is (weight, bias).

    uvqk: [2 * num_heads * (v_dim + qk_dim), dim], rows u, v, q, k, heads outer.
    output: [dim, num_heads * v_dim], or three times as many columns with concat.
    """

    uvqk: Tensor
    output: Tensor
    uvqk_bias: Tensor | None = None
    output_bias: Tensor | None = None
    norm_in: tuple[Tensor, Tensor] | None = None
    norm_out: tuple[Tensor, Tensor] | None = None
    bias: RelativeBias | None = None


class PackedBuffer:
    """Memory of one or more states of the same lineage; tokens up to `filled` belong to some state.

    k: flat [layers, heads, capacity, padded qk_dim]. v: likewise. times: int64 [capacity].
    """

    __slots__ = ("capacity", "filled", "k", "times", "v")

    def __init__(self, capacity: int, k_size: int, v_size: int, dtype: torch.dtype) -> None:
        self.capacity = capacity
        self.filled = 0
        self.k = torch.empty(k_size * capacity, dtype=dtype)
        self.v = torch.empty(v_size * capacity, dtype=dtype)
        self.times = torch.empty(capacity, dtype=torch.int64)

    @property
    def num_bytes(self) -> int:
        """All of it, spare capacity included."""
        return sum(t.numel() * t.element_size() for t in (self.k, self.v, self.times))


@dataclass(frozen=True, slots=True, eq=False)
class PackedKV:
    """A KV state in a policy's layout: the first `num_tokens` tokens of a buffer. Immutable to who holds one."""

    buffer: PackedBuffer
    num_tokens: int

    @property
    def num_bytes(self) -> int:
        """Memory that the state keeps alive."""
        return self.buffer.num_bytes

    @property
    def times(self) -> Tensor:
        """Event time of every token, int64 [num_tokens], milliseconds."""
        return self.buffer.times[: self.num_tokens]


class FusedStack:
    """The weights of a stack, packed once for one kernel. Safe to use from several threads.

    float32 in and out; K, V and the operands of products are in the kernel's dtype, the residual in float32.
    """

    def __init__(self, kernel: Kernel, config: StackConfig, layers: Sequence[LayerWeights]) -> None:
        """Raises ValueError for weights that do not fit the configuration."""
        self.kernel = kernel
        self.config = config
        self.num_layers = len(layers)
        _require(self.num_layers > 0, "a stack has at least one layer")
        sizes = (config.num_heads, config.dim, config.qk_dim, config.v_dim)
        _require(min(sizes) > 0, f"num_heads, dim, qk_dim, v_dim: {sizes}, all must be positive")
        _require(config.attention_norm > 0, f"attention_norm: {config.attention_norm}, must be positive")
        alive: list[Tensor] = []
        packed = (CLayer * self.num_layers)(*(_layer(config, layer, alive) for layer in layers))
        num_positions, thresholds = _shared_bias(layers)
        alive.append(thresholds)
        shared = CConfig(
            num_layers=self.num_layers,
            num_heads=config.num_heads,
            dim=config.dim,
            qk_dim=config.qk_dim,
            v_dim=config.v_dim,
            num_positions=num_positions,
            num_buckets=len(thresholds),
            activate_all=int(config.activate_all),
            concat=int(config.concat),
            attention_norm=config.attention_norm,
            logit_scale=config.logit_scale,
            norm_eps=config.norm_eps,
        )
        handle = ctypes.c_void_p()
        _done(kernel.stack_new(ctypes.byref(shared), packed, thresholds.data_ptr(), ctypes.byref(handle)))
        self._handle = handle
        weakref.finalize(self, kernel.stack_free, handle)

    def empty(self, capacity: int = 0) -> PackedKV:
        """The state of an empty history, with room for tokens to come."""
        return PackedKV(self._buffer(capacity), 0)

    def extend(
        self, state: PackedKV, x: Tensor, times: Tensor, threads: int = 1, query_times: Tensor | None = None
    ) -> PackedKV:
        """Prefill (of an empty state) and append: tokens x [num_new, dim] at times int64 [num_new].

        The given state stays as it is; the new one shares its memory if it was the newest and there is room.
        query_times: what the new tokens' own bias reads, if not their times (golden/README.md, variant research).
        """
        x, num_new = self._hidden(x), len(x)
        times = _tensor("times", times, torch.int64, (num_new,))
        query_times = times if query_times is None else _tensor("query_times", query_times, torch.int64, (num_new,))
        _require(threads > 0, f"threads: {threads}, must be positive")
        longer = self._longer(state, num_new)
        longer.buffer.times[state.num_tokens : longer.num_tokens] = times
        _done(
            self.kernel.extend(
                self._handle,
                ctypes.byref(_cache(longer.buffer)),
                state.num_tokens,
                query_times.data_ptr(),
                x.data_ptr(),
                num_new,
                threads,
            )
        )
        return longer

    def score(self, state: PackedKV, x: Tensor, time_ms: int, threads: int = 1, microbatch: int = 96) -> Tensor:
        """Targets x [num_targets, dim] of one request time through all layers -> [num_targets, dim].

        microbatch: most targets that a thread takes through the layers at once; no result depends on it.
        """
        x = self._hidden(x)
        _require(threads > 0 and microbatch > 0, f"threads {threads}, microbatch {microbatch}: must be positive")
        out = torch.empty_like(x)
        _done(
            self.kernel.score(
                self._handle,
                ctypes.byref(_cache(state.buffer)),
                state.num_tokens,
                time_ms,
                x.data_ptr(),
                out.data_ptr(),
                len(x),
                microbatch,
                threads,
            )
        )
        return out

    def to_plain(self, state: PackedKV) -> list[tuple[Tensor, Tensor]]:
        """Per layer K [num_heads, num_tokens, qk_dim] and V [num_heads, num_tokens, v_dim], float32."""
        config, n = self.config, state.num_tokens
        layers = []
        for layer in range(self.num_layers):
            k, v = torch.empty(config.num_heads, n, config.qk_dim), torch.empty(config.num_heads, n, config.v_dim)
            cache = ctypes.byref(_cache(state.buffer))
            self.kernel.export_plain(self._handle, cache, layer, k.data_ptr(), v.data_ptr(), n)
            layers.append((k, v))
        return layers

    def from_plain(self, layers: Sequence[tuple[Tensor, Tensor]], times: Tensor, capacity: int = 0) -> PackedKV:
        """The inverse of `to_plain`. times: int64 [num_tokens]."""
        config, n = self.config, len(times)
        _require(len(layers) == self.num_layers, f"{len(layers)} layers of keys and values for {self.num_layers}")
        state = self._longer(self.empty(max(capacity, n)), n)
        state.buffer.times[:n] = _tensor("times", times, torch.int64, (n,))
        cache = ctypes.byref(_cache(state.buffer))
        for layer, (plain_k, plain_v) in enumerate(layers):
            k = _tensor("k", plain_k, torch.float32, (config.num_heads, n, config.qk_dim))
            v = _tensor("v", plain_v, torch.float32, (config.num_heads, n, config.v_dim))
            _done(self.kernel.import_plain(self._handle, cache, layer, k.data_ptr(), v.data_ptr(), n))
        return state

    def _hidden(self, x: Tensor) -> Tensor:
        return _tensor("x", x, torch.float32, (x.shape[0] if x.ndim else 0, self.config.dim))

    def _buffer(self, capacity: int) -> PackedBuffer:
        per_token = self.num_layers * self.config.num_heads
        step, dim_step = self.kernel.capacity_step, self.kernel.dim_step
        k_size, v_size = (-(-dim // dim_step) * dim_step for dim in (self.config.qk_dim, self.config.v_dim))
        capacity = max(1, -(-capacity // step)) * step
        return PackedBuffer(capacity, per_token * k_size, per_token * v_size, self.kernel.dtype)

    def _longer(self, state: PackedKV, num_new: int) -> PackedKV:
        """A state of more tokens, those still to be written."""
        buffer, num_tokens = state.buffer, state.num_tokens + num_new
        if buffer.filled != state.num_tokens or num_tokens > buffer.capacity:
            buffer = self._buffer(num_tokens + _GROWTH if state.num_tokens else num_tokens)
            old, new = ctypes.byref(_cache(state.buffer)), ctypes.byref(_cache(buffer))
            self.kernel.copy(self._handle, old, new, state.num_tokens)
            buffer.times[: state.num_tokens] = state.times
        buffer.filled = num_tokens
        return PackedKV(buffer, num_tokens)


def _layer(config: StackConfig, weights: LayerWeights, alive: list[Tensor]) -> CLayer:
    """Pointers to contiguous float32 copies, which `alive` holds while they are packed."""

    def pointer(name: str, tensor: Tensor | None, *shape: int) -> int | None:
        if tensor is None:
            return None
        _require(tensor.is_floating_point(), f"{name}: {tensor.dtype}, must be floating point")
        alive.append(_tensor(name, tensor.detach().float(), torch.float32, shape))
        return alive[-1].data_ptr()

    heads, dim, v_width = config.num_heads, config.dim, config.num_heads * config.v_dim
    columns = 2 * heads * (config.v_dim + config.qk_dim)
    norm_in, norm_out = weights.norm_in or (None, None), weights.norm_out or (None, None)
    bias = weights.bias
    return CLayer(
        norm_in_weight=pointer("norm_in weight", norm_in[0], dim),
        norm_in_bias=pointer("norm_in bias", norm_in[1], dim),
        uvqk_weight=pointer("uvqk", weights.uvqk, columns, dim),
        uvqk_bias=pointer("uvqk_bias", weights.uvqk_bias, columns),
        norm_out_weight=pointer("norm_out weight", norm_out[0], v_width),
        norm_out_bias=pointer("norm_out bias", norm_out[1], v_width),
        output_weight=pointer("output", weights.output, dim, (3 if config.concat else 1) * v_width),
        output_bias=pointer("output_bias", weights.output_bias, dim),
        position=None if bias is None else pointer("bias.position", bias.position, heads, bias.position.shape[1]),
        time=None if bias is None else pointer("bias.time", bias.time, heads, len(bias.thresholds) + 1),
    )


def _shared_bias(layers: Sequence[LayerWeights]) -> tuple[int, Tensor]:
    """Number of positions (0: no bias) and thresholds, the same in every layer."""
    biases = [layer.bias for layer in layers]
    first = biases[0]
    if first is None:
        _require(all(bias is None for bias in biases), "bias: only some layers have one")
        return 0, torch.zeros(0, dtype=torch.int64)
    for bias in biases:
        same = (
            bias is not None
            and bias.position.shape == first.position.shape
            and torch.equal(bias.thresholds, first.thresholds)
        )
        _require(same, "bias: layers differ in positions or thresholds")
    thresholds = first.thresholds.contiguous()
    _require(bool((thresholds[1:] >= thresholds[:-1]).all()), "bias.thresholds: must ascend")
    return first.position.shape[1], _tensor("bias.thresholds", thresholds, torch.int64, (len(thresholds),))


def _tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A contiguous tensor on the CPU. Raises ValueError for any other shape, dtype or device."""
    _require(tensor.shape == shape, f"{name}: shape {tuple(tensor.shape)}, must be {shape}")
    _require(tensor.dtype == dtype, f"{name}: {tensor.dtype}, must be {dtype}")
    _require(tensor.device.type == "cpu", f"{name}: on {tensor.device}, must be on the CPU")
    return tensor.contiguous()


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _done(result: int) -> None:
    if result:
        raise MemoryError("the fused kernel ran out of memory")


def _cache(buffer: PackedBuffer) -> CCache:
    return CCache(k=buffer.k.data_ptr(), v=buffer.v.data_ptr(), times=buffer.times.data_ptr(), capacity=buffer.capacity)
