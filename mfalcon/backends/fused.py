"""The fused CPU kernel (`kernels.cpu`) as a backend of a stack."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.cpu.library import Kernel
from kernels.cpu.stack import FusedStack
from mfalcon.backends.base import SequentialBackend
from mfalcon.backends.weights import layer_weights, stack_config
from mfalcon.kvcache.state import PAGE_TOKENS, KVShape, KVState
from mfalcon.models.layer import Stack

_FLOPS_OF_A_CORE = 75_000_000
"""Below twice this a second core made an encoding slower (docs/LOG.md)."""


class FusedLayout:
    """Pages in the order that a compiled kernel reads; see kernels/cpu/src/abi.h."""

    def __init__(self, stack: FusedStack, shape: KVShape) -> None:
        self.shape = shape
        self.page_tokens = stack.page_tokens
        self.page_bytes = stack.page_bytes
        self._stack = stack

    def read(self, pages: Sequence[Tensor], layer: int, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `Layout`."""
        return self._stack.read(_addresses(pages), layer, first, stop)

    def write(self, pages: Sequence[Tensor], layer: int, first: int, k: Tensor, v: Tensor) -> None:
        """See `Layout`."""
        self._stack.write(_addresses(pages), layer, first, k.float().contiguous(), v.float().contiguous())


class FusedBackend(SequentialBackend):
    """All layers of a phase as one call of compiled code."""

    def __init__(self, kernel: Kernel, stack: Stack, shape: KVShape, *, int8: bool = False) -> None:
        self.name = kernel.policy.name
        self._stack = FusedStack(kernel, stack_config(stack), layer_weights(stack), PAGE_TOKENS, int8)
        self.layout = FusedLayout(self._stack, shape)

    def encode_one(self, state: KVState, x: Tensor) -> None:
        """See `SequentialBackend`."""
        before = state.num_tokens - len(x)
        threads = min(torch.get_num_threads(), _cores_worth(self._stack, before, len(x)))
        self._stack.extend(state.addresses, before, x.float(), threads)

    def hidden_one(self, state: KVState, x: Tensor, time_ms: int, microbatch: int) -> Tensor:
        """See `SequentialBackend`."""
        threads = torch.get_num_threads()
        return self._stack.score(state.addresses, state.num_tokens, x.float(), time_ms, threads, microbatch)


def _cores_worth(stack: FusedStack, num_tokens: int, num_new: int) -> int:
    """Cores that encoding is worth: each waits at three barriers a layer."""
    config = stack.config
    columns = config.num_heads * (config.qk_dim + config.v_dim)
    keys = num_tokens + num_new // 2
    per_token = 2 * config.dim * (2 * columns + config.num_heads * config.v_dim) + 2 * columns * keys
    return max(1, stack.num_layers * num_new * per_token // _FLOPS_OF_A_CORE)


def _addresses(pages: Sequence[Tensor]) -> Tensor:
    return torch.tensor([page.data_ptr() for page in pages], dtype=torch.int64)
