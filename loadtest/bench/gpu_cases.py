"""The cells of `mfalcon bench kernels`: their sizes, what they must compute and move, and random inputs for them.

Counted, not measured: a pair is a query and a key that it sees; each takes 2 d FLOPs for the product and 2 d for the
weighted value, in every head. Bytes are the least: q, k, v and the output once, the pages of every user once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels import paged_reference
from kernels.gpu.launch import tile_rows_for
from kernels.gpu.splits import Numbers, num_splits
from kernels.paged import Batch, PagedKV, batch
from kernels.paged_reference import gather
from kernels.quantise import quantised
from loadtest.bench.gpu_timing import generator_on, relative_error
from mfalcon.kvcache.state import PAGE_TOKENS, KVPool, KVShape, PlainLayout

TARGET, PREFIX = "target_attention", "prefix_attention"
NORM = 4_096.0
FP8_PRODUCTS = "fp8-products"
CODES = {"none": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn, FP8_PRODUCTS: torch.float8_e4m3fn}
"""Codes on pages by name."""
_ROTATED_BYTES = 128 << 20
"""Of pages that take turns: more than twice the second-level cache of an H100 (50 MB) or H200 (60 MB)."""
_MOST_SETS = 128
_SAMPLED_USERS, _SAMPLED_ROWS = 3, 24


@dataclass(frozen=True, slots=True)
class Case:
    """One cell. n: tokens of each user's prefix. m: of each user its targets, or (prefix_attention) the newest tokens
    of the prefix, which attend. codes: a name of CODES.
    """

    op: str
    n: int
    m: int
    head_dim: int
    batch: int
    num_heads: int = 4
    dtype: str = "bfloat16"
    codes: str = "none"

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of its numbers."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def flops(self) -> int:
        """Of all users."""
        seen = self.m * (self.n + 1) if self.op == TARGET else self.m * (self.n - self.m) + self.m * (self.m + 1) // 2
        return 4 * self.head_dim * self.num_heads * self.batch * seen

    @property
    def num_bytes(self) -> int:
        """Of all users; scales of codes included."""
        width = self.num_heads * self.head_dim
        rows = self.batch * self.m * width * self.torch_dtype.itemsize
        codes = CODES[self.codes]
        token = 2 * (width * (codes or self.torch_dtype).itemsize + (4 * self.num_heads if codes else 0))
        return (4 if self.op == TARGET else 2) * rows + self.batch * self.n * token

    @property
    def described(self) -> str:
        """For people."""
        return (
            f"{self.op} n={self.n} m={self.m} d={self.head_dim} x{self.num_heads} batch={self.batch} {self.dtype} "
            f"codes={self.codes}"
        )


def grid(ops: Sequence[str] = (TARGET, PREFIX)) -> list[Case]:
    """Every cell, those that the bars and the stacks ask for first."""
    cases = [
        Case(op, n, m, d, users)
        for op in ops
        for d in (128, 256, 64)
        for users in (1, 8, 32)
        for n in (4096, 16384, 1024, 256)
        for m in (2048, 1024, 16384, 256, 64)
        if op == TARGET or m <= n
    ]
    coded = [Case(op, n, 2048, 128, 1, codes=codes) for op in ops for n in (4096, 16384) for codes in ("int8", "fp8")]
    return sorted([*cases, *coded], key=_rank)


TINY = (
    Case(TARGET, 140, 20, 16, 2, num_heads=2),
    Case(TARGET, 140, 20, 16, 2, num_heads=2, codes="int8"),
    Case(PREFIX, 140, 20, 16, 1, num_heads=2),
)
"""What a quick run takes where there is no device."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Random tensors of a case. sets: pages of as many layers, which take turns: in a stack, too, every layer reads
    pages that the cache has not seen since the last request, while its rows come straight from the projection.

    q, k, v: [batch * m, num_heads, head_dim], views of one projection's output.
    """

    case: Case
    sets: Sequence[PagedKV]
    batch: Batch
    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def scale(self) -> float:
        """Of the logits."""
        return float(self.case.head_dim**-0.5)

    @property
    def norm(self) -> float:
        """Divides the weights; one for all lengths, as a model has it: kernels are compiled for it."""
        return NORM


def inputs(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """Fresh ones, on pages in no order."""
    dtype, codes = case.torch_dtype, CODES[case.codes]
    generator = generator_on(device, seed)
    shape = KVShape(1, case.num_heads, case.head_dim, case.head_dim, dtype, device)
    pages_each = -(-case.n // PAGE_TOKENS)
    num_pages = case.batch * pages_each
    num_sets = max(1, min(_MOST_SETS, -(-_ROTATED_BYTES // (num_pages * PlainLayout(shape, codes=codes).page_bytes))))
    if device.type == "cpu":
        num_sets = 2
    layout = PlainLayout(replace(shape, num_layers=num_sets), codes=codes, transposed=case.codes == FP8_PRODUCTS)
    slab = KVPool(layout, num_pages).slab
    sets = []
    for layer in range(num_sets):
        k, v, k_scales, v_scales = layout.blocks(slab, layer)
        for block, scales in ((k, k_scales), (v, v_scales)):
            for page in range(0, num_pages, 256):  # in parts: float32 beside it is twice as large
                part = slice(page, page + 256)
                numbers = torch.randn(block[part].shape, generator=generator, device=device)
                if codes is None or scales is None:
                    block[part] = numbers
                else:
                    block[part], scales[part] = quantised(numbers, codes)
        sets.append(PagedKV(k, v, layout.times(slab), k_scales, v_scales))
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed)).tolist()
    pages = [order[user * pages_each : (user + 1) * pages_each] for user in range(case.batch)]
    num_rows = case.batch * case.m
    rows = num_rows if case.op == TARGET else case.m  # as mfalcon.backends.triton does
    tile_rows = tile_rows_for(rows, dtype.itemsize, case.head_dim)
    num_tiles = case.batch * -(-case.m // tile_rows)
    computed_in = Numbers(dtype.itemsize, case.head_dim, device)
    splits = num_splits(case.op, num_tiles * case.num_heads, case.n, tile_rows, computed_in)
    # Of a rehearsal's batch, whose tensors have no memory, the numbers are read too.
    where = "cpu" if device.type == "meta" else device
    users = batch([case.m] * case.batch, [case.n] * case.batch, pages, tile_rows=tile_rows, splits=splits, device=where)
    wide = torch.randn(num_rows, 4 * case.num_heads * case.head_dim, generator=generator, device=device).to(dtype)
    _, v, q, k = (x.unflatten(1, (case.num_heads, -1)) for x in wide.chunk(4, 1))
    return Inputs(case, sets, users, q, k, v)


def checked(out: Tensor, given: Inputs, of_set: int, seed: int = 0) -> float:
    """Relative error of an output [batch * m, num_heads, head_dim] on some rows of some users, against float64 on the
    same numbers; infinity if any row at all is not finite.
    """
    if not out.is_meta and not bool(torch.isfinite(out).all()):
        return float("inf")
    case, users = given.case, list(paged_reference.users(given.batch))
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for user in users[:: max(1, len(users) // _SAMPLED_USERS)]:
        chosen = torch.randint(0, case.m, (min(case.m, _SAMPLED_ROWS),), generator=generator)
        chosen[:2] = torch.tensor([0, case.m - 1])[: len(chosen)]
        at = (chosen + user.rows.start).to(out.device)
        keys, values = gather(given.sets[of_set], user.pages, case.n, torch.float64)
        q = given.q[at].double()
        weights = torch.nn.functional.silu(torch.einsum("mhd,hnd->hmn", q, keys) * given.scale)
        if case.op == PREFIX:
            position = case.n - case.m + chosen.to(out.device)
            weights *= torch.arange(case.n, device=out.device) <= position[:, None]
        expected = torch.einsum("hmn,hnd->mhd", weights, values)
        if case.op == TARGET:
            own = torch.nn.functional.silu((q * given.k[at].double()).sum(-1, keepdim=True) * given.scale)
            expected += own * given.v[at].double()
        pairs.append((out[at], expected / given.norm))
    found, expected = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return relative_error(found, expected)


def _rank(case: Case) -> tuple[bool, bool, bool, bool]:
    """What sorts first: cells of the bar; head dimensions of the stacks; no codes; few users."""
    of_bar = case.op == TARGET and case.head_dim == 128 and case.n >= 4096 and case.m >= 1024
    return (not (of_bar and case.batch == 1), not of_bar, case.head_dim == 64, case.codes != "none")
