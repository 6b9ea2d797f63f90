"""Users, their rows and a pool of pages for the tests of kernels on pages; whatever nobody may read is poison."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from kernels.bias import RelativeBias, time_thresholds
from kernels.paged import Batch, BatchSizes, PagedKV, pack, sizes_of, unpacked
from kernels.quantise import quantised
from mfalcon.kvcache.state import KVShape, PlainLayout
from tests.device import DEVICE, INTERPRETED, dtypes, rounding

KINDS = [(dtype, None) for dtype in dtypes()] + [
    (dtype, codes)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for codes in (torch.int8, torch.float8_e4m3fn)
]
"""Compute dtypes, and codes on the pages."""
LAYER, NUM_LAYERS = 1, 3
START = 10**12
"""Milliseconds: the earliest event."""


def tolerance(dtype: torch.dtype) -> float:
    """Of attention, relative to its largest sum of magnitudes. float64 and float32: sums of a hundred terms in another
    order. Below: one rounding of the weights and one of the output, and on a device SiLU by a tanh of 11 bits.
    """
    if dtype in (torch.float64, torch.float32):
        return {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    return 2 * rounding(dtype) + (0.0 if INTERPRETED else 2.0**-11)


@dataclass(frozen=True, slots=True)
class Case:
    """users: rows and prefix length of each. num_positions: None without bias. larger: by how much the batch's tensors
    are larger than their content. slab: whether pages are views into a slab as the pool's are. shared: whether a user
    has full pages of the one before it. transposed: of V on the pages.
    """

    users: tuple[tuple[int, int], ...]
    num_heads: int
    qk_dim: int
    v_dim: int
    page_tokens: int
    tile_rows: int
    splits: int
    num_positions: int | None
    num_buckets: int
    larger: int
    slab: bool
    shared: bool
    seed: int
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class World:
    """q, k, v: [num_rows, num_heads, head_dim], views of one wide tensor, rows of nobody at the end. slab: the pool,
    uint8 [num_pages, page_bytes]; kv is made of views into it, or of copies. times_ms: of the requests.
    """

    case: Case
    slab: Tensor
    kv: PagedKV
    pages: tuple[tuple[int, ...], ...]
    batch: Batch
    q: Tensor
    k: Tensor
    v: Tensor
    bias: RelativeBias | None
    times_ms: Tensor

    @property
    def num_rows(self) -> int:
        """Rows that are somebody's."""
        return sum(rows for rows, _ in self.case.users)

    def host(self) -> "World":
        """The same in float64 on the CPU, codes and scales as they are: what the reference is given."""
        q, k, v = (x.cpu().double() for x in (self.q, self.k, self.v))
        bias = None
        if self.bias is not None:
            position, time = (x.cpu().double() for x in (self.bias.position, self.bias.time))
            bias = RelativeBias(position, time, self.bias.thresholds.cpu())
        kv, batch = on_host(self.kv), batch_of(self.case, self.pages, torch.device("cpu"))
        return replace(self, kv=kv, batch=batch, q=q, k=k, v=v, bias=bias, times_ms=self.times_ms.cpu())

    def of(self, user: int) -> tuple[slice, Batch]:
        """A user's rows and a batch of it alone."""
        first = sum(rows for rows, _ in self.case.users[:user])
        rows, prefix_len = self.case.users[user]
        case = replace(self.case, users=((rows, prefix_len),), larger=0)
        return slice(first, first + rows), batch_of(case, (self.pages[user],))


def on_host(kv: PagedKV) -> PagedKV:
    """The same codes and scales on the CPU."""
    return _each(kv, Tensor.cpu)


def _each(kv: PagedKV, change: Callable[[Tensor], Tensor]) -> PagedKV:
    k_scales, v_scales = (None if x is None else change(x) for x in (kv.k_scales, kv.v_scales))
    return PagedKV(change(kv.k), change(kv.v), change(kv.times), k_scales, v_scales)


def layout_of(case: Case, dtype: torch.dtype, codes: torch.dtype | None) -> PlainLayout:
    """How the pool's pages lie."""
    shape = KVShape(NUM_LAYERS, case.num_heads, case.qk_dim, case.v_dim, dtype, torch.device("cpu"))
    return PlainLayout(shape, case.page_tokens, codes, case.transposed)


def views(slab: Tensor, layout: PlainLayout) -> PagedKV:
    """One layer of a pool as the kernels are given it."""
    k, v, k_scales, v_scales = layout.blocks(slab, LAYER)
    return PagedKV(k, v, layout.times(slab), k_scales, v_scales)


def world(case: Case, dtype: torch.dtype, codes: torch.dtype | None = None) -> World:
    """Numbers of a case. All of the pool but the tokens of users is 0xff: NaN in every type but int8."""
    generator = torch.Generator().manual_seed(case.seed)
    pages = _page_tables(case, generator)
    num_pages = 2 * sum(map(len, pages)) + 1
    layout = layout_of(case, dtype, codes)
    slab = torch.full((num_pages, layout.page_bytes), 255, dtype=torch.uint8)
    alive = torch.zeros(num_pages, case.page_tokens, dtype=torch.bool)
    for (_, prefix_len), own in zip(case.users, pages, strict=True):
        for index, page in enumerate(own):
            alive[page, : max(0, prefix_len - index * case.page_tokens)] = True
    k, v, k_scales, v_scales = layout.blocks(slab, LAYER)
    for x, scales in ((k, k_scales), (v, v_scales)):
        numbers = torch.randn(x.shape, generator=generator)
        if codes is None or scales is None:
            _put(x, numbers.to(dtype), alive)
        else:
            coded, of_codes = quantised(numbers, codes)
            _put(x.view(torch.uint8), coded.view(torch.uint8), alive)
            _put(scales, of_codes, alive)
    units = torch.tensor([0, 1, 1000, 10**6])[torch.randint(0, 4, alive.shape, generator=generator)]
    events = START + units * torch.randint(0, 2000, alive.shape, generator=generator)
    _put(layout.times(slab), events, alive)
    slab = slab.to(DEVICE)
    kv = views(slab, layout)
    if not case.slab:
        kv = _each(kv, Tensor.contiguous)
    q, k, v = _rows(case, dtype, generator)
    request = [
        int(events[own[(n - 1) // case.page_tokens], (n - 1) % case.page_tokens]) if n else START
        for (_, n), own in zip(case.users, pages, strict=True)
    ]
    late = (torch.tensor([0, -1, 10**9, 3000])[torch.randint(0, 4, (len(request),), generator=generator)]).tolist()
    times_ms = torch.tensor([t + d for t, d in zip(request, late, strict=True)] + [0] * case.larger, device=DEVICE)
    return World(case, slab, kv, pages, batch_of(case, pages), q, k, v, _bias(case, dtype, generator), times_ms)


def _put(to: Tensor, numbers: Tensor, alive: Tensor) -> None:
    """Where tokens [num_pages, page_tokens] are alive; to: [num_pages, (num_heads,) page_tokens, (head_dim)]."""
    if to.dim() > 2:
        alive = alive.unsqueeze(1)
    if to.dim() > 3:
        alive = alive.unsqueeze(3)
    to.copy_(torch.where(alive, numbers, to))


def _page_tables(case: Case, generator: torch.Generator) -> tuple[tuple[int, ...], ...]:
    """Pages in no order, strangers between; sometimes one more than a prefix fills."""
    size = case.page_tokens
    counts = [-(-n // size) + (case.seed + user) % 3 // 2 for user, (_, n) in enumerate(case.users)]
    order = torch.randperm(2 * sum(counts) + 1, generator=generator).tolist()
    pages = [tuple(order.pop() for _ in range(count)) for count in counts]
    if case.shared:
        for user in range(1, len(pages)):
            full = min(case.users[user - 1][1] // size, case.users[user][1] // size)
            pages[user] = pages[user - 1][:full] + pages[user][full:]
    return tuple(pages)


def batch_of(case: Case, pages: tuple[tuple[int, ...], ...], device: torch.device = DEVICE) -> Batch:
    """A case's users with these pages, in tensors as large as the case says."""
    rows, lens = [rows for rows, _ in case.users], [n for _, n in case.users]
    least, more = sizes_of(rows, pages, case.tile_rows), case.larger
    sizes = BatchSizes(least.num_users + more, least.num_pages + more, least.num_tiles + more)
    packed = torch.from_numpy(pack(rows, lens, pages, case.tile_rows, sizes)).to(device)
    return unpacked(packed, sizes, case.tile_rows, case.splits)


def _rows(case: Case, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Views of one tensor as a projection gives it; NaN in what is left of it."""
    num_rows = sum(rows for rows, _ in case.users)
    heads, widths = case.num_heads, (3, case.num_heads * case.v_dim, *[case.num_heads * case.qk_dim] * 2, 1)
    wide = torch.randn(num_rows + case.larger, sum(widths), generator=generator).to(dtype)
    wide[num_rows:], wide[:, :3], wide[:, -1:] = float("nan"), float("nan"), float("nan")
    _, v, q, k, _ = wide.to(DEVICE).split(widths, 1)
    return q.unflatten(1, (heads, -1)), k.unflatten(1, (heads, -1)), v.unflatten(1, (heads, -1))


def _bias(case: Case, dtype: torch.dtype, generator: torch.Generator) -> RelativeBias | None:
    if case.num_positions is None:
        return None
    sizes = (case.num_positions, case.num_buckets + 1)
    position, time = (torch.randn(case.num_heads, size, generator=generator).to(DEVICE, dtype) for size in sizes)
    return RelativeBias(position, time, time_thresholds(case.num_buckets, 0.301, 1000).to(DEVICE))


DIMS = ((1, 4), (4, 7), (7, 1), (16, 24), (24, 16), (4, 16), (24, 4), (16, 16))


@st.composite
def cases(draw: st.DrawFn, *, own_rows: bool = False, small: bool = False) -> Case:
    """own_rows: the rows are the newest tokens of the prefix, so no more than those. small: fewer programs."""
    page_tokens = draw(st.sampled_from((16, 16, 32, 64)))
    users = []
    for _ in range(draw(st.sampled_from((1, 2, 2) if small else (1, 2, 2, 3, 4)))):
        num_pages = draw(st.integers(0, 3 if page_tokens == 16 else 2))
        prefix_len = max(0, num_pages * page_tokens + draw(st.sampled_from((-1, 0, 1, 5))))
        rows = draw(st.sampled_from((2, 1, 5, 0, 16, 17) if small else (2, 1, 2, 5, 5, 0, 0, 16, 17, 63)))
        users.append((min(rows, prefix_len) if own_rows else rows, prefix_len))
    qk_dim, v_dim = draw(st.sampled_from(DIMS))
    return Case(
        users=tuple(users),
        num_heads=draw(st.sampled_from((2, 1) if small else (1, 2, 3))),
        qk_dim=qk_dim,
        v_dim=v_dim,
        page_tokens=page_tokens,
        tile_rows=draw(st.sampled_from((16, 32))),
        splits=draw(st.sampled_from((1, 1, 2, 5))),
        num_positions=draw(st.sampled_from((9, None, 1, 400))),
        num_buckets=draw(st.sampled_from((1, 5, 64, 130))),
        larger=draw(st.sampled_from((0, 0, 1, 3))),
        slab=draw(st.booleans()),
        shared=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
        transposed=draw(st.booleans()),
    )
