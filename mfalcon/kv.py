"""KV state: the keys and values of one prefix in all layers. Immutable to everybody who holds one.

Appending to the newest state of a buffer writes behind it in the same memory (O(delta)), appending to an older one
copies. Either way no state that somebody holds ever changes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_CAPACITY_STEP = 32
"""Tokens by which a buffer grows: one copy per so many appended tokens."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """What a state of a model needs per token."""

    num_layers: int
    num_heads: int
    qk_dim: int
    v_dim: int
    dtype: torch.dtype
    device: torch.device

    def bytes_per_token(self) -> int:
        """K and V of all layers, and the token's time."""
        return self.num_layers * self.num_heads * (self.qk_dim + self.v_dim) * self.dtype.itemsize + 8


class KVBuffer:
    """Memory of one or more states of the same lineage; tokens up to `filled` belong to some state.

    k: per layer [num_heads, capacity, qk_dim]. v: per layer [num_heads, capacity, v_dim]. times: int64 [capacity].
    """

    __slots__ = ("capacity", "filled", "k", "shape", "times", "v")

    shape: KVShape
    capacity: int
    filled: int
    k: list[Tensor]
    v: list[Tensor]
    times: Tensor

    def __init__(self, shape: KVShape, num_tokens: int) -> None:
        self.shape = shape
        self.capacity = -(-num_tokens // _CAPACITY_STEP) * _CAPACITY_STEP
        self.filled = 0
        self.k = self._allocate(shape.qk_dim)
        self.v = self._allocate(shape.v_dim)
        self.times = torch.empty(self.capacity, dtype=torch.int64, device=shape.device)

    def _allocate(self, head_dim: int) -> list[Tensor]:
        shape, size = self.shape, (self.shape.num_heads, self.capacity, head_dim)
        return [torch.empty(size, dtype=shape.dtype, device=shape.device) for _ in range(shape.num_layers)]


@dataclass(frozen=True, slots=True, eq=False)
class KVState:
    """The first `num_tokens` tokens of a buffer."""

    buffer: KVBuffer
    num_tokens: int

    @property
    def num_bytes(self) -> int:
        """Memory that the state keeps alive, spare capacity included."""
        return self.buffer.capacity * self.buffer.shape.bytes_per_token()

    @property
    def times(self) -> Tensor:
        """Event time of every token, int64 [num_tokens], milliseconds."""
        return self.buffer.times[: self.num_tokens]

    def k(self, layer: int) -> Tensor:
        """Keys of a layer: [num_heads, num_tokens, qk_dim]."""
        return self.buffer.k[layer][:, : self.num_tokens]

    def v(self, layer: int) -> Tensor:
        """Values of a layer: [num_heads, num_tokens, v_dim]."""
        return self.buffer.v[layer][:, : self.num_tokens]

    def extend(self, times: Tensor) -> "KVState":
        """A state that is longer by tokens of these times, their keys and values still to be written.

        times: int64 [num_new].
        """
        num_tokens = self.num_tokens + len(times)
        buffer = self.buffer
        if buffer.filled != self.num_tokens or num_tokens > buffer.capacity:
            buffer = KVBuffer(self.buffer.shape, num_tokens)
            for layer in range(buffer.shape.num_layers):
                buffer.k[layer][:, : self.num_tokens] = self.k(layer)
                buffer.v[layer][:, : self.num_tokens] = self.v(layer)
            buffer.times[: self.num_tokens] = self.times
        buffer.times[self.num_tokens : num_tokens] = times
        buffer.filled = num_tokens
        return KVState(buffer, num_tokens)

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Store the newest tokens' keys [num_new, num_heads, qk_dim] and values [num_new, num_heads, v_dim]."""
        start = self.num_tokens - k.shape[0]
        self.buffer.k[layer][:, start : self.num_tokens] = k.transpose(0, 1)
        self.buffer.v[layer][:, start : self.num_tokens] = v.transpose(0, 1)


def empty_state(shape: KVShape) -> KVState:
    """The state of an empty history."""
    return KVState(KVBuffer(shape, 0), 0)
