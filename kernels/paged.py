"""What the ops on pages are given: one layer of a pool's keys and values, and a batch of users with rows of their own.

Words: a row is a token that passes through the layers; a tile is the rows of one user that one program takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PagedKV:
    """One layer of a pool. The four parts may be views into pages: only their last dimension must be dense.

    k: [num_pages, num_heads, page_tokens, qk_dim], in the compute dtype or in codes (`kernels.quantise`). v: likewise,
    but perhaps dense in its tokens.
    times: int64 [num_pages, page_tokens], milliseconds. k_scales, v_scales: float32 [num_pages, num_heads, page_tokens]
    of codes, else None; both of one stride from page to page.
    """

    k: Tensor
    v: Tensor
    times: Tensor
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None

    @property
    def page_tokens(self) -> int:
        """Tokens of a page."""
        return self.k.shape[2]

    @property
    def transposed(self) -> bool:
        """Whether V lies with the tokens of a page side by side: what products in float8 take."""
        return self.v.stride(3) != 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Users side by side: which rows are whose, and where each one's prefix lies. int32 tensors on the device.

    row_offsets: [num_users + 1]. prefix_lens: [num_users] tokens on pages (for `prefix_attention` the rows themselves
    included). page_offsets: [num_users + 1] into pages. pages: [num_pages] of the pool, in token order. page_users:
    [num_pages]. tiles: [num_tiles, 2], user and first of its rows; user -1 in what fills up a fixed shape.

    tile_rows: rows of a tile. splits: programs that share one tile's prefix.
    """

    row_offsets: Tensor
    prefix_lens: Tensor
    page_offsets: Tensor
    pages: Tensor
    page_users: Tensor
    tiles: Tensor
    tile_rows: int
    splits: int


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """The sizes of a batch's tensors: those of its content, or larger ones that several batches share."""

    num_users: int
    num_pages: int
    num_tiles: int

    def num_numbers(self) -> int:
        """Numbers of all six tensors."""
        return 3 * self.num_users + 2 + 2 * self.num_pages + 2 * self.num_tiles


def sizes_of(num_rows: Sequence[int], pages: Sequence[Sequence[int]], tile_rows: int) -> BatchSizes:
    """The least sizes for users with so many rows and these pages."""
    return BatchSizes(len(num_rows), sum(map(len, pages)), sum(-(-rows // tile_rows) for rows in num_rows))


def pack(
    num_rows: Sequence[int],
    prefix_lens: Sequence[int],
    pages: Sequence[Sequence[int]],
    tile_rows: int,
    sizes: BatchSizes,
) -> np.ndarray:
    """The numbers of a batch, int32 [sizes.num_numbers()]: one copy to the device. Users beyond the given have no rows.

    num_rows, prefix_lens, pages: of each user. Tiles stand in the order in which they are to start: first those whose
    last row, were it of the prefix, sees most of it.
    """
    packed = np.zeros(sizes.num_numbers(), dtype=np.int32)
    row_offsets, lens, page_offsets, flat, page_users, tiles = _split(packed, sizes)
    users = len(num_rows)
    np.cumsum(num_rows, out=row_offsets[1 : users + 1])
    row_offsets[users + 1 :] = row_offsets[users]
    lens[:users] = prefix_lens
    counts = [len(own) for own in pages]
    np.cumsum(counts, out=page_offsets[1 : users + 1])
    page_offsets[users + 1 :] = page_offsets[users]
    total = int(page_offsets[users])
    if total:
        flat[:total] = np.concatenate([np.asarray(own, dtype=np.int32) for own in pages])
    page_users[:] = -1
    page_users[:total] = np.repeat(np.arange(users), counts)
    pairs = tiles.reshape(-1, 2)
    pairs[:, 0] = -1
    if users:
        rows, firsts = np.asarray(num_rows), [np.arange(0, rows, tile_rows) for rows in num_rows]
        user, first = np.repeat(np.arange(users), list(map(len, firsts))), np.concatenate(firsts)
        last = np.asarray(prefix_lens)[user] - np.maximum(rows[user] - first - tile_rows, 0)
        order = np.argsort(-last, kind="stable")
        pairs[: len(order), 0], pairs[: len(order), 1] = user[order], first[order]
    return packed


def unpacked(packed: Tensor, sizes: BatchSizes, tile_rows: int, splits: int = 1) -> Batch:
    """The batch that reads these numbers, int32 [sizes.num_numbers()], where they are."""
    lengths = _lengths(sizes)
    row_offsets, lens, page_offsets, flat, page_users, tiles = packed.split(lengths)
    return Batch(row_offsets, lens, page_offsets, flat, page_users, tiles.view(-1, 2), tile_rows, splits)


def batch(
    num_rows: Sequence[int],
    prefix_lens: Sequence[int],
    pages: Sequence[Sequence[int]],
    *,
    tile_rows: int = 64,
    splits: int = 1,
    device: torch.device | str = "cpu",
) -> Batch:
    """A batch of just these users; see `pack`."""
    sizes = sizes_of(num_rows, pages, tile_rows)
    packed = torch.from_numpy(pack(num_rows, prefix_lens, pages, tile_rows, sizes)).to(device)
    return unpacked(packed, sizes, tile_rows, splits)


def to_device(numbers: np.ndarray, device: torch.device) -> Tensor:
    """Numbers on a device, without waiting for it."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _lengths(sizes: BatchSizes) -> list[int]:
    users, pages = sizes.num_users, sizes.num_pages
    return [users + 1, users, users + 1, pages, pages, 2 * sizes.num_tiles]


def _split(packed: np.ndarray, sizes: BatchSizes) -> list[np.ndarray]:
    return np.split(packed, np.cumsum(_lengths(sizes))[:-1])
