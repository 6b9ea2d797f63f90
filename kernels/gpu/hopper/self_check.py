"""A small random problem for one kind of attention, computed by the Hopper kernel and by the plain one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import fp8_reference
from kernels.bias import RelativeBias, time_thresholds
from kernels.gpu import prefix_attention as plain_prefix
from kernels.gpu import target_attention as plain_target
from kernels.gpu.hopper import fp8_target_attention as hopper_fp8
from kernels.gpu.hopper import prefix_attention as hopper_prefix
from kernels.gpu.hopper import target_attention as hopper_target
from kernels.gpu.hopper.launch import TILE_ROWS
from kernels.paged import Batch, PagedKV, batch
from kernels.quantise import quantised

_NUM_HEADS, _PAGE_TOKENS, _NUM_BUCKETS = 2, 128, 20
_NUM_ROWS, _PREFIX_LENS = (130, 5, 1), (700, 129, 0)
"""Of three users: one with more rows than a tile and six pages, one whose last tile has one token, one without any."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kernel is compiled for anew. op: `target_attention` or `prefix_attention`. fp8: of products in float8."""

    op: str
    dtype: torch.dtype
    qk_dim: int
    v_dim: int
    bias: bool
    fp8: bool = False

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        form = f"{name}, {self.qk_dim}x{self.v_dim}{', bias' if self.bias else ''}"
        return f"{self.op} ({form}{', float8 products' if self.fp8 else ''})"


def deviation(device: torch.device, kind: Kind) -> float:
    """Of the Hopper kernel from the plain one, or where that computes with other products, from their definition."""
    if kind.fp8:
        return difference(device, kind, hopper_fp8.target_attention_parts, defined_in_fp8)
    if kind.op == "prefix_attention":
        return difference(device, kind, hopper_prefix.prefix_attention_parts, plain_prefix.prefix_attention_parts)
    return difference(device, kind, hopper_target.target_attention_parts, plain_target.target_attention_parts)


def difference(device: torch.device, kind: Kind, one: Callable[..., Tensor], other: Callable[..., Tensor]) -> float:
    """Largest difference of one from the other, relative to the largest output of that. What no user has is NaN."""
    generator = torch.Generator().manual_seed(1)
    causal = kind.op == "prefix_attention"
    lens = [max(n, rows) if causal else n for n, rows in zip(_PREFIX_LENS, _NUM_ROWS, strict=True)]
    pages = _pages(lens)
    users = batch(_NUM_ROWS, lens, pages, tile_rows=TILE_ROWS, splits=2, device=device)
    kv = _prefix(kind, lens, pages, generator, device)
    q, k, v = (
        torch.randn(sum(_NUM_ROWS), _NUM_HEADS, dim, generator=generator).to(device, kind.dtype)
        for dim in (kind.qk_dim, kind.qk_dim, kind.v_dim)
    )
    bias = _bias(kind, generator, device) if kind.bias else None
    arguments: tuple[object, ...] = (q, kv, users, bias)
    if not causal:
        by_token = None if bias is None else _by_token(lens, pages, generator, device)
        arguments = (q, k, v, kv, users, by_token, None if bias is None else bias.own())
    form = {"logit_scale": kind.qk_dim**-0.5, "norm": 100.0}
    found, expected = (op(*arguments, **form).sum(0) for op in (one, other))
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


def defined_in_fp8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: PagedKV,
    users: Batch,
    prefix_bias: Tensor | None,
    own_bias: Tensor | None,
    *,
    logit_scale: float,
    norm: float,
) -> Tensor:
    """`kernels.fp8_reference.target_attention` in float64, as one part."""
    wide = (None if x is None else x.double() for x in (prefix_bias, own_bias))
    rows = (q.double(), k.double(), v.double())
    return fp8_reference.target_attention(*rows, kv, users, *wide, logit_scale=logit_scale, norm=norm)[None]


def _pages(lens: Sequence[int]) -> list[list[int]]:
    """Of each user, in no order of the pool."""
    counts = [-(-n // _PAGE_TOKENS) for n in lens]
    order = list(range(sum(counts)))
    return [[order.pop(len(order) // 2) for _ in range(count)] for count in counts]


def _prefix(
    kind: Kind, lens: Sequence[int], pages: list[list[int]], generator: torch.Generator, device: torch.device
) -> PagedKV:
    num_pages = sum(map(len, pages))
    k, v = (torch.full((num_pages, _NUM_HEADS, _PAGE_TOKENS, dim), torch.nan) for dim in (kind.qk_dim, kind.v_dim))
    times = torch.zeros(num_pages, _PAGE_TOKENS, dtype=torch.int64)
    for own, n in zip(pages, lens, strict=True):
        for index, page in enumerate(own):
            tokens = min(_PAGE_TOKENS, n - index * _PAGE_TOKENS)
            for x in (k, v):
                x[page, :, :tokens] = torch.randn(_NUM_HEADS, tokens, x.shape[3], generator=generator)
            times[page] = 1000 * (index * _PAGE_TOKENS + torch.arange(_PAGE_TOKENS)) ** 2
    if kind.fp8:
        (k, k_scales), (v, v_scales) = (quantised(x.to(device), torch.float8_e4m3fn) for x in (k, v))
        return PagedKV(k, v.mT.contiguous().mT, times.to(device), k_scales, v_scales)
    return PagedKV(k.to(device, kind.dtype), v.to(device, kind.dtype), times.to(device))


def _bias(kind: Kind, generator: torch.Generator, device: torch.device) -> RelativeBias:
    position, time = (
        torch.randn(_NUM_HEADS, size, generator=generator).to(device, kind.dtype) for size in (300, _NUM_BUCKETS + 1)
    )
    return RelativeBias(position, time, time_thresholds(_NUM_BUCKETS, 0.301, 1000).to(device))


def _by_token(lens: Sequence[int], pages: list[list[int]], generator: torch.Generator, device: torch.device) -> Tensor:
    """Of targets: [num_heads, num_pages * page_tokens]."""
    out = torch.full((_NUM_HEADS, sum(map(len, pages)), _PAGE_TOKENS), torch.nan).flatten(1)
    first = 0
    for own, n in zip(pages, lens, strict=True):
        out[:, first : first + n] = torch.randn(_NUM_HEADS, n, generator=generator)
        first += len(own) * _PAGE_TOKENS
    return out.to(device)
