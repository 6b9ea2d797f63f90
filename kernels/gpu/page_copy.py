"""A part of many pages from one pool to another in one launch. One of the two may be pinned memory of the host, which a
device reads and writes over the bus.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LINE = 64
"""Bytes to which pages and their parts are aligned."""
_WORDS = 8
"""int64 numbers of a line."""
_BLOCK = 2_048
_PROGRAMS = 32
"""Enough to have as much on the bus as it takes, and few enough to leave most of the device to those who compute."""


@triton.jit(
    do_not_specialize=["page_lines", "first_line", "num_lines", "num_pages"], do_not_specialize_on_alignment=["PAIRS"]
)
def page_copy_kernel(
    SOURCE, TARGET, PAIRS, page_lines, first_line, num_lines, num_pages, WORDS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Grid: programs that share all blocks of all pages. PAIRS: [num_pages, 2], from and to."""
    blocks = tl.cdiv(num_lines * WORDS, BLOCK)
    for item in range(tl.program_id(0), num_pages * blocks, tl.num_programs(0)):
        pair = item // blocks
        word = item % blocks * BLOCK + tl.arange(0, BLOCK)
        mask = word < num_lines * WORDS
        source = tl.load(PAIRS + 2 * pair).to(tl.int64) * page_lines + first_line
        target = tl.load(PAIRS + 2 * pair + 1).to(tl.int64) * page_lines + first_line
        numbers = tl.load(SOURCE + source * WORDS + word, mask=mask, other=0)
        tl.store(TARGET + target * WORDS + word, numbers, mask=mask)


def page_copy(source: Tensor, target: Tensor, pairs: Tensor, part: slice) -> None:
    """Copy some bytes of pages to the same bytes of others.

    source, target: of a slab each, uint8 [num_pages, page_bytes]. pairs: int32 [num, 2], page of the source and page of
    the target, on the device. part: of a page, from and to a multiple of LINE.
    """
    assert source.shape[1] == target.shape[1] and not part.start % LINE and not part.stop % LINE
    if not len(pairs):
        return
    page_copy_kernel[(_PROGRAMS,)](
        source.view(torch.int64),
        target.view(torch.int64),
        pairs,
        source.shape[1] // LINE,
        part.start // LINE,
        (part.stop - part.start) // LINE,
        len(pairs),
        WORDS=_WORDS,
        BLOCK=_BLOCK,
        num_warps=8,
    )
