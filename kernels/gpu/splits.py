"""Over how many programs to split a tile's prefix: as many as end soonest on the multiprocessors there are."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from kernels.gpu import configs
from kernels.gpu.configs import AttentionConfig, Device

MOST = 16
_LEAST_TOKENS = 256
"""Prefix tokens that are worth a program."""
_FIXED_BLOCKS = 2.5
"""What a program costs beside its blocks of keys, in blocks: its start, its queries, its part of the output."""
_REGISTERS = 65_536
"""Of a multiprocessor."""
_OTHER_REGISTERS = 64
"""Of a thread, beside its share of the two sums: addresses, operands, weights. Between 48 and 112 were compiled."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What attention computes with. num_bytes: of the compute dtype. head_dim: the larger of both, padded or not."""

    num_bytes: int
    head_dim: int
    device: torch.device


def num_splits(op: str, num_programs: int, prefix_len: int, tile_rows: int, numbers: Numbers) -> int:
    """For tiles times heads over the longest prefix of a batch, in tokens. op: as for `configs.attention_rule`."""
    where = configs.device(numbers.device) if numbers.device.type == "cuda" else configs.INTERPRETER
    return splits_on(where, op, num_programs, prefix_len, numbers.num_bytes, numbers.head_dim, tile_rows)


def classes(op: str, num_programs: int, most_len: int, tile_rows: int, numbers: Numbers) -> list[int]:
    """Every number that `num_splits` takes for prefixes of 256 tokens, 512 and so on up to the longest; ascending."""
    return sorted({num_splits(op, num_programs, n, tile_rows, numbers) for n in _lengths(most_len)})


@lru_cache(4_096)
def splits_on(
    where: Device, op: str, num_programs: int, prefix_len: int, num_bytes: int, head_dim: int, tile_rows: int
) -> int:
    """`num_splits` on this device. Of numbers that end equally soon it is the least, so that every split has work."""
    padded = max(16, 1 << (head_dim - 1).bit_length())
    config = configs.attention(op, where, num_bytes, padded, tile_rows)
    blocks = -(-prefix_len // config.block_n)
    slots = where.num_sms * programs_that_fit(where, config, num_bytes, padded, tile_rows)
    most = max(1, min(MOST, prefix_len // _LEAST_TOKENS))

    def ends(splits: int) -> float:
        return -(-num_programs * splits // slots) * (-(-blocks // splits) + _FIXED_BLOCKS)

    return min(range(1, most + 1), key=ends)


def programs_that_fit(where: Device, config: AttentionConfig, num_bytes: int, head_dim: int, tile_rows: int) -> int:
    """Programs that run at a time on one multiprocessor, for padded heads: by shared memory and registers."""
    shared = configs.shared_bytes(where.architecture, config, num_bytes, head_dim, tile_rows)
    by_shared = 1024 * (configs.SHARED_KIB.get(where.architecture, 99) + 1) // (shared + 1024)
    threads = 32 * config.num_warps
    sums = tile_rows * (head_dim + config.block_n) // threads
    by_registers = _REGISTERS // (threads * min(255, sums + _OTHER_REGISTERS))
    return max(1, min(by_shared, by_registers))


def _lengths(most: int) -> Iterator[int]:
    length = _LEAST_TOKENS
    while length < most:
        yield length
        length *= 2
    yield most
