"""Block sizes, warps and pipeline depth of the kernels: stored ahead by device name, else by rule; never tuned in a
request.

A stored file, `tuned/<device name>.json`, maps "op/bytes/head_dim/tile_rows" (attention) and
"linear/bytes/rows/columns" to a config, for a projection perhaps {"library": true}; `mfalcon bench kernels --tune`
writes it. The rules fit each architecture's shared memory without spills (`kernels.gpu.aot` holds them to that).
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, TypeAlias

import torch

TUNED = Path(__file__).parent / "tuned"
SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99}
"""Shared memory of a program by architecture (CUDA C programming guide, compute capabilities)."""


@dataclass(frozen=True, slots=True)
class Device:
    """name: as the driver says. architecture: compute capability, 90 for 9.0. num_sms: its multiprocessors."""

    name: str
    architecture: int
    num_sms: int


INTERPRETER: Final = Device("interpreter", 90, 1)


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """block_n: keys of a tile."""

    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """Block of rows, of columns and of what is summed over."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Library:
    """A projection by `torch.addmm`, thus cuBLAS; SiLU, or a second addend, then passes over its output once more."""

    library: bool = True


Projection: TypeAlias = LinearConfig | Library


@cache
def device(which: torch.device) -> Device:
    """A CUDA device."""
    properties = torch.cuda.get_device_properties(which)
    return Device(properties.name, 10 * properties.major + properties.minor, properties.multi_processor_count)


@cache
def attention(op: str, where: Device, num_bytes: int, head_dim: int, tile_rows: int) -> AttentionConfig:
    """For numbers of so many bytes, padded heads and tiles of so many rows."""
    stored = _stored(where.name).get(f"{op}/{num_bytes}/{head_dim}/{tile_rows}")
    if stored is not None:
        return AttentionConfig(**stored)
    return attention_rule(op, where.architecture, num_bytes, head_dim, tile_rows)


def linear(where: Device, num_bytes: int, num_rows: int, num_out: int) -> Projection:
    """For numbers of so many bytes; rows in classes of powers of two. Nothing but a measurement chooses the library."""
    return _linear(where, num_bytes, 1 << (num_rows - 1).bit_length(), num_out)


@cache
def _linear(where: Device, num_bytes: int, rows: int, num_out: int) -> Projection:
    stored = _stored(where.name).get(f"linear/{num_bytes}/{rows}/{num_out}")
    if stored is None:
        return linear_rule(where.architecture, num_bytes, rows)
    return Library() if "library" in stored else LinearConfig(**stored)


def most_tile_rows(num_bytes: int, head_dim: int) -> int:
    """Rows of the largest tile whose sums stay in registers, for padded heads."""
    if num_bytes > 2:
        return 64 if head_dim <= 128 else 16
    return 128 if head_dim <= 128 else 64


def attention_rule(op: str, architecture: int, num_bytes: int, head_dim: int, tile_rows: int) -> AttentionConfig:
    """Where nothing was measured. op: "prefix_attention_bias" for `prefix_attention` with a bias, else its name; with
    "_codes" behind it where K and V stand in codes.
    """
    plain_op, codes = op.removesuffix("_codes"), op.endswith("_codes")
    if num_bytes > 2:  # products without tensor cores: what counts is registers
        if tile_rows < 64 and head_dim <= 64:
            return AttentionConfig(32, 4, 1)  # with two stages ptxas spills on 9.0
        num_warps = 4 if tile_rows < 64 else (8 if head_dim <= 64 else 16)
        return AttentionConfig(32 if plain_op == "prefix_attention_bias" and head_dim <= 64 else 16, num_warps, 2)
    num_warps, most_stages = 4, 4
    if tile_rows < 64:
        block_n = 32 if head_dim > 128 else 64
    elif plain_op == "prefix_attention_bias":  # places in two tables for every element
        block_n, num_warps = 16 if tile_rows > 64 and head_dim > 64 else 32, 8
    elif head_dim > 128:
        block_n, num_warps = 64 if architecture >= 90 else 32, 8
    elif tile_rows > 64:
        block_n, num_warps = 64, 8
        if architecture < 90 and head_dim > 64:  # sums and queries take half of the registers, codes most of the rest
            block_n, most_stages = (16, 4) if codes else (32, 2)
    elif architecture < 90:  # 16 where shared memory would hold one stage of 32 for two programs
        block_n = 16 if head_dim > 64 and SHARED_KIB.get(architecture, 99) < 128 else 32
    else:
        block_n = 32 if codes and head_dim > 64 else 64
    programs = 2 if head_dim <= 128 and tile_rows <= 64 else 1
    shared = 1024 * ((SHARED_KIB.get(architecture, 99) + 1) // programs - 1)
    stages = _stages(architecture, num_bytes, head_dim, tile_rows, block_n, shared)
    return AttentionConfig(block_n, num_warps, min(stages, most_stages))


def shared_bytes(architecture: int, config: AttentionConfig, num_bytes: int, head_dim: int, tile_rows: int) -> int:
    """Shared memory of a program, for padded heads, at most: mma.sync may need less."""
    stages = config.num_stages if _is_wgmma(architecture, tile_rows) else config.num_stages - 1
    fixed = _fixed_bytes(architecture, num_bytes, head_dim, tile_rows, config.block_n)
    return fixed + stages * 2 * num_bytes * config.block_n * head_dim


def _is_wgmma(architecture: int, tile_rows: int) -> bool:
    return architecture >= 90 and tile_rows >= 64


def _fixed_bytes(architecture: int, num_bytes: int, head_dim: int, tile_rows: int, block_n: int) -> int:
    """What stands in shared memory beside the stages: queries, and weights where these pass through it."""
    return num_bytes * tile_rows * (head_dim if _is_wgmma(architecture, tile_rows) else head_dim + block_n)


def _stages(architecture: int, num_bytes: int, head_dim: int, tile_rows: int, block_n: int, shared: int) -> int:
    """Deepest pipeline, of 2 to 4 stages, in so many bytes of shared memory beside the queries. wgmma reads its
    operands there; mma.sync takes them out of a stage before that is filled anew, and the weights may pass through.
    """
    wgmma = _is_wgmma(architecture, tile_rows)
    fits = (shared - _fixed_bytes(architecture, num_bytes, head_dim, tile_rows, block_n)) // (
        2 * num_bytes * block_n * head_dim
    )
    return max(2, min(4, fits if wgmma else fits + 1))


def linear_rule(architecture: int, num_bytes: int, num_rows: int) -> LinearConfig:
    """Where nothing was measured."""
    if num_bytes > 2:
        return LinearConfig(32, 64, 32, 4, 2)
    if num_rows <= 64:
        return LinearConfig(16 if num_rows <= 16 else 64, 64, 64, 4, 4)
    if num_rows <= 1024:  # rather more programs than larger ones
        return LinearConfig(64, 128, 64, 4, 3)
    return LinearConfig(128, 128, 64, 8, 3)


@cache
def _stored(name: str) -> dict[str, dict[str, int]]:
    path = TUNED / f"{name.replace(' ', '_')}.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}
