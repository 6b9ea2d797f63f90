"""A trainer's tensors by their names there, and which of them were asked for: what is missing and what is left over is
listed by name.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import torch
from torch import Tensor

from mfalcon.errors import CheckpointError

_NAMED, _LONGEST_NAME = 12, 120
_ROW_TAIL_BYTES: Final = 8
"""Scale and offset of a row of 8-bit codes, float32 each, behind its codes."""


class Tensors:
    """A trainer's tensors, and which were asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        """Raises CheckpointError if two tensors have one name without the prefix."""
        self._tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        if len(self._tensors) != len(tensors):
            raise CheckpointError(f"two tensors have one name without the prefix {prefix!r}")
        self._left = set(self._tensors)
        self.missing = list[str]()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def named(self, wanted: Callable[[str], bool]) -> list[str]:
        """Names that are wanted, in order."""
        return sorted(name for name in self._tensors if wanted(name))

    def take(self, name: str, num_dims: int) -> Tensor:
        """A tensor of so many dimensions in float32; an empty one if there is none, which is noted."""
        return self._taken(name, num_dims).float()

    def take_ids(self, name: str) -> Tensor:
        """A vector of int64; as `take`."""
        return self._taken(name, 1).long()

    def take_table(self, name: str, width: int) -> Tensor:
        """A table [num_rows, width] in float32, its 8-bit codes multiplied out if it is of those."""
        table = self._tensors.get(name)
        if table is not None and table.dtype == torch.uint8 and table.shape[-1] == width + _ROW_TAIL_BYTES:
            self._left.discard(name)
            unpacked: Tensor = torch.ops.quantized.embedding_bag_byte_unpack(table)
            return unpacked
        return self.take(name, 2)

    def layers(self, name: str) -> int:
        """How many numbers there are in the place of {} in a name."""
        pattern = re.compile(re.escape(name).replace(r"\{\}", r"(\d+)"))
        return len({int(match[1]) for found in self._tensors if (match := pattern.match(found))})

    def pass_over(self, names: Iterable[str]) -> None:
        """Tensors that nobody uses."""
        self._left -= set(names)

    def is_empty(self, name: str) -> bool:
        """Whether a tensor has no numbers, or is not there."""
        tensor = self._tensors.get(name)
        return tensor is None or not tensor.numel()

    def check(self, problems: list[str]) -> None:
        """Raise CheckpointError with the problems, and unless each tensor that was asked for is there and no other."""
        found = list(problems)
        if self.missing:
            found.append(f"{len(self.missing)} tensors are missing: {first_of(self.missing)}")
        if self._left:
            found.append(f"{len(self._left)} tensors cannot be mapped: {first_of(sorted(self._left))}")
        if found:
            raise CheckpointError("; ".join(found))

    def _taken(self, name: str, num_dims: int) -> Tensor:
        self._left.discard(name)
        tensor = self._tensors.get(name)
        if tensor is None or tensor.ndim != num_dims:
            self.missing.append(name if tensor is None else f"{name} (is {tuple(tensor.shape)})")
            return torch.empty((0,) * num_dims)
        return tensor


def first_of(found: list[str]) -> str:
    """Some names, so that one screen holds them."""
    return ", ".join(name[:_LONGEST_NAME] for name in found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")


def check_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError naming weights that are not of the sizes of a model's, or not finite."""
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    wrong = [
        f"{name} is {tuple(weights[name].shape)}, must be {shape}"
        for name, shape in shapes.items()
        if weights[name].shape != shape
    ]
    if wrong:
        raise CheckpointError(f"{len(wrong)} tensors do not fit the others and --config: {first_of(wrong)}")
    if bad := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(f"{len(bad)} tensors have values that are not finite: {first_of(bad)}")
