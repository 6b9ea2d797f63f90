"""Whether what was encoded is made of numbers: a state with NaN or infinity in it spoils every score of its user."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.paged import to_device
from mfalcon.kvcache.state import KVState, PlainLayout, by_page_size


def finiteness(states: Sequence[KVState], firsts: Sequence[int]) -> Callable[[], list[bool]]:
    """Tells whether the tokens of each state from its `first` on have only finite keys and values; see
    `KVState.is_finite`.

    States of a pool of fixed size in torch's layout are looked at in one computation. It is queued now, and waited for
    when the answer is asked for.
    """
    if not states:
        return list
    pool = states[0].pool
    if not pool.has_slab or not isinstance(pool.layout, PlainLayout):
        finite = [state.is_finite(first) for state, first in zip(states, firsts, strict=True)]
        return lambda: finite
    queued = [
        (indices, _on_slab([states[i] for i in indices], [firsts[i] for i in indices]))
        for indices in by_page_size(states)
    ]

    def all_finite() -> list[bool]:
        found = [True] * len(states)
        for indices, of_size in queued:
            for index, is_finite in zip(indices, of_size(), strict=True):
                found[index] = is_finite
        return found

    return all_finite


def _on_slab(states: Sequence[KVState], firsts: Sequence[int]) -> Callable[[], list[bool]]:
    """Of states on pages of one size. A device is given a copy and two launches: an append has so little to compute
    that launches are what it takes. Whose a token is, the host knows.
    """
    layout = next((state for state in states if state.run.pages), states[0]).layout
    assert isinstance(layout, PlainLayout)
    slab = states[0].pool.slab_of(layout.page_tokens)
    layer, size = layout.shape.num_layers - 1, layout.page_tokens
    pages, tokens = [], []
    for state, first in zip(states, firsts, strict=True):
        state.wait(layer)
        own = np.arange(first, state.num_tokens)
        pages.append(np.asarray(state.run.pages, dtype=np.int64)[own // size])
        tokens.append(own)
    ends = np.cumsum([len(own) for own in tokens])
    page, row = to_device(np.stack([np.concatenate(pages), np.concatenate(tokens) % size]), slab.device)
    largest = [_largest(block[page, :, row]) for block in _looked_at(layout, slab, layer)]

    def finite() -> list[bool]:
        spoilt = np.zeros(1 + len(page), dtype=np.int64)
        for numbers in largest:
            spoilt[1:] |= ~np.isfinite(numbers.cpu().numpy())
        before = spoilt.cumsum()
        return [bool(before[end] == before[end - len(own)]) for end, own in zip(ends, tokens, strict=True)]

    return finite


def _largest(numbers: Tensor) -> Tensor:
    """Of each token [num_tokens, ...], by magnitude: not finite if one of them is not."""
    wide = None if numbers.dtype == torch.float64 else torch.float32
    dims = tuple(range(1, numbers.ndim))
    largest: Tensor = torch.linalg.vector_norm(numbers, math.inf, dim=dims, dtype=wide)
    return largest


def _looked_at(layout: PlainLayout, slab: Tensor, layer: int) -> list[Tensor]:
    """Keys and values [num_pages, num_heads, page_tokens, head_dim], or what codes have in their stead, their scales:
    one view of both where they lie one behind the other in heads of one size.
    """
    k, v, k_scales, v_scales = layout.blocks(slab, layer)
    one, other = k if k_scales is None else k_scales, v if v_scales is None else v_scales
    behind = one.storage_offset() + one.stride(1) * one.shape[1]
    if (one.shape, one.stride()) != (other.shape, other.stride()) or other.storage_offset() != behind:
        return [one, other]
    num_pages, num_heads, *rest = one.shape
    return [one.as_strided((num_pages, 2 * num_heads, *rest), one.stride())]
