"""The fused CPU kernel (`kernels.cpu`) as a backend of a stack."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from kernels.cpu.library import Kernel
from kernels.cpu.stack import FusedStack
from kernels.stack import LayerWeights, StackConfig
from mfalcon.backends.base import SequentialBackend
from mfalcon.backends.weights import layer_weights, pairs_of, stack_config
from mfalcon.kvcache.block_pool import small_page_tokens
from mfalcon.kvcache.state import PAGE_TOKENS, KVShape, KVState
from mfalcon.models.layer import Stack
from mfalcon.pairs import Pairs

_FLOPS_OF_A_CORE = 75_000_000
"""Below twice this a second core made an encoding slower (docs/LOG.md)."""


@dataclass(frozen=True)
class FusedLayout:
    """Pages in the order that a compiled kernel reads; see kernels/cpu/src/abi.h. policy: the kernel's.

    No weights are part of it: those of another stack of the same shape lie alike, and then the layouts are equal.
    """

    policy: str
    shape: KVShape
    int8: bool
    kernel: Kernel = field(compare=False, repr=False)
    page_tokens: int = PAGE_TOKENS

    @property
    def page_bytes(self) -> int:
        """See `Layout`."""
        return self._pages.page_bytes

    @cached_property
    def small(self) -> "FusedLayout | None":
        """See `Layout`."""
        num_tokens = small_page_tokens(self.page_tokens)
        return None if num_tokens is None else replace(self, page_tokens=num_tokens)

    def read(self, pages: Sequence[Tensor], layer: int, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `Layout`."""
        return self._pages.read(_addresses(pages), layer, first, stop)

    def is_finite(self, pages: Sequence[Tensor], layer: int, first: int, stop: int) -> bool:
        """See `Layout`."""
        return self._pages.is_finite(_addresses(pages), layer, first, stop)

    def write(self, pages: Sequence[Tensor], layer: int, first: int, k: Tensor, v: Tensor) -> None:
        """See `Layout`."""
        self._pages.write(_addresses(pages), layer, first, k.float().contiguous(), v.float().contiguous())

    def copy(self, pages: Sequence[Tensor], others: Sequence[Tensor], others_tokens: int, num_tokens: int) -> None:
        """See `Layout`."""
        other = self._pages.on_pages(others_tokens)
        self._pages.copy(_addresses(pages), other, _addresses(others), num_tokens)

    @cached_property
    def _pages(self) -> FusedStack:
        """Compiled code finds its way on pages by the sizes of a stack: this one is one column wide and of zeros."""
        shape = self.shape
        heads, columns = shape.num_heads, 2 * shape.num_heads * (shape.qk_dim + shape.v_dim)
        sizes = StackConfig(heads, 1, shape.qk_dim, shape.v_dim, 1.0, 1.0, 1e-6, activate_all=False, concat=False)
        layer = LayerWeights(uvqk=torch.zeros(columns, 1), output=torch.zeros(1, heads * shape.v_dim))
        return FusedStack(self.kernel, sizes, [layer] * shape.num_layers, self.page_tokens, self.int8)


class FusedBackend(SequentialBackend):
    """All layers of a phase as one call of compiled code."""

    def __init__(self, kernel: Kernel, stack: Stack, shape: KVShape, *, int8: bool = False) -> None:
        self.name = kernel.policy.name
        whole = FusedStack(kernel, stack_config(stack), layer_weights(stack), PAGE_TOKENS, int8)
        self.layout = FusedLayout(kernel.policy.name, shape, int8, kernel)
        layouts = [self.layout] if self.layout.small is None else [self.layout, self.layout.small]
        self._pairs = pairs_of(stack)
        self._stacks = {of.page_tokens: whole.on_pages(of.page_tokens) for of in layouts}
        assert all(self._stacks[of.page_tokens].page_bytes == of.page_bytes for of in layouts)

    def encode_one(self, state: KVState, x: Tensor) -> None:
        """See `SequentialBackend`."""
        stack, before = self._stacks[state.run.page_tokens], state.num_tokens - len(x)
        threads = min(torch.get_num_threads(), _cores_worth(stack, self._pairs, before, len(x)))
        stack.extend(state.addresses, before, x.float(), threads)

    def hidden_one(self, state: KVState, x: Tensor, time_ms: int, microbatch: int) -> Tensor:
        """See `SequentialBackend`."""
        stack, threads = self._stacks[state.run.page_tokens], torch.get_num_threads()
        return stack.score(state.addresses, state.num_tokens, x.float(), time_ms, threads, microbatch)


def _cores_worth(stack: FusedStack, pairs: Pairs, num_tokens: int, num_new: int) -> int:
    """Cores that encoding is worth: each waits at three barriers a layer."""
    config = stack.config
    columns = config.num_heads * (config.qk_dim + config.v_dim)
    per_token = 2 * config.dim * (2 * columns + config.num_heads * config.v_dim)
    flops = stack.num_layers * (num_new * per_token + 2 * columns * pairs.encoding(num_tokens, num_new))
    return max(1, int(flops) // _FLOPS_OF_A_CORE)


def _addresses(pages: Sequence[Tensor]) -> Tensor:
    return torch.tensor([page.data_ptr() for page in pages], dtype=torch.int64)
