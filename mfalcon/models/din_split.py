"""The network of `din_network.py` for many candidates of one user: what is the user's alone is computed once a request.

The first layer of the activation unit is linear in the event, so the candidate joins its weights:
(h, c, h - c, h * c) W^T = h (c * Wp + Wh + Wd)^T + c (Wc - Wd)^T. For a microbatch that is one product of all events
with the weights of all candidates. The user's columns of the first cross layer are multiplied once. Every product is
one large call on contiguous memory, and what a request writes lies in buffers that its microbatches share.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor

from mfalcon.models.din_network import DinNetwork, StackedLinear

MOST_BYTES: Final = 256 << 20
"""Of what a microbatch writes of the activation unit, where more than one candidate passes at once: it grows with
candidates times events times widths, and a checkpoint chooses two of these.
"""
KEPT_BYTES: Final = 32 << 20
"""Most that a thread keeps for its next request: fresh memory costs a page fault for every 4 KB."""
_ALIGNED_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class UserSide:
    """What candidates of one request share. vector: [user_dim]. events: [num_events, dim + 1], the last column is one.
    crossed: [cross_rank], the user's part of the first cross layer.
    """

    vector: Tensor
    events: Tensor
    crossed: Tensor

    @property
    def num_events(self) -> int:
        """Events that were read."""
        return len(self.events)


class DinSplit:
    """The weights of a network as they are read while it serves; they no longer change."""

    def __init__(self, network: DinNetwork) -> None:
        config, dim, user = network.config, network.config.dim, network.user_dim
        self._network = network
        first, *hidden, last = [(linear.weight.detach(), linear.bias.detach()) for linear in network.activation.linears]
        of_event, of_candidate, of_difference, of_product = first[0].split(dim, dim=1)
        self._event = (of_event + of_difference).t().contiguous().unsqueeze(1)  # [dim, 1, first width]
        self._product = of_product.t().contiguous().unsqueeze(1)
        self._candidate, self._bias = (of_candidate - of_difference).t().contiguous(), first[1]
        self._hidden = [(weight.t().contiguous(), bias) for weight, bias in hidden]
        scale = network.activation.scale
        self._last, self._last_bias = (last[0] * scale).t().contiguous(), last[1] * scale
        down = network.crosses[0].down.weight.detach()
        self._down_user, self._down_rest = down[:, :user].t(), down[:, user:].t().contiguous()
        self._width = user + config.num_pools * dim + network.item_dim
        self._kept = _Kept()

    def user_side(self, user: Tensor, events: Tensor) -> UserSide:
        """Once a request: [user_dim] and the events that are seen, [at most num_events, dim]."""
        ones = events.new_ones(len(events), 1)
        return UserSide(user, torch.cat([events, ones], dim=1), user @ self._down_user)

    def raw(self, side: UserSide, items: Tensor, microbatch: int) -> Tensor:
        """Candidates [num_candidates, item_dim] -> raw task outputs [num_candidates, num_tasks].

        microbatch: most candidates that pass through the layers at once, fewer where these would write more than
        `MOST_BYTES`; no output depends on it beyond rounding.
        """
        num, network = len(items), self._network
        size = max(1, min(microbatch, num, MOST_BYTES // self._bytes_each(items, len(side.events))))
        x0, buffers = self._buffers(items, len(side.events), size)
        x0[:, : network.user_dim] = side.vector
        out = [self._part(side, part, x0[: len(part)], buffers) for part in items.split(size)]
        return out[0] if len(out) == 1 else torch.cat(out)

    def _part(self, side: UserSide, items: Tensor, x0: Tensor, buffers: "_Buffers") -> Tensor:
        """One microbatch. x0: [len(items), width], in which the user's part stands."""
        network, size = self._network, len(items)
        user, dim, pools = network.user_dim, network.config.dim, network.config.num_pools
        weights = self._weights(side.events, items[:, :dim], buffers)
        pooled = torch.mm(weights, side.events[:, :dim])
        x0[:, user : user + pools * dim].view(size, pools, dim).copy_(pooled.view(size, pools, dim))
        x0[:, user + pools * dim :] = items
        return self._top(self._crossed(side, x0, buffers), buffers.experts[:size])

    def _crossed(self, side: UserSide, x0: Tensor, buffers: "_Buffers") -> Tensor:
        """The cross layers on [num_candidates, width]."""
        x, up = buffers.crossed[: len(x0)], buffers.up[: len(x0)]
        before, low = x0, torch.addmm(side.crossed, x0[:, self._network.user_dim :], self._down_rest)
        for index, layer in enumerate(self._network.crosses):
            if index:
                torch.mm(before, layer.down.weight.t(), out=low)
            torch.addmm(layer.up.bias, low, layer.up.weight.t(), out=up)
            before = torch.addcmul(before, x0, up, out=x)
        return before

    def _weights(self, events: Tensor, candidates: Tensor, buffers: "_Buffers") -> Tensor:
        """Weights of events by candidate and pool: [num_candidates * num_pools, num_events]."""
        size, num, pools = len(candidates), len(events), self._network.config.num_pools
        first = buffers.of_candidates[:, : size * len(self._bias)]
        joined = first.view(len(first), size, len(self._bias))
        torch.addcmul(self._event, candidates.t().unsqueeze(-1), self._product, out=joined[:-1])
        torch.addmm(self._bias, candidates, self._candidate, out=joined[-1])
        x = torch.mm(events, first, out=buffers.hidden[0][: num * first.shape[1]].view(num, first.shape[1])).relu_()
        last = self._deeper(x.view(num * size, len(self._bias)), buffers)
        return last.view(num, size * pools).t()

    def _deeper(self, x: Tensor, buffers: "_Buffers") -> Tensor:
        """The further layers of the activation unit: [rows, first width] -> [rows, num_pools]."""
        for (weight, bias), buffer in zip(self._hidden, buffers.hidden[1:], strict=True):
            out = buffer[: len(x) * weight.shape[1]].view(len(x), weight.shape[1])
            x = torch.addmm(bias, x, weight, out=out).relu_()
        return torch.addmm(self._last_bias, x, self._last)

    def _top(self, x: Tensor, experts: Tensor) -> Tensor:
        """Experts, gates and towers on [num_candidates, width]."""
        mixture, towers = self._network.mixture, self._network.towers
        shares = torch.addmm(mixture.gate.bias, x, mixture.gate.weight.t())
        shares = shares.view(len(x), mixture.num_tasks, mixture.num_experts).softmax(-1)
        torch.addmm(mixture.first.bias, x, mixture.first.weight.t(), out=experts).relu_()
        wide = experts.view(len(x), mixture.num_experts, -1).transpose(0, 1)
        for layer in mixture.deeper:
            assert isinstance(layer, StackedLinear)
            wide = torch.baddbmm(layer.bias, wide, layer.weight).relu_()
        mixed = torch.bmm(shares, wide.transpose(0, 1)).transpose(0, 1).to(towers.last.weight.dtype)
        hidden = torch.baddbmm(towers.first.bias, mixed, towers.first.weight).relu_()
        return torch.baddbmm(towers.last.bias, hidden, towers.last.weight).squeeze(-1).t()

    def _bytes_each(self, like: Tensor, num_events: int) -> int:
        """What the activation unit writes for a candidate."""
        widths = self._widths
        return like.element_size() * (num_events * sum(widths) + (self._network.config.dim + 1) * widths[0])

    @property
    def _widths(self) -> list[int]:
        """Of the hidden layers of the activation unit."""
        return [linear.out_features for linear in self._network.activation.linears][:-1]

    def _buffers(self, like: Tensor, num_events: int, size: int) -> tuple[Tensor, "_Buffers"]:
        """What a call writes, x0 and the rest, in memory that this thread has from its last one."""
        network, widths = self._network, self._widths
        shapes = [
            (size, self._width),
            (network.config.dim + 1, size * widths[0]),
            (size, self._width),
            (size, self._width),
            (size, network.mixture.first.out_features),
            *((num_events * size * width,) for width in widths),
        ]
        x0, of_candidates, crossed, up, experts, *hidden = self._kept.tensors(like, shapes)
        return x0, _Buffers(of_candidates, hidden, crossed, up, experts)


class _Kept(threading.local):
    """Memory of a thread, which its next request writes again: nothing that is returned lies in it."""

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    def tensors(self, like: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Tensors of these shapes, of another one's type and device, whose values may be anything."""
        step = _ALIGNED_BYTES // like.element_size()
        sizes = [math.prod(shape) for shape in shapes]
        starts = list(accumulate((-(-size // step) * step for size in sizes), initial=0))
        flat = self._flat
        if flat is None or not _fits(flat, like, starts[-1]):
            flat = like.new_empty(starts[-1])
            if flat.nbytes <= KEPT_BYTES:
                self._flat = flat
        return [
            flat[start : start + size].view(shape) for start, size, shape in zip(starts, sizes, shapes, strict=False)
        ]


def _fits(flat: Tensor, like: Tensor, num: int) -> bool:
    """Whether so many numbers like those fit there, and may be written there."""
    is_readable = torch.is_inference_mode_enabled() or not flat.is_inference()
    return len(flat) >= num and flat.dtype == like.dtype and flat.device == like.device and is_readable


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What a microbatch writes, and the next one again. of_candidates: the first layer's weights, joined with each
    candidate, [dim + 1, size * first width]. hidden: activations of the activation unit, flat. crossed, up: [size,
    width]. experts: [size, num_experts * first width].
    """

    of_candidates: Tensor
    hidden: list[Tensor]
    crossed: Tensor
    up: Tensor
    experts: Tensor
