"""What kernels are launched with, apart from sizes: to hold that tests compute only what is compiled ahead of time."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest import mock

import torch
from triton.runtime.interpreter import InterpretedFunction

from kernels.gpu.aot_cases import cases
from kernels.gpu.launch import tile_rows_for

_SIZES = {
    "LOGIT_SCALE",
    "NORM",
    "EPS",
    "MAX",
    "QK_DIM",
    "V_DIM",
    "QK_PAD",
    "V_PAD",
    "NUM_IN",
    "DIM",
    "PAD",
    "PAGE",
    "NUM_HEADS",
}
_SIZES |= {"OFFSET", "SPAN", "BLOCK", "ITEMS"}
_SIZES |= {"ROWS", "STEPS", "BLOCK_N", "BLOCK_K", "ACC", "FAST", "UPCAST", "num_warps", "num_stages"}
"""Constants of a kernel that are sizes or numbers, or follow from the types: any other is a choice."""

_SHORT, _HEAD_DIM = 2, 128
"""Bytes of a number and size of a head, for which tiles have every height."""


@dataclass(frozen=True, slots=True)
class Launch:
    """types: of the tensors, in their order; none where the first is not bfloat16, for which everything is compiled.
    choices: of the kernel's constants, with their values. tile_rows: None where no request decides on them.
    """

    kernel: str
    types: tuple[torch.dtype, ...]
    choices: tuple[tuple[str, bool | int], ...]
    tile_rows: int | None


def launch_of(kernel: str, arguments: Iterable[object], constants: dict[str, Any]) -> Launch:
    """As a kernel is called: tensors and numbers by position, constants by name."""
    known = {name: value for name, value in constants.items() if name not in _SIZES}
    tile_rows = known.pop("BLOCK_M", None)
    if "NUM_SILU" in known:  # how many columns is a size
        known |= {"NUM_SILU": known["NUM_SILU"] > 0}
    types = tuple(argument.dtype for argument in arguments if isinstance(argument, torch.Tensor))
    if types[0] != torch.bfloat16 and torch.bfloat16 not in types[1:]:
        types = ()
    return Launch(kernel, types, tuple(sorted(known.items())), None if kernel == "linear_kernel" else tile_rows)


@contextmanager
def watched(seen: Callable[[Launch], None], *, compute: bool = True) -> Iterator[None]:
    """Tell of every launch in Triton's interpreter. compute: whether the interpreter still computes it."""
    right = InterpretedFunction.run

    def run(kernel: Any, *arguments: object, grid: object, warmup: bool, **constants: Any) -> None:
        seen(launch_of(kernel.fn.__name__, arguments, constants))
        if compute:
            right(kernel, *arguments, grid=grid, warmup=warmup, **constants)

    with mock.patch.object(InterpretedFunction, "run", run):
        yield


@cache
def compiled(architecture: int) -> frozenset[Launch]:
    """All that the gate compiles for an architecture in Triton; Gluon's kernels are not interpreted."""
    found: set[Launch] = set()
    with watched(found.add, compute=False):
        for case in cases(architecture):
            if " hopper " not in case.key:
                case.call()
    return frozenset(found | {replace(launch, types=()) for launch in found})


def in_production(launch: Launch) -> set[Launch]:
    """A launch of a small test, in the tiles of every height that larger requests have, or for few rows and many."""
    choices = dict(launch.choices)
    if "AT_ONCE" in choices:
        at_once = {1, 4, choices["AT_ONCE"]}
        return {replace(launch, choices=tuple(sorted((choices | {"AT_ONCE": n}).items()))) for n in at_once}
    if launch.tile_rows is None:
        return {launch}
    return {replace(launch, tile_rows=tile_rows_for(rows, _SHORT, _HEAD_DIM)) for rows in (16, 64, 128)}
