"""A stack of layers by oneDNN's linears: the CPU path where there is no C++ compiler.

Cached K and V are taken as weights of linears, bias and SiLU as the epilogue of the first. That rests on a private op
of torch, so `check` holds it against the reference ops before it is used.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from kernels import reference
from kernels.bias import RelativeBias, time_thresholds
from kernels.stack import LayerWeights, StackConfig

CHECK_BOUND = {torch.float32: 2e-5, torch.bfloat16: 5e-2}
"""Worst deviation from the reference ops, relative to their largest output, at which the op is used."""

_QUERY_BLOCK = 128
"""Rows of a prefill computed at once."""

_FEW_TARGETS = 128
"""Up to so many, all heads are one product: packing K and V head by head would take longer than it saves."""

_KEY_STEP = 256
"""The op takes so many keys or a multiple: it compiles itself for every new size, 1 to 2 ms that a request pays."""

_PACKED_ROWS = 64
"""Rows for which weights are packed; any other number works as well."""

KeysValues = Callable[[int], tuple[Tensor, Tensor]]
"""Of a layer: K [num_heads, n, qk_dim] and V [num_heads, n, v_dim] of a prefix, contiguous."""


class OneDnnUnavailable(RuntimeError):
    """torch has no oneDNN, not the op, not in this dtype, or it computes something else."""


def check(dtype: torch.dtype) -> None:
    """Raises OneDnnUnavailable, with the reason, where a stack of this dtype must not be used."""
    if reason := _objection(dtype):
        raise OneDnnUnavailable(reason)


class OneDnnStack:
    """The weights of a stack, packed once. Safe to use from several threads.

    Tokens are float32, in and out; K, V and the operands of products are in `dtype`.
    """

    def __init__(self, config: StackConfig, layers: Sequence[LayerWeights], dtype: torch.dtype) -> None:
        """Raises ValueError for a dtype other than float32 and bfloat16. Call `check` first."""
        if dtype not in CHECK_BOUND:
            raise ValueError(f"dtype: {dtype}, must be one of {', '.join(map(str, CHECK_BOUND))}")
        self.config = config
        self.dtype = dtype
        with torch.no_grad():
            self._layers = [_Layer(config, layer, dtype) for layer in layers]

    @torch.no_grad()
    def score(self, kv: KeysValues, times: Tensor, x: Tensor, time_ms: int, microbatch: int) -> Tensor:
        """Targets x [num_targets, dim] of one request time through all layers -> [num_targets, dim].

        times: int64 [n], of the prefix. kv is asked once per layer.
        """
        prefixes = [(*kv(index), *layer.biases(times, time_ms)) for index, layer in enumerate(self._layers)]
        out = torch.empty_like(x)
        for start in range(0, len(x), microbatch):
            rows = x[start : start + microbatch]
            for layer, prefix in zip(self._layers, prefixes, strict=True):
                normed = layer.normed(rows)
                k, v = layer.keys_values(normed)
                attended = _target_attention(layer.queries(normed), k, v, *prefix, self.config.attention_norm)
                rows = layer.finish(rows, normed, attended)
            out[start : start + microbatch] = rows
        return out

    @torch.no_grad()
    def extend(
        self,
        kv: KeysValues,
        keep: Callable[[int, Tensor, Tensor], None],
        times: Tensor,
        x: Tensor,
        query_times: Tensor | None = None,
    ) -> None:
        """Prefill and append: x [num_new, dim] are the newest tokens of a prefix with times int64 [n].

        keep(layer, k, v) stores k [num_new, num_heads, qk_dim] and v [num_new, num_heads, v_dim]; from then on
        kv(layer) includes them. query_times: what the new tokens' own bias reads, if not their times
        (golden/README.md, variant research). The last layer computes nothing but k and v.
        """
        if not len(x):
            return
        query_times = times[len(times) - len(x) :] if query_times is None else query_times
        for index, layer in enumerate(self._layers):
            normed = layer.normed(x)
            keep(index, *layer.keys_values(normed))
            if index + 1 < len(self._layers):
                q, norm = layer.queries(normed), self.config.attention_norm
                attended = _prefix_attention(q, *kv(index), times, query_times, layer.bias, norm)
                x = layer.finish(x, normed, attended)


class _Linear:
    """A packed linear, SiLU behind it if asked. In a pass of its own: oneDNN's epilogue is slower on wide inputs."""

    def __init__(self, weight: Tensor, bias: Tensor | None, silu: bool, dtype: torch.dtype) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), _PACKED_ROWS)
        self._bias = None if bias is None else bias.to(dtype).contiguous()
        self._silu = silu

    def __call__(self, x: Tensor) -> Tensor:
        """[m, in] -> [m, out]."""
        out = _pointwise(x, self._weight, self._bias, "none")
        return functional.silu(out, inplace=True) if self._silu else out


class _Layer:
    """One layer. The rows of uvqk are apart, because the last layer of a prefill needs only k and v."""

    def __init__(self, config: StackConfig, layer: LayerWeights, dtype: torch.dtype) -> None:
        v_width, qk_width = config.num_heads * config.v_dim, config.num_heads * config.qk_dim
        u, v, q, k = torch.arange(2 * (v_width + qk_width)).split((v_width, v_width, qk_width, qk_width))

        def projection(rows: Tensor, silu: bool) -> _Linear:
            bias = None if layer.uvqk_bias is None else layer.uvqk_bias[rows]
            return _Linear(layer.uvqk[rows], bias, silu, dtype)

        self.bias = None
        if rab := layer.bias:
            self.bias = RelativeBias(rab.position.float(), rab.time.float(), rab.thresholds)
        self._config = config
        self._dtype = dtype
        self._u = projection(u, True)
        self._q = projection(q, config.activate_all)
        self._kv = projection(torch.cat([k, v]), config.activate_all)
        self._output = _Linear(layer.output, layer.output_bias, False, dtype)
        self._norm_in = layer.norm_in and tuple(t.float() for t in layer.norm_in)
        self._norm_out = layer.norm_out and tuple(t.to(dtype) for t in layer.norm_out)

    def biases(self, times: Tensor, time_ms: int) -> tuple[Tensor | None, Tensor | None]:
        """Of targets on a prefix [num_heads, n] and on themselves [num_heads]."""
        if self.bias is None:
            return None, None
        vector = self.bias.vector(len(times), torch.arange(len(times)), time_ms, times)
        return vector.to(self._dtype), self.bias.own().to(self._dtype)

    def normed(self, x: Tensor) -> Tensor:
        """The input of the projections."""
        return _layer_norm(x, self._norm_in, self._config.norm_eps).to(self._dtype)

    def queries(self, normed: Tensor) -> Tensor:
        """[m, num_heads, qk_dim], scaled."""
        return _heads(self._q(normed).mul_(self._config.logit_scale), self._config.qk_dim)

    def keys_values(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """[m, num_heads, qk_dim] and [m, num_heads, v_dim]."""
        config = self._config
        k, v = self._kv(normed).split((config.num_heads * config.qk_dim, config.num_heads * config.v_dim), dim=-1)
        return _heads(k, config.qk_dim), _heads(v, config.v_dim)

    def finish(self, x: Tensor, normed: Tensor, attended: Tensor) -> Tensor:
        """Normalise, gate, project and add to the residual x."""
        u, attended = self._u(normed), attended.flatten(-2)
        gated = _layer_norm(attended, self._norm_out, self._config.norm_eps).mul_(u)
        if self._config.concat:
            gated = torch.cat([u, attended, gated], dim=-1)
        return x + self._output(gated)


def _layer_norm(x: Tensor, norm: tuple[Tensor, ...] | None, eps: float) -> Tensor:
    weight, bias = norm or (None, None)
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _heads(t: Tensor, head_dim: int) -> Tensor:
    """[m, heads * head_dim] -> [m, heads, head_dim]."""
    return t.view(t.shape[0], -1, head_dim)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """activation(x @ weight^T + bias)."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, activation, [], "")
    return out


def _target_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    prefix_bias: Tensor | None,
    own_bias: Tensor | None,
    norm: float,
) -> Tensor:
    """`kernels.reference.target_attention` of scaled queries."""
    own = (q * k).sum(-1, keepdim=True)  # [m, H, 1]
    if own_bias is not None:
        own += own_bias.unsqueeze(-1)
    out = functional.silu(own, inplace=True) * v
    by_head = q.transpose(0, 1).contiguous()  # [H, m, qk_dim]
    n = prefix_k.shape[1]
    stop = n - n % _KEY_STEP if len(q) > _FEW_TARGETS else 0
    if stop < n:
        bias = q.new_zeros(1) if prefix_bias is None else prefix_bias[:, stop:].unsqueeze(1)
        logits = torch.baddbmm(bias, by_head, prefix_k[:, stop:].transpose(1, 2))  # [H, m, n - stop]
        out += torch.bmm(functional.silu(logits, inplace=True), prefix_v[:, stop:]).transpose(0, 1)
    for head in range(len(by_head) if stop else 0):
        bias_row = None if prefix_bias is None else prefix_bias[head, :stop]
        weights = _pointwise(by_head[head], prefix_k[head, :stop], bias_row, "swish")
        out[:, head] += _pointwise(weights, prefix_v[head, :stop].t(), None, "none")
    return out.div_(norm)


def _prefix_attention(
    q: Tensor, k: Tensor, v: Tensor, times: Tensor, query_times: Tensor, bias: RelativeBias | None, norm: float
) -> Tensor:
    """`kernels.reference.prefix_attention` of scaled queries. query_times: int64 [num_queries]."""
    n, first = k.shape[1], k.shape[1] - len(q)
    positions = torch.arange(n)
    out = q.new_empty(*q.shape[:2], v.shape[2])
    for start in range(first, n, _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, n)
        rows = slice(start - first, stop - first)
        logits = torch.bmm(q[rows].transpose(0, 1), k[:, :stop].transpose(1, 2))  # [H, block, stop]
        if bias is not None:
            logits += bias.matrix(positions[start:stop], positions[:stop], query_times[rows], times[:stop])
        weights = functional.silu(logits, inplace=True).tril_(diagonal=start)
        out[rows] = torch.bmm(weights, v[:, :stop]).transpose(0, 1)
    return out.div_(norm)


@cache
def _objection(dtype: torch.dtype) -> str:
    """Why stacks of this dtype must not be used, or nothing."""
    if not torch.backends.mkldnn.is_available():
        return "oneDNN: this torch is built without it"
    try:
        worst = _deviation(dtype)
    except (AttributeError, RuntimeError) as error:
        return f"oneDNN in {dtype}: {str(error).splitlines()[0]}"
    if worst <= CHECK_BOUND[dtype]:
        return ""
    return f"oneDNN in {dtype}: differs from the reference by {worst:.1e}, at most {CHECK_BOUND[dtype]:.0e} is allowed"


@torch.no_grad()
def _deviation(dtype: torch.dtype) -> float:
    """Worst difference of the op's every use from its reference, relative to the reference's largest output."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).float()

    pairs = []
    for heads, qk_dim, v_dim, n in ((2, 11, 18, 260), (1, 64, 32, 512), (3, 16, 16, 1)):
        times, m = torch.arange(n) * 1000, _FEW_TARGETS + 13
        q, k, v = randn(m, heads, qk_dim), randn(m, heads, qk_dim), randn(m, heads, v_dim)
        prefix_k, prefix_v = randn(heads, n, qk_dim), randn(heads, n, v_dim)
        low_q, low_k, low_v, low_prefix_k, low_prefix_v = (t.to(dtype) for t in (q, k, v, prefix_k, prefix_v))
        new = min(n, m)
        for rab in (None, RelativeBias(randn(heads, 50), randn(heads, 21), time_thresholds(20, 0.7, 1000))):
            vector, own = (None, None) if rab is None else (randn(heads, n), randn(heads))
            low_vector, low_own = (None if t is None else t.to(dtype) for t in (vector, own))
            got = _target_attention(low_q, low_k, low_v, low_prefix_k, low_prefix_v, low_vector, low_own, 9.0)
            wanted = reference.target_attention(q, k, v, prefix_k, prefix_v, vector, own, logit_scale=1.0, norm=9.0)
            pairs.append((got, wanted))
            got = _prefix_attention(low_q[:new], low_prefix_k, low_prefix_v, times, times[n - new :], rab, 9.0)
            wanted = reference.prefix_attention(q[:new], prefix_k, prefix_v, times, rab, logit_scale=1.0, norm=9.0)
            pairs.append((got, wanted))
        x, weight = randn(m, qk_dim), randn(v_dim, qk_dim)
        for offset in (None, randn(v_dim)):
            got = _Linear(weight, offset, False, dtype)(x.to(dtype))
            pairs.append((got, functional.linear(x, weight, offset)))
    worst = torch.stack([(got - wanted).abs().max() / wanted.abs().max() for got, wanted in pairs])
    return float(worst.max())  # NaN if any is
