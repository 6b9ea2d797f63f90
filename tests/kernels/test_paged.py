"""A batch says whose rows and pages are whose, and the ops on pages are the dense ones of `kernels.reference`."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from kernels import paged, paged_reference
from kernels.bias import RelativeBias, time_thresholds
from kernels.paged import Batch, BatchSizes, PagedKV
from kernels.reference import masked_attention

LOGIT_SCALE, NORM, HEADS, QK_DIM, V_DIM = 0.3, 9.0, 2, 3, 5
TILE_ROWS = st.sampled_from((1, 16, 64))
BOUND = 1e-12
"""Of float64, relative to the largest: the same sums in another order."""


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[int], list[int], list[list[int]]]:
    """Rows, prefix lengths and pages of users; any numbers will do."""
    users = draw(st.integers(0, 4))
    rows = draw(st.lists(st.sampled_from((0, 1, 15, 16, 17, 63, 64, 65)), min_size=users, max_size=users))
    lens = draw(st.lists(st.integers(0, 100), min_size=users, max_size=users))
    pages = draw(st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=users, max_size=users))
    return rows, lens, pages


@given(tables(), TILE_ROWS, st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))
def test_a_batch_says_what_it_was_made_of(
    table: tuple[list[int], list[int], list[list[int]]], tile_rows: int, users: int, pages: int, tiles: int
) -> None:
    """In tensors of its size and in larger ones: there the users beyond have no rows, no prefix, no pages and no tiles.
    Every row of every user is in one tile.
    """
    rows, lens, own = table
    least = paged.sizes_of(rows, own, tile_rows)
    sizes = BatchSizes(least.num_users + users, least.num_pages + pages, least.num_tiles + tiles)
    packed = torch.from_numpy(paged.pack(rows, lens, own, tile_rows, sizes))
    assert packed.dtype == torch.int32 and packed.shape == (sizes.num_numbers(),)
    batch = paged.unpacked(packed, sizes, tile_rows, 3)
    assert (batch.tile_rows, batch.splits) == (tile_rows, 3)
    assert batch.row_offsets.diff(prepend=torch.zeros(1)).tolist() == [0, *rows, *[0] * users]
    assert batch.prefix_lens.tolist() == [*lens, *[0] * users]
    assert batch.page_offsets.diff(prepend=torch.zeros(1)).tolist() == [0, *map(len, own), *[0] * users]
    assert batch.pages.tolist()[: least.num_pages] == [page for mine in own for page in mine]
    of_pages = [user for user, mine in enumerate(own) for _ in mine]
    assert batch.page_users.tolist() == [*of_pages, *[-1] * pages]
    assert batch.tiles.shape == (sizes.num_tiles, 2)
    assert (batch.tiles[least.num_tiles :, 0] == -1).all()
    covered = [
        (user, row)
        for user, first in batch.tiles[: least.num_tiles].tolist()
        for row in range(first, min(first + tile_rows, rows[user]))
    ]
    assert sorted(covered) == [(user, row) for user, count in enumerate(rows) for row in range(count)]
    alive = batch.tiles[: least.num_tiles].tolist()
    seen = [lens[user] - max(0, rows[user] - first - tile_rows) for user, first in alive]
    assert seen == sorted(seen, reverse=True), "a tile starts after a shorter one"


@given(tables(), TILE_ROWS)
def test_batch_is_pack_and_unpack(table: tuple[list[int], list[int], list[list[int]]], tile_rows: int) -> None:
    rows, lens, own = table
    sizes = paged.sizes_of(rows, own, tile_rows)
    packed = torch.from_numpy(paged.pack(rows, lens, own, tile_rows, sizes))
    batch, other = paged.batch(rows, lens, own, tile_rows=tile_rows), paged.unpacked(packed, sizes, tile_rows)
    for name in ("row_offsets", "prefix_lens", "page_offsets", "pages", "page_users", "tiles"):
        assert torch.equal(getattr(batch, name), getattr(other, name))
    assert batch.splits == other.splits == 1


def test_unpacked_reads_where_the_numbers_are() -> None:
    """A new batch of the same sizes is one copy."""
    sizes = paged.sizes_of([3], [[4, 2]], 16)
    packed = torch.from_numpy(paged.pack([3], [20], [[4, 2]], 16, sizes))
    batch = paged.unpacked(packed, sizes, 16)
    packed.copy_(torch.from_numpy(paged.pack([2], [19], [[1, 0]], 16, sizes)))
    assert (batch.prefix_lens.tolist(), batch.pages.tolist(), batch.row_offsets.tolist()) == ([19], [1, 0], [0, 2])


class Dense:
    """One user as a dense prefix: k, v [n, heads, dim], times [n]; its newest rows or targets q, and theirs."""

    def __init__(self, n: int, num_rows: int, generator: torch.Generator) -> None:
        def random(rows: int, dim: int) -> Tensor:
            return torch.randn(rows, HEADS, dim, generator=generator, dtype=torch.float64)

        self.k, self.v = random(n, QK_DIM), random(n, V_DIM)
        self.times = torch.randint(0, 10**7, (n,), generator=generator).sort().values
        self.q, self.own_k, self.own_v = random(num_rows, QK_DIM), random(num_rows, QK_DIM), random(num_rows, V_DIM)

    def over_prefix(self, bias: RelativeBias | None) -> Tensor:
        n, first = len(self.k), len(self.k) - len(self.q)
        at = torch.arange(n)
        added = None if bias is None else bias.matrix(at[first:], at, self.times[first:], self.times)
        mask = at <= at[first:, None]
        return masked_attention(self.q, self.k, self.v, mask, added, logit_scale=LOGIT_SCALE, norm=NORM)

    def over_targets(self, bias: RelativeBias | None, now: int) -> Tensor:
        n, m = len(self.k), len(self.q)
        k, v = torch.cat([self.k, self.own_k]), torch.cat([self.v, self.own_v])
        mask = torch.cat([torch.ones(m, n, dtype=torch.bool), torch.eye(m, dtype=torch.bool)], 1)
        added = None
        if bias is not None:
            at = torch.arange(n + m).clamp(max=n)
            times = torch.cat([self.times, torch.full((m,), now)])
            added = bias.matrix(at[n:], at, times[n:], times)
        return masked_attention(self.q, k, v, mask, added, logit_scale=LOGIT_SCALE, norm=NORM)


def on_pages(users: list[Dense], page_tokens: int, seed: int) -> tuple[PagedKV, list[list[int]]]:
    """Every user's prefix on pages in no order; what is nobody's is NaN."""
    counts = [-(-len(user.k) // page_tokens) for user in users]
    order = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(seed)).tolist()
    pages = [[order.pop() for _ in range(count)] for count in counts]
    size = (sum(counts) + 2, HEADS, page_tokens)
    k, v = (torch.full((*size, dim), float("nan"), dtype=torch.float64) for dim in (QK_DIM, V_DIM))
    times = torch.full((size[0], page_tokens), -1)
    for user, own in zip(users, pages, strict=True):
        for token in range(len(user.k)):
            page, slot = own[token // page_tokens], token % page_tokens
            k[page, :, slot], v[page, :, slot], times[page, slot] = user.k[token], user.v[token], user.times[token]
    return PagedKV(k, v, times), pages


def random_bias(num_positions: int | None) -> RelativeBias | None:
    if num_positions is None:
        return None
    generator = torch.Generator().manual_seed(num_positions)
    position, time = (
        torch.randn(HEADS, size, generator=generator, dtype=torch.float64) for size in (num_positions, 21)
    )
    return RelativeBias(position, time, time_thresholds(20, 0.7, 1000))


SIZES = st.lists(
    st.tuples(st.sampled_from((0, 1, 15, 16, 17, 33, 150)), st.sampled_from((0, 1, 3, 17))), min_size=1, max_size=3
)
POSITIONS = st.sampled_from((None, 1, 9, 400))


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, rtol=0, atol=BOUND * max(1.0, float(expected.abs().max())))


@settings(max_examples=60)
@given(SIZES, POSITIONS, st.integers(0, 99))
def test_prefix_attention_is_dense_and_causal(sizes: list[tuple[int, int]], positions: int | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    users, bias = [Dense(n, min(m, n), generator) for n, m in sizes], random_bias(positions)
    kv, pages = on_pages(users, 16, seed)
    batch = paged.batch([len(user.q) for user in users], [len(user.k) for user in users], pages)
    q = torch.cat([user.q for user in users])
    got = paged_reference.prefix_attention(q, kv, batch, bias, logit_scale=LOGIT_SCALE, norm=NORM)
    if len(q):
        assert_close(got, torch.cat([user.over_prefix(bias) for user in users]))


@settings(max_examples=60)
@given(SIZES, POSITIONS, st.integers(0, 99))
def test_target_attention_is_dense_under_its_mask(
    sizes: list[tuple[int, int]], positions: int | None, seed: int
) -> None:
    """With the bias of `target_bias`, of requests before, at and after the newest event."""
    generator = torch.Generator().manual_seed(seed)
    users, bias = [Dense(n, m, generator) for n, m in sizes], random_bias(positions)
    kv, pages = on_pages(users, 16, seed)
    batch = paged.batch([len(user.q) for user in users], [len(user.k) for user in users], pages)
    now = [int(user.times[-1]) + d if len(user.k) else 5 for user, d in zip(users, (0, -3000, 10**8), strict=False)]
    prefix_bias = own = None
    if bias is not None:
        prefix_bias, own = paged_reference.target_bias(kv, batch, torch.tensor(now), bias), bias.own()
    q, k, v = (torch.cat([getattr(user, name) for user in users]) for name in ("q", "own_k", "own_v"))
    got = paged_reference.target_attention(q, k, v, kv, batch, prefix_bias, own, logit_scale=LOGIT_SCALE, norm=NORM)
    if len(q):
        assert_close(got, torch.cat([user.over_targets(bias, at) for user, at in zip(users, now, strict=True)]))


def written(users: list[Dense], codes: torch.dtype | None) -> tuple[PagedKV, PagedKV, Batch, list[list[int]]]:
    """A pool before and after the users' own k and v became their newest tokens."""
    kv, pages = on_pages(users, 16, 3)
    if codes is not None:
        k, v = (torch.full(x.shape, 7, dtype=torch.uint8).view(codes) for x in (kv.k, kv.v))
        scales = torch.full(kv.k.shape[:3], 7.0)
        kv = PagedKV(k, v, kv.times, scales, scales.clone())
    batch = paged.batch([len(user.q) for user in users], [len(user.k) for user in users], pages)
    after = replace(
        kv,
        k=kv.k.clone(),
        v=kv.v.clone(),
        times=kv.times.clone(),
        k_scales=None if kv.k_scales is None else kv.k_scales.clone(),
        v_scales=None if kv.v_scales is None else kv.v_scales.clone(),
    )
    k, v = (torch.cat([getattr(user, name) for user in users]) for name in ("own_k", "own_v"))
    paged_reference.kv_write(k, v, after, batch)
    return kv, after, batch, pages


@pytest.mark.parametrize("codes", [None, torch.int8, torch.float8_e4m3fn], ids=str)
def test_kv_write_is_read_back_and_leaves_the_rest(codes: torch.dtype | None) -> None:
    """To half a code: 1/254 of the head's largest in int8; in float8 1/16 of a number, and 1/2**10 of a scale."""
    generator = torch.Generator().manual_seed(4)
    users = [Dense(n, m, generator) for n, m in ((40, 17), (16, 16), (5, 0), (17, 1))]
    before, after, _, pages = written(users, codes)
    untouched = torch.ones(before.k.shape[0], 16, dtype=torch.bool)
    for user, own in zip(users, pages, strict=True):
        n, first = len(user.k), len(user.k) - len(user.q)
        for token in range(first, n):
            untouched[own[token // 16], token % 16] = False
        for got, x in zip(
            paged_reference.gather(after, torch.tensor(own), n, torch.float64), (user.own_k, user.own_v), strict=True
        ):
            newest, expected = got[:, first:], x.transpose(0, 1)
            largest = expected.abs().amax(-1, keepdim=True)
            bound = {
                None: torch.zeros_like(expected),
                torch.int8: (largest / 254).expand_as(expected),
                torch.float8_e4m3fn: (expected.abs() / 16).maximum(largest / 448 / 2**10),
            }[codes]
            assert ((newest - expected).abs() <= bound * (1 + 1e-5)).all()
    for name in ("k", "v", "k_scales", "v_scales"):
        old, new = getattr(before, name), getattr(after, name)
        if old is not None:
            old, new = (x.transpose(1, 2)[untouched].contiguous().view(torch.uint8) for x in (old, new))
            assert torch.equal(old, new)
    assert torch.equal(before.times, after.times)


def test_linear_and_norm_gate_by_definition() -> None:
    generator = torch.Generator().manual_seed(5)
    x, weight, bias, residual = (
        torch.randn(size, generator=generator, dtype=torch.float64) for size in ((3, 4), (6, 4), (6,), (3, 6))
    )
    plain = x @ weight.T + bias
    expected = torch.cat([plain[:, :2] * plain[:, :2].sigmoid(), plain[:, 2:]], 1) + residual
    assert_close(paged_reference.linear(x, weight, bias, residual, 2), expected)
    assert_close(paged_reference.linear(x, weight), x @ weight.T)
    scale, shift = weight[0], weight[1]
    normed = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-3).sqrt() * scale + shift
    assert_close(paged_reference.layer_norm(x, scale, shift, 1e-3), normed)
    u = functional.silu(residual[:, :4])
    assert_close(paged_reference.norm_gate(x, u, scale, shift, 1e-3, concat=False), u * normed)
    assert_close(paged_reference.norm_gate(x, u, scale, shift, 1e-3, concat=True), torch.cat([u, x, u * normed], 1))
