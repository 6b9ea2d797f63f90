"""What an open vocabulary takes and gives for so many ids: memory, what a plain table would take, and how often ids
share their vectors. No torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mfalcon.models.config_features import EmbeddingConfig

_NUMBER_BYTES = 4
_PRIME, _OF_BLOCK = 2_038_074_743, 1_825_252_241
"""Of robe-v0 (`kernels.shared_table`)."""


@dataclass(frozen=True, slots=True)
class TableSize:
    """num_ids x dim: the virtual table. compression: its parameters to those of the array. block_shared: how likely a
    block of an id's vector begins where one of another's does; vector_shared: that its whole vector is another's;
    two_hashes_equal: that of so many ids that are hashed to 64 bits any two have one number.
    """

    num_ids: int
    dim: int
    virtual_parameters: int
    virtual_bytes: int
    array_bytes: int
    compression: float
    block_shared: float
    vector_shared: float
    two_hashes_equal: float


def table_size(config: EmbeddingConfig, dim: int, num_ids: int) -> TableSize:
    """Of a shared table, for ids that are as good as random."""
    block = min(config.block, dim)
    span, num_blocks, others = config.num_numbers - block + 1, -(-dim // block), max(0, num_ids - 1)
    if config.kind == "robe-v0":
        shares = _published_shares(num_blocks)
        vector_shared = sum(share * -math.expm1(-others * share / span) for share in shares)
    else:
        vector_shared = -math.expm1(-others * math.exp(-num_blocks * math.log(span)))
    return TableSize(
        num_ids=num_ids,
        dim=dim,
        virtual_parameters=num_ids * dim,
        virtual_bytes=num_ids * dim * _NUMBER_BYTES,
        array_bytes=config.num_numbers * _NUMBER_BYTES,
        compression=num_ids * dim / config.num_numbers,
        block_shared=-math.expm1(-others / span),
        vector_shared=vector_shared,
        two_hashes_equal=-math.expm1(-num_ids * others / 2**65),
    )


def _published_shares(num_blocks: int) -> Sequence[float]:
    """Of the hashes of robe-v0 whose blocks pass its prime as often as each other's: two that begin at one place share
    all blocks if they are of one part, else they part where one of them passes it.
    """
    edges = sorted({0, *(-block * _OF_BLOCK % _PRIME for block in range(num_blocks)), _PRIME})
    return [(stop - start) / _PRIME for start, stop in pairwise(edges)]
