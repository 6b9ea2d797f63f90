"""How a stack of layers is computed when it serves: the contract of a backend, and the reference.

The whole-stack height of the seam (ARCHITECTURE.md): a backend takes the tokens of one or many users through all
layers, as a prefill, an append or a score. Embedding and heads stay with the model.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mfalcon.attention import PrefixAttention, TargetAttention
from mfalcon.kvcache.state import KVPool, KVShape, KVState, Layout, PlainLayout
from mfalcon.models.layer import Stack

DEVICE_MICROBATCH = 4_096
"""Targets that pass through the layers of a device at once: 2 MB of every activation at a width of 256 in 16 bits."""


class StackBackend(Protocol):
    """One stack's weights, ready to compute. Several threads may use one at a time; each call takes as many threads
    as torch would take in the calling one.
    """

    @property
    def name(self) -> str:
        """As it is reported and asked for (mfalcon.backends.choice)."""
        ...

    @property
    def layout(self) -> Layout:
        """Of the pages that it reads and writes."""
        ...

    @property
    def batched(self) -> bool:
        """Whether users are better computed together than one after the other."""
        ...

    def encode(self, states: Sequence[KVState], x: Tensor, num_new: Sequence[int], times: Tensor | None = None) -> None:
        """Write the keys and values of the newest tokens of each state, which attend to all before them.

        x: [sum(num_new), dim], those of one state behind those of the other. times: int64 [sum(num_new)] of states that
        have `grown`, to be written too; None if they stand on the pages already.
        """
        ...

    def hidden(
        self,
        states: Sequence[KVState],
        x: Tensor,
        num_targets: Sequence[int],
        times_ms: Sequence[int],
        microbatch: int,
    ) -> Tensor:
        """Targets x [sum(num_targets), dim] after all layers, each against the state of its user and at its request's
        time; [sum(num_targets), dim].

        microbatch: most targets that pass through the layers at once; no result depends on it.
        """
        ...

    def workspace_bytes(self, microbatch: int) -> int:
        """Memory that a device needs for graphs and for what is computed at once, beside weights and pages."""
        ...

    def prepare(self, pool: KVPool, microbatch: int) -> None:
        """Compile and record what requests on states of this pool will need, so that none of them waits for it."""
        ...


class SequentialBackend(ABC):
    """A backend that computes the users of a batch one after the other; the base of those that do."""

    batched = False

    def encode(self, states: Sequence[KVState], x: Tensor, num_new: Sequence[int], times: Tensor | None = None) -> None:
        """See `StackBackend`."""
        if times is not None:
            for state, new in zip(states, times.split(list(num_new)), strict=True):
                state.write_times(new)
        for state, part in zip(states, x.split(list(num_new)), strict=True):
            self.encode_one(state, part)

    def hidden(
        self,
        states: Sequence[KVState],
        x: Tensor,
        num_targets: Sequence[int],
        times_ms: Sequence[int],
        microbatch: int,
    ) -> Tensor:
        """See `StackBackend`."""
        parts = x.split(list(num_targets))
        users = zip(states, parts, times_ms, strict=True)
        hidden = [self.hidden_one(state, part, time_ms, microbatch) for state, part, time_ms in users]
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden)

    def workspace_bytes(self, microbatch: int) -> int:
        """It is not counted where it is the host's."""
        return 0

    def prepare(self, pool: KVPool, microbatch: int) -> None:  # noqa: B027 (not abstract: most have nothing to do)
        """Nothing is compiled or recorded."""

    @abstractmethod
    def encode_one(self, state: KVState, x: Tensor) -> None:
        """Write the keys and values of a state's newest tokens x [num_new, dim]."""

    @abstractmethod
    def hidden_one(self, state: KVState, x: Tensor, time_ms: int, microbatch: int) -> Tensor:
        """Targets x [num_targets, dim] of one request time after all layers, [num_targets, dim]."""


class ReferenceBackend(SequentialBackend):
    """The stack as it is written, op by op in torch; any device and dtype."""

    name = "reference"

    def __init__(self, stack: Stack, shape: KVShape) -> None:
        self._stack = stack
        self.layout = PlainLayout(shape)

    def encode_one(self, state: KVState, x: Tensor) -> None:
        """See `SequentialBackend`."""
        self._stack.encode(x, PrefixAttention(state))

    def hidden_one(self, state: KVState, x: Tensor, time_ms: int, microbatch: int) -> Tensor:
        """See `SequentialBackend`."""
        attend = TargetAttention(state, time_ms)
        return torch.cat([self._stack(chunk, attend) for chunk in x.split(microbatch)])
