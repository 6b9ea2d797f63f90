"""A stack of layers in Triton kernels: prefill and append, and score, of many users in one go, over pages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.gpu.attention import prefix_attention_parts, target_attention_parts
from kernels.gpu.kv_write import kv_write
from kernels.gpu.linear import linear
from kernels.gpu.norms import layer_norm, norm_gate
from kernels.gpu.rotary import rotate, speeds
from kernels.gpu.target_bias import target_bias
from kernels.paged import Batch, PagedKV
from kernels.stack import LayerWeights, StackConfig


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's weights. value_key: the rows of uvqk that make V and K, and their bias; for the last layer alone."""

    weights: LayerWeights
    value_key: tuple[Tensor, Tensor | None]
    own_bias: Tensor | None


class GpuStack:
    """The weights of a stack, ready for the kernels; it never changes. Everything is in the dtype of the weights."""

    def __init__(self, config: StackConfig, layers: Sequence[LayerWeights], *, plain: bool = False) -> None:
        """plain: whether attention is the plain kernels' on Hopper too."""
        self.config, self._plain = config, plain
        self.num_layers = len(layers)
        v_width, qk_width = config.num_heads * config.v_dim, config.num_heads * config.qk_dim
        self._widths = (v_width, v_width, qk_width, qk_width)
        base = config.rotary_base
        self._speeds = None if base is None else speeds(config.qk_dim, base, layers[0].uvqk.device)
        self._layers = [_Layer(w, self._value_key(w), None if w.bias is None else w.bias.own()) for w in layers]

    def extend(
        self,
        x: Tensor,
        kv: Sequence[PagedKV],
        batch: Batch,
        arrived: Callable[[int], None],
        times: Tensor | None = None,
    ) -> None:
        """Write the keys and values of every user's newest tokens x [num_rows, dim] to their pages.

        kv: of each layer. arrived: called with a layer before its pages are touched; returns when they may be. times:
        int64 [num_rows] of the tokens, None if they stand on the pages already.
        """
        config = self.config
        for index, (layer, pages) in enumerate(zip(self._layers, kv, strict=True)):
            weights = layer.weights
            normed = self._norm(x, weights.norm_in)
            if index == self.num_layers - 1:
                v, k = self._last(normed, layer)
                self._rotate(batch, k, of_targets=False)
                arrived(index)
                kv_write(k, v, pages, batch, times)
                return
            u, v, q, k = self._project(normed, weights)
            self._rotate(batch, q, k, of_targets=False)
            arrived(index)
            kv_write(k, v, pages, batch, times)
            times = None  # one layer has written them for all
            parts = prefix_attention_parts(
                q,
                pages,
                batch,
                weights.bias,
                logit_scale=config.logit_scale,
                norm=config.attention_norm,
                reach=weights.reach,
                softmax=config.softmax,
                plain=self._plain,
            )
            x = self._output(parts, u, x, weights)

    def score(
        self, x: Tensor, kv: Sequence[PagedKV], batch: Batch, times_ms: Tensor, arrived: Callable[[int], None]
    ) -> Tensor:
        """Targets x [num_rows, dim] after all layers. times_ms: int64 [num_users], of each one's request. Rest as for
        `extend`.
        """
        config = self.config
        for index, (layer, pages) in enumerate(zip(self._layers, kv, strict=True)):
            weights = layer.weights
            u, v, q, k = self._project(self._norm(x, weights.norm_in), weights)
            self._rotate(batch, q, k, of_targets=True)
            arrived(index)
            bias = None if weights.bias is None else target_bias(pages, batch, times_ms, weights.bias)
            parts = target_attention_parts(
                q,
                k,
                v,
                pages,
                batch,
                bias,
                layer.own_bias,
                logit_scale=config.logit_scale,
                norm=config.attention_norm,
                reach=weights.reach,
                softmax=config.softmax,
                plain=self._plain,
            )
            x = self._output(parts, u, x, weights)
        return x

    def workspace_bytes(self, num_rows: int, splits: int = 1) -> int:
        """Of the activations that are alive at once: rows that come and go, u, v, q and k of them, the parts of
        attention, and what is gated.
        """
        itemsize, (width, *_) = self._layers[0].weights.uvqk.itemsize, self._widths
        gated = 3 * width if self.config.concat else width
        numbers = 2 * self.config.dim + sum(self._widths) + gated
        return num_rows * (numbers * itemsize + splits * width * max(4, itemsize))

    def _norm(self, x: Tensor, norm: tuple[Tensor, Tensor] | None) -> Tensor:
        weight, bias = norm or (None, None)
        return layer_norm(x, weight, bias, self.config.norm_eps)

    def _project(self, normed: Tensor, weights: LayerWeights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u [num_rows, width]; v, q, k [num_rows, num_heads, head_dim], views."""
        num_silu = sum(self._widths) if self.config.activate_all else self._widths[0]
        out = linear(normed, weights.uvqk, weights.uvqk_bias, num_silu=num_silu)
        u, v, q, k = out.split(self._widths, 1)
        return u, self._heads(v), self._heads(q), self._heads(k)

    def _rotate(self, batch: Batch, *heads: Tensor, of_targets: bool) -> None:
        """Turn queries or keys [num_rows, num_heads, qk_dim], in place."""
        if self._speeds is not None:
            for x in heads:
                rotate(x, batch, self._speeds, of_targets=of_targets)

    def _last(self, normed: Tensor, layer: _Layer) -> tuple[Tensor, Tensor]:
        """Only V and K [num_rows, num_heads, head_dim]: all that targets need of a prefix."""
        weight, bias = layer.value_key
        out = linear(normed, weight, bias, num_silu=len(weight) if self.config.activate_all else 0)
        v, k = out.split([self._widths[1], self._widths[3]], 1)
        return self._heads(v), self._heads(k)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.config.num_heads, -1)

    def _output(self, parts: Tensor, u: Tensor, x: Tensor, weights: LayerWeights) -> Tensor:
        weight, bias = weights.norm_out or (None, None)
        gated = norm_gate(parts.flatten(2), u, weight, bias, self.config.norm_eps, concat=self.config.concat)
        return linear(gated, weights.output, weights.output_bias, residual=x)

    def _value_key(self, weights: LayerWeights) -> tuple[Tensor, Tensor | None]:
        def rows(whole: Tensor) -> Tensor:
            _, v, _, k = whole.split(self._widths)
            return torch.cat([v, k])

        return rows(weights.uvqk), None if weights.uvqk_bias is None else rows(weights.uvqk_bias)
