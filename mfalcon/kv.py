"""KV states: keys and values of one prefix in all layers, on pages of a pool. Immutable to everybody who holds one.

Appending to the newest state of a lineage writes behind it on its last page (O(delta)), appending to an older one
copies that one page. Either way no state that somebody holds ever changes. How a page lies inside is its layout's
business.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mfalcon.state.pages import PageAccounts, PageRun, pinned

PAGE_TOKENS = 128
"""Tokens of a page. A state wastes half a page on average; pages of 64 cost 3 to 5% of a score at 4,096 tokens."""
_ALIGNMENT = 64
_SLAB_PAGES = 32
"""Pages by which a pool without a limit grows."""


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


class Layout(Protocol):
    """How keys and values lie on pages. Every page begins with its tokens' times, int64 [page_tokens]."""

    @property
    def shape(self) -> KVShape:
        """Of the keys and values as `read` gives them."""
        ...

    @property
    def page_tokens(self) -> int:
        """Tokens of a page."""
        ...

    @property
    def page_bytes(self) -> int:
        """Bytes of a page, a multiple of 64."""
        ...

    def read(self, pages: Sequence[Tensor], layer: int, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """K [num_heads, stop - first, qk_dim] and V [num_heads, stop - first, v_dim] of the tokens [first, stop).

        pages: uint8 [page_bytes] each, those of the whole state.
        """
        ...

    def write(self, pages: Sequence[Tensor], layer: int, first: int, k: Tensor, v: Tensor) -> None:
        """The inverse of `read`, for the tokens from `first` on."""
        ...


class PlainLayout:
    """Per layer K [num_heads, page_tokens, qk_dim], then V likewise, in the compute dtype: what torch reads."""

    def __init__(self, shape: KVShape, page_tokens: int = PAGE_TOKENS) -> None:
        self.shape = shape
        self.page_tokens = page_tokens
        per_token = shape.num_heads * shape.dtype.itemsize
        sizes = [page_tokens * per_token * dim for dim in (shape.qk_dim, shape.v_dim)]
        self._k_bytes, self._v_bytes = (_aligned(size) for size in sizes)
        self._first = _aligned(8 * page_tokens)
        self.page_bytes = self._first + shape.num_layers * (self._k_bytes + self._v_bytes)

    def read(self, pages: Sequence[Tensor], layer: int, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `Layout`; a copy of more than one page, a view of one."""
        shape = self.shape
        if first >= stop:
            none = torch.empty(shape.num_heads, 0, 1, dtype=shape.dtype, device=shape.device)
            return none.expand(-1, -1, shape.qk_dim), none.expand(-1, -1, shape.v_dim)
        parts = [(k[:, begin:end], v[:, begin:end]) for (k, v), begin, end in self._parts(pages, layer, first, stop)]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([k for k, _ in parts], 1), torch.cat([v for _, v in parts], 1)

    def write(self, pages: Sequence[Tensor], layer: int, first: int, k: Tensor, v: Tensor) -> None:
        """See `Layout`."""
        at = 0
        for (page_k, page_v), begin, end in self._parts(pages, layer, first, first + k.shape[1]):
            to = at + end - begin
            page_k[:, begin:end], page_v[:, begin:end] = k[:, at:to].detach(), v[:, at:to].detach()
            at = to

    def _parts(
        self, pages: Sequence[Tensor], layer: int, first: int, stop: int
    ) -> list[tuple[tuple[Tensor, Tensor], int, int]]:
        """K and V of each page that has some of the tokens, and which of its rows those are."""
        size = self.page_tokens
        return [
            (self._blocks(pages[index], layer), max(first - index * size, 0), min(stop - index * size, size))
            for index in range(first // size, -(-stop // size))
        ]

    def _blocks(self, page: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        shape, size = self.shape, (self.shape.num_heads, self.page_tokens)
        start = self._first + layer * (self._k_bytes + self._v_bytes)
        k = page.narrow(0, start, size[0] * size[1] * shape.qk_dim * shape.dtype.itemsize)
        v = page.narrow(0, start + self._k_bytes, size[0] * size[1] * shape.v_dim * shape.dtype.itemsize)
        return k.view(shape.dtype).view(*size, shape.qk_dim), v.view(shape.dtype).view(*size, shape.v_dim)


class KVPool:
    """Pages of one layout, allocated at once. num_pages None: as many as it takes, for work offline and for tests."""

    def __init__(self, layout: Layout, num_pages: int | None = None, reserved: int = 0) -> None:
        self.layout = layout
        self.reserved = reserved
        """Pages for work in flight: a state that is brought here ahead of its request leaves them free."""
        self._pages: list[Tensor] = []
        self._addresses: list[int] = []
        more = None
        if num_pages is None:
            more = self._add_slab
        else:
            self._add(num_pages)
        self.accounts = PageAccounts(num_pages or 0, layout.page_tokens, more)

    @property
    def num_bytes(self) -> int:
        """Of all pages. Memory that was never written does not count for the operating system."""
        return self.accounts.num_pages * self.layout.page_bytes

    def empty(self) -> "KVState":
        """The state of an empty history."""
        return KVState(self, self.accounts.empty(), 0)

    def page(self, index: int) -> Tensor:
        """uint8 [page_bytes], a view."""
        return self._pages[index]

    def addresses(self, indices: Sequence[int]) -> Tensor:
        """Of pages, int64 [len(indices)]."""
        return torch.tensor([self._addresses[index] for index in indices], dtype=torch.int64)

    def _add_slab(self) -> int:
        self._add(_SLAB_PAGES)
        return _SLAB_PAGES

    def _add(self, num_pages: int) -> None:
        size, device = self.layout.page_bytes, self.layout.shape.device
        slab = torch.empty(num_pages * size + _ALIGNMENT, dtype=torch.uint8, device=device)
        start = -slab.data_ptr() % _ALIGNMENT
        self._pages += slab[start:][: num_pages * size].split(size)
        self._addresses += range(slab.data_ptr() + start, slab.data_ptr() + start + num_pages * size, size)


@dataclass(frozen=True, slots=True, eq=False)
class KVState:
    """The first `num_tokens` tokens of a run of pages."""

    pool: KVPool
    run: PageRun
    num_tokens: int

    @property
    def num_bytes(self) -> int:
        """Of the pages that the state holds, shared ones included."""
        return len(self.run.pages) * self.pool.layout.page_bytes

    @property
    def pins(self) -> int:
        """How many have it in flight."""
        return self.run.pins

    def pinned(self) -> AbstractContextManager[None]:
        """While in flight: nobody who makes room drops it."""
        return pinned(self.run)

    @property
    def pages(self) -> list[Tensor]:
        """Every page, uint8 [page_bytes] each."""
        return [self.pool.page(index) for index in self.run.pages]

    @property
    def addresses(self) -> Tensor:
        """Of every page, int64 [num_pages]: what a kernel of ours reads."""
        return self.pool.addresses(self.run.pages)

    @property
    def times(self) -> Tensor:
        """Event time of every token, int64 [num_tokens], milliseconds; a copy."""
        size, device = self.pool.layout.page_tokens, self.pool.layout.shape.device
        if not self.num_tokens:
            return torch.empty(0, dtype=torch.int64, device=device)
        return torch.cat([_times(page, size) for page in self.pages])[: self.num_tokens]

    def read(self, layer: int, first: int = 0, stop: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys [num_heads, num, qk_dim] and values [num_heads, num, v_dim] of the tokens [first, stop), all if not
        given.
        """
        return self.pool.layout.read(self.pages, layer, first, self.num_tokens if stop is None else stop)

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Store the newest tokens' keys [num_heads, num_new, qk_dim] and values [num_heads, num_new, v_dim]."""
        self.pool.layout.write(self.pages, layer, self.num_tokens - k.shape[1], k, v)

    def extend(self, times: Tensor, leaving: int = 0) -> "KVState":
        """A state that is longer by tokens of these times, their keys and values still to be written.

        times: int64 [num_new]. leaving: pages that must stay free. Raises Overloaded.
        """
        num_new, size = len(times), self.pool.layout.page_tokens
        if not num_new:
            return self
        growth = self.pool.accounts.grow(self.run, self.num_tokens, num_new, leaving)
        if growth.copy is not None:
            old, new = growth.copy
            self.pool.page(new).copy_(self.pool.page(old))
        longer = KVState(self.pool, growth.run, self.num_tokens + num_new)
        first, stop = self.num_tokens, longer.num_tokens
        for index in range(first // size, -(-stop // size)):
            begin, end = max(first, index * size), min(stop, (index + 1) * size)
            page = _times(self.pool.page(growth.run.pages[index]), size)
            page[begin - index * size : end - index * size] = times[begin - first : end - first]
        return longer


def _times(page: Tensor, page_tokens: int) -> Tensor:
    return page[: 8 * page_tokens].view(torch.int64)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
