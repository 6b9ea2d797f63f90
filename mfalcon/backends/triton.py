"""The Triton kernels (`kernels.gpu`) as the backend of a stack: many users in one go, over one pool of pages.

A launch takes pages of one size: of a batch, the users on whole pages and those on small ones are two launches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kernels.gpu import splits
from kernels.gpu.graphs import Graph, Limits, Run, shared_memory, smallest, with_work
from kernels.gpu.launch import tile_rows_for
from kernels.gpu.stack import GpuStack
from kernels.paged import Batch, PagedKV, pack, sizes_of, to_device, unpacked
from mfalcon.backends.choice import TRITON, TRITON_PLAIN
from mfalcon.backends.weights import layer_weights, pairs_of, stack_config
from mfalcon.errors import Overloaded
from mfalcon.kvcache.state import PAGE_TOKENS, KVPool, KVShape, KVState, PlainLayout, by_page_size
from mfalcon.models.layer import Stack

_PREFIX, _TARGET = "prefix_attention", "target_attention"
_LEAST_SHAPE = 256
_LEAST_APPEND, _MOST_APPENDED, _APPEND_TILE = 16, 512, 64
"""New tokens of the smallest and of the largest shape of an append, and most rows of a tile there: few of each user are
new.
"""
_MOST_ROWS = 65_536
"""New tokens that pass through the layers at once, unless one user has more: 256 MB of uvqk at a width of 512."""
_SHAPE_USERS = 32
_SHAPE_PAGES = 1_024


@dataclass(slots=True)
class _Sized:
    """What there is for pages of one size of a pool: kv, the pages by layer as the kernels read them, and recorded
    graphs. longest: tokens of the longest prefix on them.
    """

    kv: list[PagedKV]
    num_pages: int
    longest: int
    scores: list[Graph] = field(default_factory=list)
    appends: list[Graph] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some targets of one user."""

    state: KVState
    num_rows: int
    time_ms: int


class TritonBackend:
    """A stack on a device. The pages of one pool are all it reads and writes; one thread may use it at a time."""

    batched = True

    def __init__(
        self,
        stack: Stack,
        shape: KVShape,
        codes: torch.dtype | None = None,
        *,
        ahead: bool | None = None,
        plain: bool = False,
        transposed: bool = False,
    ) -> None:
        """codes: of K and V on the pages, None for the compute dtype. ahead: whether `prepare` compiles, which the
        interpreter does not need; None where it computes on a GPU. plain: whether Hopper has no kernels of its own.
        transposed: whether V is on the pages, in which case Hopper makes products of float8.
        """
        config = stack_config(stack)
        self.name = TRITON_PLAIN if plain else TRITON
        self._stack = GpuStack(config, layer_weights(stack), plain=plain)
        self._dim, self._num_heads = config.dim, config.num_heads
        num_bytes, head_dim = shape.dtype.itemsize, max(config.qk_dim, config.v_dim)
        self._tile_rows = partial(tile_rows_for, num_bytes=num_bytes, head_dim=head_dim)
        self._pairs = pairs_of(stack)
        self._numbers = splits.Numbers(num_bytes, head_dim, shape.device)
        self.layout = PlainLayout(shape, PAGE_TOKENS, codes, transposed)
        self._ahead = shape.device.type == "cuda" if ahead is None else ahead
        self._pool: KVPool | None = None
        self._sizes: dict[int, _Sized] = {}

    def encode(self, states: Sequence[KVState], x: Tensor, num_new: Sequence[int], times: Tensor | None = None) -> None:
        """See `StackBackend`."""
        for of_size, rows in _by_page_size(states, num_new, x.device):
            own_x, own_times = (t if rows is None or t is None else t[rows] for t in (x, times))
            assert own_x is not None
            self._encode_all([states[i] for i in of_size], own_x, [num_new[i] for i in of_size], own_times)

    def _encode_all(
        self, states: Sequence[KVState], x: Tensor, num_new: Sequence[int], times: Tensor | None = None
    ) -> None:
        """Of states on pages of one size."""
        first = 0
        for part in _groups(num_new, _MOST_ROWS):
            stop = first + sum(num_new[part])
            own = None if times is None else times[first:stop]
            self._encode(states[part], x[first:stop], num_new[part], own)
            first = stop

    def hidden(
        self,
        states: Sequence[KVState],
        x: Tensor,
        num_targets: Sequence[int],
        times_ms: Sequence[int],
        microbatch: int,
    ) -> Tensor:
        """See `StackBackend`. A microbatch may hold targets of several users."""
        users = [_Part(*user) for user in zip(states, num_targets, times_ms, strict=True)]
        out = torch.empty_like(x)
        for of_size, rows in _by_page_size(states, num_targets, x.device):
            if rows is None:
                return self._hidden(users, x, microbatch)
            out[rows] = self._hidden([users[i] for i in of_size], x[rows], microbatch)
        return out

    def _hidden(self, users: Sequence[_Part], x: Tensor, microbatch: int) -> Tensor:
        """Of users on pages of one size."""
        out, first = torch.empty_like(x), 0
        for parts in _microbatches(users, microbatch):
            num_rows = sum(part.num_rows for part in parts)
            out[first : first + num_rows] = self._score(x[first : first + num_rows], parts)
            first += num_rows
        return out

    def workspace_bytes(self, microbatch: int) -> int:
        """See `StackBackend`. Of the most rows that are encoded at once, with their embeddings, and of the largest
        graph, whose memory is its own.
        """
        stack, shape, longest = self._stack, self.layout.shape, _SHAPE_PAGES * self.layout.page_tokens
        largest = stack.workspace_bytes(_MOST_ROWS) + 4 * _MOST_ROWS * self._dim * shape.dtype.itemsize
        of_graphs = []
        for num_rows in _halved(microbatch, _LEAST_SHAPE):
            tile_rows = self._tile_rows(num_rows)
            programs = -(-num_rows // tile_rows) * self._num_heads
            most = max(splits.classes(_TARGET, programs, self._seen(_TARGET, longest), tile_rows, self._numbers))
            of_graphs.append(stack.workspace_bytes(num_rows, most))
        return largest + max(of_graphs)

    def prepare(self, pool: KVPool, microbatch: int) -> None:
        """Record a graph for a microbatch of targets, for half of it, and so on, and for appends of few tokens; compile
        what is launched without.
        """
        self._pages_of(pool)
        for sized in self._sizes.values():
            self._record(sized, microbatch)
        if self._ahead:
            self._compile(pool, microbatch)

    def _record(self, sized: _Sized, microbatch: int) -> None:
        kv, stack = sized.kv, self._stack

        # Not by self, which keeps the graphs: weights and pool would wait for the garbage collection of a circle.
        def score(x: Tensor, batch: Batch, times: Tensor) -> Tensor:
            return stack.score(x, kv, batch, times, lambda _: None)

        def append(x: Tensor, batch: Batch, times: Tensor) -> Tensor:
            stack.extend(x, kv, batch, lambda _: None, times)
            return x

        targets, tokens = _halved(microbatch, _LEAST_SHAPE), _halved(_MOST_APPENDED, _LEAST_APPEND)
        shape = self.layout.shape
        rows = torch.zeros(max(*targets, *tokens), self._dim, dtype=shape.dtype, device=shape.device)
        memory = shared_memory(shape.device)

        num_pages, longest = min(_SHAPE_PAGES, sized.num_pages), sized.longest

        def recorded(op: str, run: Run, num_rows: int, tile_rows: int) -> Iterator[Graph]:
            programs = -(-num_rows // tile_rows) * self._num_heads
            for num_users in sorted({1, min(_SHAPE_USERS, num_rows)})[::-1]:  # one has no tiles of others to pass by
                limits = Limits(num_rows, num_users, num_pages)
                num_times = num_users if op == _TARGET else num_rows
                for number in splits.classes(op, programs, self._seen(op, longest), tile_rows, self._numbers)[::-1]:
                    yield Graph(run, limits, tile_rows, number, rows[:num_rows], num_times, memory)

        # The largest first: the others find room in its memory.
        scores = [graph for num in targets for graph in recorded(_TARGET, score, num, self._tile_rows(num))]
        appends = [
            graph for num in tokens for graph in recorded(_PREFIX, append, num, min(_APPEND_TILE, self._tile_rows(num)))
        ]
        sized.scores, sized.appends = scores[::-1], appends[::-1]

    def _compile(self, pool: KVPool, microbatch: int) -> None:
        """Run what is launched outside of graphs, in every class of sizes that has block sizes of its own, as far as
        there are free pages: a predecessor may have the others.
        """
        most = min(_MOST_ROWS, pool.accounts.num_free * self.layout.page_tokens)
        for num_rows in (1 << power for power in range(most.bit_length())):
            for page_tokens in self._sizes:
                try:
                    self._run_once(pool, num_rows, page_tokens, is_scored=num_rows <= microbatch)
                except Overloaded:  # others have taken pages meanwhile
                    return

    def _run_once(self, pool: KVPool, num_rows: int, page_tokens: int, *, is_scored: bool) -> None:
        """An encoding, and a score; the pages are free again when this returns. Several users may be as many rows as
        one, so a state on small pages is of any length here.
        """
        shape = self.layout.shape
        x = torch.zeros(num_rows, self._dim, dtype=shape.dtype, device=shape.device)
        state = pool.empty().grown(num_rows, page_tokens=page_tokens)
        self._launch_append(x, [state], [num_rows], torch.zeros(num_rows, dtype=torch.int64, device=shape.device))
        if is_scored:
            self._launch_score(x, [state], [num_rows], np.zeros(1, dtype=np.int64))

    def _encode(self, states: Sequence[KVState], x: Tensor, num_new: Sequence[int], times: Tensor | None) -> None:
        if not len(x):
            return
        graph = None if times is None else self._graph(_PREFIX, states, num_new)
        if graph is not None and times is not None:
            graph(x, num_new, [state.num_tokens for state in states], _pages(states), times)
        else:
            self._launch_append(x, states, num_new, times)

    def _score(self, x: Tensor, parts: Sequence[_Part]) -> Tensor:
        states, num_rows = [part.state for part in parts], [part.num_rows for part in parts]
        times = np.array([part.time_ms for part in parts], dtype=np.int64)
        graph = self._graph(_TARGET, states, num_rows)
        if graph is not None:
            lens = [state.num_tokens for state in states]
            return graph(x, num_rows, lens, _pages(states), to_device(times, x.device))
        return self._launch_score(x, states, num_rows, times)

    def _launch_append(
        self, x: Tensor, states: Sequence[KVState], num_new: Sequence[int], times: Tensor | None
    ) -> None:
        """An append kernel by kernel."""
        kv = self._sized(states).kv
        self._stack.extend(x, kv, self._batch(_PREFIX, states, num_new, max(num_new)), _arrival(states), times)

    def _launch_score(self, x: Tensor, states: Sequence[KVState], num_rows: Sequence[int], times: np.ndarray) -> Tensor:
        """A score kernel by kernel."""
        kv = self._sized(states).kv
        batch = self._batch(_TARGET, states, num_rows, len(x))
        return self._stack.score(x, kv, batch, to_device(times, x.device), _arrival(states))

    def _graph(self, op: str, states: Sequence[KVState], num_rows: Sequence[int]) -> Graph | None:
        """The smallest recorded shape that holds them, with splits that all have work; none while pages are arriving:
        a replay waits for nothing.
        """
        if states[0].pool is not self._pool or any(state.arriving for state in states):
            return None
        sized = self._sized(states)
        graphs = sized.scores if op == _TARGET else sized.appends
        of_shape = smallest(graphs, sum(num_rows), len(states), sum(len(state.run.pages) for state in states))
        if not of_shape:
            return None
        return with_work(of_shape, self._splits(op, states, num_rows, of_shape[0].tile_rows))

    def _batch(self, op: str, states: Sequence[KVState], num_rows: Sequence[int], most: int) -> Batch:
        """op: the attention that it is for. most: rows that decide on the size of a tile."""
        pages, tile_rows = _pages(states), self._tile_rows(most)
        sizes = sizes_of(num_rows, pages, tile_rows)
        packed = pack(num_rows, [state.num_tokens for state in states], pages, tile_rows, sizes)
        number = self._splits(op, states, num_rows, tile_rows)
        return unpacked(to_device(packed, self.layout.shape.device), sizes, tile_rows, number)

    def _splits(self, op: str, states: Sequence[KVState], num_rows: Sequence[int], tile_rows: int) -> int:
        num_tiles = sum(-(-rows // tile_rows) for rows in num_rows)
        longest = self._seen(op, max(state.num_tokens for state in states))
        return splits.num_splits(op, num_tiles * self._num_heads, longest, tile_rows, self._numbers)

    def _seen(self, op: str, num_tokens: int) -> int:
        """Tokens of a prefix that some layer sees at most."""
        return min(num_tokens, self._pairs.most(of_targets=op == _TARGET) or num_tokens)

    def _sized(self, states: Sequence[KVState]) -> _Sized:
        """What there is for states on pages of one size of one pool."""
        self._pages_of(states[0].pool)
        return self._sizes[next((one.run.page_tokens for one in states if one.run.pages), self.layout.page_tokens)]

    def _pages_of(self, pool: KVPool) -> None:
        """Take the pages of this pool, of every size."""
        if self._pool is pool:
            return
        whole, small = self.layout, self.layout.small
        self._pool, self._sizes = pool, {}
        for layout in [whole] if small is None else [whole, small]:
            slab = pool.slab_of(layout.page_tokens)
            times = layout.times(slab)
            blocks = (layout.blocks(slab, layer) for layer in range(layout.shape.num_layers))
            kv = [PagedKV(k, v, times, k_scales, v_scales) for k, v, k_scales, v_scales in blocks]
            most = min(_SHAPE_PAGES, len(slab)) * layout.page_tokens
            longest = most if layout is whole else min(most, whole.page_tokens)
            self._sizes[layout.page_tokens] = _Sized(kv, len(slab), longest)


def _halved(most: int, least: int) -> list[int]:
    """A size, half of it, and so on, until one is no more than the least."""
    sizes = [most]
    while sizes[-1] > least:
        sizes.append(sizes[-1] // 2)
    return sizes


def _by_page_size(
    states: Sequence[KVState], num_rows: Sequence[int], device: torch.device
) -> Iterator[tuple[list[int], Tensor | None]]:
    """Users on pages of one size, and which rows are theirs, int64; None if there are no others."""
    sizes = by_page_size(states)
    if len(sizes) < 2:
        yield from ((users, None) for users in sizes)
        return
    stops = np.cumsum(num_rows)
    for users in sizes:
        rows = np.concatenate([np.arange(stops[user] - num_rows[user], stops[user]) for user in users])
        yield users, to_device(rows, device)


def _pages(states: Sequence[KVState]) -> list[tuple[int, ...]]:
    return [state.run.pages for state in states]


def _arrival(states: Sequence[KVState]) -> Callable[[int], None]:
    """Waits for a layer of those that are still being copied."""
    arriving = [state for state in states if state.arriving]

    def arrived(layer: int) -> None:
        for state in arriving:
            state.wait(layer)

    return arrived


def _groups(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Cut a sequence into parts whose sizes sum up to `most` at most, or that are one item."""
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > most:
            yield slice(start, index)
            start, total = index, 0
        total += size
    yield slice(start, len(sizes))


def _microbatches(users: Sequence[_Part], size: int) -> Iterator[list[_Part]]:
    """The rows of all users in their order, cut into parts of `size` rows."""
    parts: list[_Part] = []
    room = size
    for user in users:
        left = user.num_rows
        while left:
            taken = min(left, room)
            parts.append(replace(user, num_rows=taken))
            left, room = left - taken, room - taken
            if not room:
                yield parts
                parts, room = [], size
    if parts:
        yield parts
