"""The split form of `din_split.py` with the fused CPU kernel's matrix product where a product has fixed weights.

Activations and the cross layers' multiplication are done as a product's sums leave its registers. The first product of
the activation unit has weights of the request's own, and stays torch's.
"""

import torch
from torch import Tensor

from kernels.cpu.library import Kernel
from kernels.cpu.linear import FusedLinear
from mfalcon.models.din_network import DinNetwork, StackedLinear
from mfalcon.models.din_split import DinSplit, UserSide, _Buffers


class DinFused(DinSplit):
    """The same weights, packed for a kernel of float32. Rows of experts and tasks stand side by side."""

    def __init__(self, network: DinNetwork, kernel: Kernel) -> None:
        super().__init__(network)
        first, *deeper = network.crosses
        down = first.down.weight[:, network.user_dim :]
        self._downs = [FusedLinear(kernel, weight) for weight in (down, *(layer.down.weight for layer in deeper))]
        self._ups = [FusedLinear(kernel, layer.up.weight, layer.up.bias) for layer in network.crosses]
        self._unit = [FusedLinear(kernel, weight.t(), bias) for weight, bias in self._hidden]
        self._unit_last = FusedLinear(kernel, self._last.t(), self._last_bias)
        mixture, towers = network.mixture, network.towers
        self._gate = FusedLinear(kernel, mixture.gate.weight, mixture.gate.bias)
        self._first = FusedLinear(kernel, mixture.first.weight, mixture.first.bias)
        self._experts = [_apart(kernel, layer) for layer in mixture.deeper if isinstance(layer, StackedLinear)]
        self._towers = [_apart(kernel, layer) for layer in (towers.first, towers.last)]

    def _crossed(self, side: UserSide, x0: Tensor, buffers: _Buffers) -> Tensor:
        out, before = buffers.crossed[: len(x0)], x0
        low = self._downs[0](x0[:, self._network.user_dim :], bias=side.crossed)
        for index, up in enumerate(self._ups):
            if index:
                low = self._downs[index](before, low)
            before = up(low, out, factor=x0, before=before)
        return before

    def _deeper(self, x: Tensor, buffers: _Buffers) -> Tensor:
        for layer, buffer in zip(self._unit, buffers.hidden[1:], strict=True):
            x = layer(x, buffer[: len(x) * layer.columns].view(len(x), layer.columns), relu=True)
        return self._unit_last(x)

    def _top(self, x: Tensor, experts: Tensor) -> Tensor:
        num_tasks, num_experts = self._network.mixture.num_tasks, self._network.mixture.num_experts
        shares = self._gate(x).view(len(x), num_tasks, num_experts).softmax(-1)
        wide = self._first(x, experts, relu=True)
        for layers in self._experts:
            wide = _side_by_side(layers, wide, relu=True)
        mixed = torch.bmm(shares, wide.view(len(x), num_experts, -1)).view(len(x), -1)
        first, last = self._towers
        return _side_by_side(last, _side_by_side(first, mixed, relu=True), relu=False)


def _apart(kernel: Kernel, layer: StackedLinear) -> list[FusedLinear]:
    return [FusedLinear(kernel, weight.t(), bias[0]) for weight, bias in zip(layer.weight, layer.bias, strict=True)]


def _side_by_side(layers: list[FusedLinear], x: Tensor, *, relu: bool) -> Tensor:
    """Each layer on its own columns: [n, num * width_in] -> [n, num * width_out]."""
    wide, narrow = layers[0].depth, layers[0].columns
    out = x.new_empty(len(x), len(layers) * narrow)
    for index, layer in enumerate(layers):
        columns = out[:, index * narrow : (index + 1) * narrow]
        layer(x[:, index * wide : (index + 1) * wide], columns, relu=relu)
    return out
