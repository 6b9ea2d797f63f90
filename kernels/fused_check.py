"""A small random stack in the fused kernel: what a library must pass before it is used."""

from dataclasses import dataclass

import torch

from kernels.fused_library import Kernel
from kernels.fused_stack import FusedStack
from kernels.sample_stack import sample


@dataclass(frozen=True, slots=True)
class Size:
    """Of what is computed: prefix tokens, the first ones of them as a prefill, targets, tokens of a page, threads."""

    num_tokens: int
    prefill: int
    num_targets: int
    page_tokens: int
    threads: int


SMALL = Size(77, 70, 13, 64, 1)
LARGE = Size(1_100, 1_050, 200, 128, 2)
"""More than two blocks of keys of every policy, over several pages, by two threads."""


def deviation(kernel: Kernel, size: Size, *, concat: bool, int8: bool) -> float:
    """Worst relative difference of a small random stack from the reference ops: prefill, append and score."""
    n, page = size.num_tokens, size.page_tokens
    known = sample(n, size.num_targets, concat=concat)
    stack = FusedStack(kernel, known.config, known.layers, page, int8)
    num_pages = -(-n // page)
    memory = torch.empty(num_pages, stack.page_bytes, dtype=torch.uint8).fill_(255)
    for index, of_page in enumerate(known.times.split(page)):
        memory.view(torch.int64)[index, : len(of_page)] = of_page
    pages = memory.data_ptr() + stack.page_bytes * torch.arange(num_pages)
    stack.extend(pages, 0, known.x[: size.prefill], size.threads)
    stack.extend(pages, size.prefill, known.x[size.prefill :], size.threads)
    kv = [stack.read(pages, layer, 0, n) for layer in range(stack.num_layers)]
    return known.deviation(kv, stack.score(pages, n, known.targets, known.now, size.threads))
