"""KV states: keys and values of one prefix in all layers, on pages of a pool. Immutable to everybody who holds one.

Appending to the newest state of a lineage writes behind it on its last page (O(delta)), appending to an older one
copies that one page. Either way no state that somebody holds ever changes. How a page lies inside is its layout's
business.

States of few tokens stand on small pages, several of which lie in one page of the pool; one that outgrows them is
copied to whole pages, once. A state's pages may still be on their way from another pool (`Arrival`,
mfalcon/kvcache/copy.py): what reads or writes them waits for the part that it needs.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kernels.paged import to_device
from kernels.quantise import dequantised, quantised
from mfalcon.kvcache.block_pool import BlockPool, PageRun, pinned, small_page_tokens

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
    """How keys and values lie on pages. Every page begins with its tokens' times, int64 [page_tokens].

    Equal layouts read each other's pages, whatever weights made them: models of one layout may share a pool.
    """

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

    @property
    def small(self) -> "Layout | None":
        """Of small pages, which fill a page of this layout exactly; None if it is not cut up."""
        ...

    def read(self, pages: Sequence[Tensor], layer: int, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """K [num_heads, stop - first, qk_dim] and V [num_heads, stop - first, v_dim] of the tokens [first, stop).

        pages: uint8 [page_bytes] each, those of the whole state.
        """
        ...

    def write(self, pages: Sequence[Tensor], layer: int, first: int, k: Tensor, v: Tensor) -> None:
        """The inverse of `read`, for the tokens from `first` on."""
        ...

    def is_finite(self, pages: Sequence[Tensor], layer: int, first: int, stop: int) -> bool:
        """Whether all that `read` would give is finite."""
        ...

    def copy(self, pages: Sequence[Tensor], others: Sequence[Tensor], others_tokens: int, num_tokens: int) -> None:
        """The first num_tokens tokens with their times, as they stand, to pages of `others_tokens` tokens, else alike.
        Bytes of tokens behind them may come along.
        """
        ...


@dataclass(frozen=True)
class PlainLayout:
    """What torch and the kernels on pages read: per layer K [num_heads, page_tokens, qk_dim], then V likewise, in the
    compute dtype.

    codes: int8 or float8_e4m3fn to keep both in 8-bit codes; behind them stand float32 scales [num_heads, page_tokens]
    of K, then of V (`kernels.quantise`). Every block begins at a multiple of 64 bytes.

    transposed: V lies as [num_heads, v_dim, page_tokens], in which form a product in float8 takes it. It has the same
    shape all the same for who sees it through `blocks`.
    """

    shape: KVShape
    page_tokens: int = PAGE_TOKENS
    codes: torch.dtype | None = None
    transposed: bool = False

    @cached_property
    def page_bytes(self) -> int:
        """See `Layout`."""
        start: int = self.layer_bytes(self.shape.num_layers).start
        return start

    @cached_property
    def small(self) -> "PlainLayout | None":
        """See `Layout`."""
        num_tokens = small_page_tokens(self.page_tokens)
        small = None if num_tokens is None else replace(self, page_tokens=num_tokens)
        fits = small is not None and small.page_bytes * (self.page_tokens // small.page_tokens) == self.page_bytes
        return small if fits else None

    def layer_bytes(self, layer: int) -> slice:
        """The bytes of a page that are a layer's; the times are in front of all layers."""
        size = self._offsets[-1]
        start = _aligned(8 * self.page_tokens) + layer * size
        return slice(start, start + size)

    def times(self, slab: Tensor) -> Tensor:
        """Event times on pages, uint8 [..., page_bytes]: a view, int64 [..., page_tokens]."""
        return _times(slab, self.page_tokens)

    def blocks(self, slab: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Views of a layer on pages, uint8 [..., page_bytes]: K and V [..., num_heads, page_tokens, head_dim] in the
        compute dtype or in codes, and of codes their scales [..., num_heads, page_tokens], else None.
        """
        start, shape, size = self.layer_bytes(layer).start, self.shape, (self.shape.num_heads, self.page_tokens)
        k_at, v_at, *scales_at, _ = (start + offset for offset in self._offsets)
        k = _block(slab, k_at, self.codes or shape.dtype, *size, shape.qk_dim)
        if self.transposed:
            v = _block(slab, v_at, self.codes or shape.dtype, shape.num_heads, shape.v_dim, self.page_tokens).mT
        else:
            v = _block(slab, v_at, self.codes or shape.dtype, *size, shape.v_dim)
        if self.codes is None:
            return k, v, None, None
        k_scales, v_scales = (_block(slab, at, torch.float32, *size) for at in scales_at)
        return k, v, k_scales, v_scales

    def read(self, pages: Sequence[Tensor], layer: int, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `Layout`; a copy, but a view of one page without codes."""
        shape = self.shape
        if first >= stop:
            none = torch.empty(shape.num_heads, 0, 1, dtype=shape.dtype, device=shape.device)
            return none.expand(-1, -1, shape.qk_dim), none.expand(-1, -1, shape.v_dim)
        parts = []
        for index, begin, end in _rows_by_page(first, stop, self.page_tokens):
            k, v, k_scales, v_scales = self.blocks(pages[index], layer)
            rows = slice(begin, end)
            parts.append((_numbers(k, k_scales, rows, shape.dtype), _numbers(v, v_scales, rows, shape.dtype)))
        if len(parts) == 1:
            return parts[0]
        return torch.cat([k for k, _ in parts], 1), torch.cat([v for _, v in parts], 1)

    def write(self, pages: Sequence[Tensor], layer: int, first: int, k: Tensor, v: Tensor) -> None:
        """See `Layout`."""
        sources: tuple[Tensor, ...] = (k.detach(), v.detach())
        if self.codes is not None:
            (k_codes, k_scales), (v_codes, v_scales) = (quantised(x, self.codes) for x in sources)
            sources = (k_codes, v_codes, k_scales, v_scales)
        at = 0
        for index, begin, end in _rows_by_page(first, first + k.shape[1], self.page_tokens):
            to = at + end - begin
            blocks = [block for block in self.blocks(pages[index], layer) if block is not None]
            for block, source in zip(blocks, sources, strict=True):
                block[:, begin:end] = source[:, at:to]
            at = to

    def is_finite(self, pages: Sequence[Tensor], layer: int, first: int, stop: int) -> bool:
        """See `Layout`."""
        k, v = self.read(pages, layer, first, stop)
        return bool(torch.isfinite(k).all() & torch.isfinite(v).all())

    def copy(self, pages: Sequence[Tensor], others: Sequence[Tensor], others_tokens: int, num_tokens: int) -> None:
        """See `Layout`."""
        other = replace(self, page_tokens=others_tokens)
        step = min(self.page_tokens, others_tokens)  # a part of a page of either
        for first in range(0, num_tokens, step):
            (old, at), (new, to) = divmod(first, self.page_tokens), divmod(first, others_tokens)
            size = min(step, num_tokens - first)
            other.times(others[new])[to : to + size] = self.times(pages[old])[at : at + size]
            for layer in range(self.shape.num_layers):
                blocks = zip(self.blocks(pages[old], layer), other.blocks(others[new], layer), strict=True)
                for source, target in blocks:
                    if source is not None and target is not None:
                        target[:, to : to + size] = source[:, at : at + size]

    @cached_property
    def _offsets(self) -> tuple[int, ...]:
        """Where the blocks of a layer begin in it, and where it ends."""
        rows = self.shape.num_heads * self.page_tokens
        itemsize = (self.codes or self.shape.dtype).itemsize
        sizes = [rows * dim * itemsize for dim in (self.shape.qk_dim, self.shape.v_dim)]
        sizes += [4 * rows] * 2 if self.codes is not None else []
        return tuple(accumulate(map(_aligned, sizes), initial=0))


class KVPool:
    """Pages of one layout, allocated at once. num_pages None: as many as it takes, for work offline and for tests.

    pinned: page-locked, so that a CUDA device copies from and to it while others compute.
    """

    def __init__(
        self, layout: Layout, num_pages: int | None = None, reserved: int = 0, *, pinned: bool = False
    ) -> None:
        self.layout = layout
        self.reserved = reserved
        """Pages for work in flight: a state that is brought here ahead of its request leaves them free."""
        self.pinned = pinned
        self._fixed: Tensor | None = None
        self._pages: list[Tensor] = []
        self._addresses: list[int] = []
        more = None
        if num_pages is None:
            more = self._add_slab
        else:
            self._fixed = self._add(num_pages)
        small = None if layout.small is None else layout.small.page_tokens
        self.accounts = BlockPool(num_pages or 0, layout.page_tokens, more, small)

    @property
    def num_bytes(self) -> int:
        """Of all pages. Memory that was never written does not count for the operating system."""
        return self.accounts.num_pages * self.layout.page_bytes

    @property
    def num_free_bytes(self) -> int:
        """Of pages and small pages that nobody holds."""
        return self.accounts.num_free_tokens * self.layout.page_bytes // self.layout.page_tokens

    @property
    def has_slab(self) -> bool:
        """Whether the pool is of fixed size."""
        return self._fixed is not None

    @property
    def slab(self) -> Tensor:
        """Every page of a pool of fixed size, uint8 [num_pages, page_bytes]: what kernels index."""
        assert self._fixed is not None, "a pool that grows has no one slab"
        return self._fixed

    def layout_of(self, page_tokens: int) -> Layout:
        """That of pages of so many tokens."""
        small = self.layout.small
        return self.layout if small is None or page_tokens != small.page_tokens else small

    def slab_of(self, page_tokens: int) -> Tensor:
        """The slab as pages of so many tokens: those that a run of this size has the numbers of."""
        return self.slab.view(-1, self.layout_of(page_tokens).page_bytes)

    def empty(self) -> "KVState":
        """The state of an empty history."""
        return KVState(self, self.accounts.empty(), 0)

    def page(self, index: int, page_tokens: int | None = None) -> Tensor:
        """uint8 [page_bytes], a view; page_tokens: if it is not a whole page."""
        parts = self.layout.page_tokens // (page_tokens or self.layout.page_tokens)
        if parts == 1:
            return self._pages[index]
        size = self.layout.page_bytes // parts
        return self._pages[index // parts].narrow(0, index % parts * size, size)

    def pages(self, run: PageRun) -> list[Tensor]:
        """Every page of a run, uint8 [page_bytes] each."""
        return [self.page(index, run.page_tokens) for index in run.pages]

    def addresses(self, run: PageRun) -> Tensor:
        """Of the pages of a run, int64 [num_pages]."""
        parts = self.layout.page_tokens // run.page_tokens
        size = self.layout.page_bytes // parts
        at = [self._addresses[index // parts] + index % parts * size for index in run.pages]
        return torch.tensor(at, dtype=torch.int64)

    def _add_slab(self) -> int:
        self._add(_SLAB_PAGES)
        return _SLAB_PAGES

    def _add(self, num_pages: int) -> Tensor:
        size, device = self.layout.page_bytes, self.layout.shape.device
        memory = torch.empty(num_pages * size + _ALIGNMENT, dtype=torch.uint8, device=device, pin_memory=self.pinned)
        slab = memory[-memory.data_ptr() % _ALIGNMENT :][: num_pages * size].view(num_pages, size)
        self._pages += slab.unbind()
        self._addresses += range(slab.data_ptr(), slab.data_ptr() + num_pages * size, size)
        return slab


class Arrival(Protocol):
    """The copy that brings a state's pages: part 0 their times, part 1 + layer what a layer has on them.

    Parts come in order: who has waited for one has waited for all before it.
    """

    def wait(self, part: int) -> None:
        """Have what the calling thread computes next wait for a part. Raises EngineFailure if it will never come."""
        ...

    @property
    def done(self) -> bool:
        """Whether all parts are there."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class KVState:
    """The first `num_tokens` tokens of a run of pages. arrival: of pages that are still being copied."""

    pool: KVPool
    run: PageRun
    num_tokens: int
    arrival: Arrival | None = None

    @property
    def layout(self) -> Layout:
        """Of its pages, all of one size."""
        return self.pool.layout_of(self.run.page_tokens)

    @property
    def num_bytes(self) -> int:
        """Of the pages that the state holds, shared ones included."""
        return len(self.run.pages) * self.layout.page_bytes

    @property
    def pins(self) -> int:
        """How many have it in flight."""
        return self.run.pins

    def pinned(self) -> AbstractContextManager[None]:
        """While in flight: nobody who makes room drops it."""
        return pinned(self.run)

    def wait(self, layer: int) -> None:
        """Have what the calling thread computes next wait until the times and the layers up to this one are here: for
        kernels that find pages by their index. `read`, `write`, `times`, `extend` and `addresses` wait by themselves.
        """
        self._wait(1 + layer)

    @property
    def arriving(self) -> bool:
        """Whether some of its pages are not here yet."""
        return self.arrival is not None and not self.arrival.done

    @property
    def pages(self) -> list[Tensor]:
        """Every page, uint8 [page_bytes] each; see `wait`."""
        return self.pool.pages(self.run)

    @property
    def addresses(self) -> Tensor:
        """Of every page, int64 [num_pages]: what a kernel of ours reads, once all layers are here."""
        self._wait(self.layout.shape.num_layers)
        return self.pool.addresses(self.run)

    @property
    def times(self) -> Tensor:
        """Event time of every token, int64 [num_tokens], milliseconds; a copy."""
        size = self.run.page_tokens
        if not self.num_tokens:
            return torch.empty(0, dtype=torch.int64, device=self.layout.shape.device)
        self._wait(0)
        return torch.cat([_times(page, size) for page in self.pages])[: self.num_tokens]

    def read(self, layer: int, first: int = 0, stop: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys [num_heads, num, qk_dim] and values [num_heads, num, v_dim] of the tokens [first, stop), all if not
        given.
        """
        self.wait(layer)
        return self.layout.read(self.pages, layer, first, self.num_tokens if stop is None else stop)

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Store the newest tokens' keys [num_heads, num_new, qk_dim] and values [num_heads, num_new, v_dim]."""
        self.wait(layer)
        self.layout.write(self.pages, layer, self.num_tokens - k.shape[1], k, v)

    def is_finite(self, first: int = 0) -> bool:
        """Whether the tokens from `first` on have only finite keys and values; those of the last layer are looked at.

        What is not finite in an earlier layer is not in the last one either: a token attends to itself, and no norm,
        activation or sum makes NaN or infinity finite again.
        """
        layer = self.layout.shape.num_layers - 1
        self.wait(layer)
        return self.layout.is_finite(self.pages, layer, first, self.num_tokens)

    def extend(self, times: Tensor, leaving: int = 0) -> "KVState":
        """A state that is longer by tokens of these times, their keys and values still to be written.

        times: int64 [num_new]. leaving: pages that must stay free. Raises Overloaded.
        """
        longer = self.grown(len(times), leaving)
        longer.write_times(times)
        return longer

    def first(self, num_tokens: int) -> "KVState":
        """The state of the first num_tokens tokens, on pages that it shares with this one. What is appended to it
        leaves this one as it is.
        """
        assert 0 <= num_tokens <= self.num_tokens
        return replace(self, run=self.pool.accounts.first(self.run, num_tokens), num_tokens=num_tokens)

    def write_times(self, times: Tensor) -> None:
        """Store the newest tokens' times, int64 [num_new]; in a pool of fixed size in one go."""
        size, stop = self.run.page_tokens, self.num_tokens
        first = stop - len(times)
        if first == stop:
            return
        self._wait(0)
        index = first // size
        if stop <= (index + 1) * size:
            page = self.pool.page(self.run.pages[index], size)
            _times(page, size)[first - index * size : stop - index * size] = times
        elif self.pool.has_slab:
            tokens = np.arange(first, stop)
            where = np.stack([np.array(self.run.pages)[tokens // size], tokens % size])
            indices, slots = to_device(where, times.device)
            _times(self.pool.slab_of(size), size)[indices, slots] = times
        else:
            for index, begin, end in _rows_by_page(first, stop, size):
                at = index * size - first
                of_page = _times(self.pool.page(self.run.pages[index], size), size)
                of_page[begin:end] = times[at + begin : at + end]

    def grown(self, num_new: int, leaving: int = 0, page_tokens: int | None = None) -> "KVState":
        """A state that is longer by tokens of which nothing is written yet, not even times; see `extend`.

        page_tokens: of its pages, if not what so many tokens need.
        """
        if not num_new:
            return self
        arrival = self.arrival if self.arriving else None
        growth = self.pool.accounts.grow(self.run, self.num_tokens, num_new, leaving, page_tokens)
        if growth.copy is not None:
            self._wait(self.layout.shape.num_layers)
            old, new = growth.copy
            size = self.run.page_tokens
            self.pool.page(new, size).copy_(self.pool.page(old, size))
        if growth.moved:
            self._wait(self.layout.shape.num_layers)
            size, arrival = growth.run.page_tokens, None
            self.layout.copy(self.pages, self.pool.pages(growth.run), size, self.num_tokens)
        return KVState(self.pool, growth.run, self.num_tokens + num_new, arrival)

    def _wait(self, part: int) -> None:
        if self.arrival is not None:
            self.arrival.wait(part)


def by_page_size(states: Sequence[KVState]) -> list[list[int]]:
    """The places of states on whole pages, and of those on small ones: what a kernel takes at once. No empty list; an
    empty state is one of the first.
    """
    sizes = sorted({state.run.page_tokens for state in states if state.run.pages}, reverse=True)
    if len(sizes) < 2:
        return [list(range(len(states)))] if states else []
    of_size: dict[int, list[int]] = {size: [] for size in sizes}
    for index, state in enumerate(states):
        of_size[state.run.page_tokens if state.run.pages else sizes[0]].append(index)
    return list(of_size.values())


def _rows_by_page(first: int, stop: int, size: int) -> list[tuple[int, int, int]]:
    """Each page that has some of the tokens [first, stop), and which of its rows those are: index, begin, end."""
    return [
        (index, max(first - index * size, 0), min(stop - index * size, size))
        for index in range(first // size, -(-stop // size))
    ]


def _times(pages: Tensor, page_tokens: int) -> Tensor:
    return _block(pages, 0, torch.int64, page_tokens)


def _block(pages: Tensor, start: int, dtype: torch.dtype, *size: int) -> Tensor:
    """Numbers that lie on each page, uint8 [..., page_bytes], from a byte on: a view [..., *size]."""
    block = pages.narrow(-1, start, math.prod(size) * dtype.itemsize).view(dtype)
    return block.view(*pages.shape[:-1], *size)


def _numbers(block: Tensor, scales: Tensor | None, rows: slice, dtype: torch.dtype) -> Tensor:
    return dequantised(block[:, rows], None if scales is None else scales[:, rows], dtype)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
