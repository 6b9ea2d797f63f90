"""Whether what was encoded is made of numbers: a state with NaN or infinity in it spoils every score of its user."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kernels.paged import to_device
from mfalcon.kvcache.state import KVState, PlainLayout


def finiteness(states: Sequence[KVState], firsts: Sequence[int]) -> Callable[[], list[bool]]:
    """Tells whether the tokens of each state from its `first` on have only finite keys and values; see
    `KVState.is_finite`.

    States of a pool of fixed size in torch's layout are looked at in one computation. It is queued now, and waited for
    when the answer is asked for.
    """
    if not states:
        return list
    pool = states[0].pool
    if pool.has_slab and isinstance(pool.layout, PlainLayout):
        spoilt = _on_slab(pool.slab, pool.layout, states, firsts)
        return lambda: [not count for count in spoilt.tolist()]
    finite = [state.is_finite(first) for state, first in zip(states, firsts, strict=True)]
    return lambda: finite


def _on_slab(slab: Tensor, layout: PlainLayout, states: Sequence[KVState], firsts: Sequence[int]) -> Tensor:
    """How many of each state's tokens are not finite in K, and in V: int32 [num_states]."""
    layer, size = layout.shape.num_layers - 1, layout.page_tokens
    pages, rows, owners = [], [], []
    for index, (state, first) in enumerate(zip(states, firsts, strict=True)):
        state.wait(layer)
        tokens = torch.arange(first, state.num_tokens)
        pages.append(torch.tensor(state.run.pages, dtype=torch.int64)[tokens // size])
        rows.append(tokens % size)
        owners.append(torch.full((len(tokens),), index))
    page, row, owner = (to_device(torch.cat(parts).numpy(), slab.device) for parts in (pages, rows, owners))
    k, v, k_scales, v_scales = layout.blocks(slab, layer)
    spoilt = torch.zeros(len(states), dtype=torch.int32, device=slab.device)
    for numbers in (k if k_scales is None else k_scales, v if v_scales is None else v_scales):
        spoilt.index_add_(0, owner, (~torch.isfinite(numbers[page, :, row])).flatten(1).any(1).int())
    return spoilt
