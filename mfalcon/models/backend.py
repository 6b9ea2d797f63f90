"""How a stack of layers is computed when it serves: the contract of a backend, and the reference.

The whole-stack height of the seam (ARCHITECTURE.md): a backend takes the tokens of one user through all layers, as a
prefill, an append or a score. Embedding and heads stay with the model.
"""

from typing import Protocol

import torch
from torch import Tensor

from mfalcon.attention import PrefixAttention, TargetAttention
from mfalcon.kv import KVShape, KVState, Layout, PlainLayout
from mfalcon.models.layer import Stack


class StackBackend(Protocol):
    """One stack's weights, ready to compute. Several threads may use one at a time; each call takes as many threads
    as torch would take in the calling one.
    """

    @property
    def name(self) -> str:
        """As it is reported and asked for (kernels.choice)."""
        ...

    @property
    def layout(self) -> Layout:
        """Of the pages that it reads and writes."""
        ...

    def encode(self, state: KVState, x: Tensor) -> None:
        """Write the keys and values of a state's newest tokens x [num_new, dim], which attend to all before them."""
        ...

    def hidden(self, state: KVState, x: Tensor, time_ms: int, microbatch: int) -> Tensor:
        """Targets x [num_targets, dim] of one request time after all layers, [num_targets, dim].

        microbatch: most targets that pass through the layers at once; no result depends on it.
        """
        ...


class ReferenceBackend:
    """The stack as it is written, op by op in torch; any device and dtype."""

    name = "reference"

    def __init__(self, stack: Stack, shape: KVShape) -> None:
        self._stack = stack
        self.layout = PlainLayout(shape)

    def encode(self, state: KVState, x: Tensor) -> None:
        """See `StackBackend`."""
        self._stack.encode(x, PrefixAttention(state))

    def hidden(self, state: KVState, x: Tensor, time_ms: int, microbatch: int) -> Tensor:
        """See `StackBackend`."""
        attend = TargetAttention(state, time_ms)
        return torch.cat([self._stack(chunk, attend) for chunk in x.split(microbatch)])
