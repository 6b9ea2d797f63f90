"""A small random problem for one kind of attention, computed by the Hopper kernel and by the plain one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.gpu import target_attention as plain
from kernels.gpu.hopper import target_attention as hopper
from kernels.gpu.hopper.launch import TILE_ROWS
from kernels.paged import PagedKV, batch

_NUM_HEADS, _PAGE_TOKENS = 2, 128
_NUM_ROWS, _PREFIX_LENS = (130, 5, 1), (700, 129, 0)
"""Of three users: one with more rows than a tile and six pages, one whose last tile has one token, one without any."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kernel is compiled for anew. op: `target_attention` or `prefix_attention`."""

    op: str
    dtype: torch.dtype
    qk_dim: int
    v_dim: int
    bias: bool

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.op} ({name}, {self.qk_dim}x{self.v_dim}{', bias' if self.bias else ''})"


def deviation(device: torch.device, kind: Kind) -> float:
    """Of the Hopper kernel from the plain one."""
    return difference(device, kind, hopper.target_attention_parts, plain.target_attention_parts)


def difference(device: torch.device, kind: Kind, one: Callable[..., Tensor], other: Callable[..., Tensor]) -> float:
    """Largest difference of one from the other, relative to the largest output of that. What no user has is NaN."""
    generator = torch.Generator().manual_seed(1)
    pages, users = _pages(), len(_NUM_ROWS)
    of = batch(_NUM_ROWS, _PREFIX_LENS, pages, tile_rows=TILE_ROWS, splits=2, device=device)
    kv = _prefix(kind, pages, generator, device)
    q, k, v = (
        torch.randn(sum(_NUM_ROWS), _NUM_HEADS, dim, generator=generator).to(device, kind.dtype)
        for dim in (kind.qk_dim, kind.qk_dim, kind.v_dim)
    )
    prefix_bias = own_bias = None
    if kind.bias:
        prefix_bias = torch.full((_NUM_HEADS, len(of.pages) * _PAGE_TOKENS), torch.nan)
        for user in range(users):
            first = sum(map(len, pages[:user])) * _PAGE_TOKENS
            numbers = torch.randn(_NUM_HEADS, _PREFIX_LENS[user], generator=generator)
            prefix_bias[:, first : first + _PREFIX_LENS[user]] = numbers
        prefix_bias = prefix_bias.to(device)
        own_bias = torch.randn(_NUM_HEADS, generator=generator).to(device, kind.dtype)
    form = {"logit_scale": kind.qk_dim**-0.5, "norm": 100.0}
    found, expected = (op(q, k, v, kv, of, prefix_bias, own_bias, **form).sum(0) for op in (one, other))
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


def _pages() -> list[list[int]]:
    """Of each user, in no order of the pool."""
    counts = [-(-n // _PAGE_TOKENS) for n in _PREFIX_LENS]
    order = list(range(sum(counts)))[::-1]
    return [[order.pop(len(order) // 2) for _ in range(count)] for count in counts]


def _prefix(kind: Kind, pages: list[list[int]], generator: torch.Generator, device: torch.device) -> PagedKV:
    num_pages = sum(map(len, pages))
    k, v = (
        torch.full((num_pages, _NUM_HEADS, _PAGE_TOKENS, dim), torch.nan, dtype=kind.dtype)
        for dim in (kind.qk_dim, kind.v_dim)
    )
    for own, n in zip(pages, _PREFIX_LENS, strict=True):
        for index, page in enumerate(own):
            tokens = min(_PAGE_TOKENS, n - index * _PAGE_TOKENS)
            for x in (k, v):
                x[page, :, :tokens] = torch.randn(_NUM_HEADS, tokens, x.shape[3], generator=generator).to(x.dtype)
    times = torch.zeros(num_pages, _PAGE_TOKENS, dtype=torch.int64)
    return PagedKV(k.to(device), v.to(device), times.to(device))
