"""The end of a model as one call of compiled code: context and dense features, heads, item biases, scores.

As operators of torch this is a dozen calls, of which each gives Python's lock away and waits for it again: two rankers
side by side then wait for each other longer than they compute.
"""

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.library import CReadout, CTargets, FusedUnavailable, Kernel

_OUT_OF_MEMORY, _NOT_FLOAT32, _OUT_OF_RANGE = 1, 2, 3

Affine = tuple[Tensor, Tensor]
"""Weight [columns, depth] and bias [columns] of a linear layer, or of a norm both [dim]."""


@dataclass(frozen=True, slots=True)
class ReadoutWeights:
    """Of a model's end. dense: both layers, None of a model that reads no dense features.

    item_bias: [num_rows, num_tasks]. context: [num_contexts, dim]; first_codes: its row that code 0 of each feature is.
    is_binary, centers: of each task; a task that is not binary has its center added.
    """

    norm: Affine
    norm_eps: float
    first: Affine
    last: Affine
    dense: tuple[Affine, Affine] | None
    item_bias: Tensor
    context: Tensor | None
    first_codes: Sequence[int]
    is_binary: Sequence[bool]
    centers: Sequence[float]


class FusedReadout:
    """Scores of hidden targets. Safe to use from several threads: it never changes."""

    def __init__(self, kernel: Kernel, weights: ReadoutWeights) -> None:
        """Raises ValueError for weights that do not fit, FusedUnavailable for a kernel that is not of float32."""
        self._kernel = kernel
        hidden, self._dim = weights.first[0].shape
        self.num_tasks, self._num_features = len(weights.is_binary), 0
        dense = weights.dense
        dense_hidden = 0
        if dense is not None:
            dense_hidden, self._num_features = dense[0][0].shape
        self._num_codes = len(weights.first_codes)
        context = weights.context
        self._item_bias = _floats("item_bias", weights.item_bias, (len(weights.item_bias), self.num_tasks))
        self._context = None if context is None else _floats("context", context, (len(context), self._dim))
        alive: list[Tensor] = []

        def pointers(name: str, affine: Affine | None, *shape: int) -> dict[str, int | None]:
            if affine is None:
                return {f"{name}_weight": None, f"{name}_bias": None}
            weight, bias = _floats(name, affine[0], shape), _floats(name, affine[1], shape[:1])
            alive.extend((weight, bias))
            return {f"{name}_weight": weight.data_ptr(), f"{name}_bias": bias.data_ptr()}

        alive += [torch.tensor(list(weights.first_codes)), torch.tensor(list(weights.is_binary)).long()]
        first_codes, is_binary, centers = alive[0], alive[1], torch.tensor(list(weights.centers), dtype=torch.float32)
        config = CReadout(
            dim=self._dim,
            hidden=hidden,
            num_tasks=self.num_tasks,
            num_features=self._num_features,
            dense_hidden=dense_hidden,
            num_codes=self._num_codes,
            num_contexts=0 if self._context is None else len(self._context),
            num_rows=len(self._item_bias),
            norm_eps=weights.norm_eps,
            **pointers("norm", weights.norm, self._dim),
            **pointers("first", weights.first, hidden, self._dim),
            **pointers("last", weights.last, self.num_tasks, hidden),
            **pointers("dense_first", dense and dense[0], dense_hidden, self._num_features),
            **pointers("dense_last", dense and dense[1], self._dim, dense_hidden),
            item_bias=self._item_bias.data_ptr(),
            context=None if self._context is None else self._context.data_ptr(),
            first_codes=first_codes.data_ptr(),
            is_binary=is_binary.data_ptr(),
            centers=centers.data_ptr(),
        )
        self._handle = ctypes.c_void_p()
        _done(kernel.readout_new(ctypes.byref(config), ctypes.byref(self._handle)))
        weakref.finalize(self, kernel.readout_free, self._handle).atexit = False

    def __call__(self, hidden: Tensor, rows: Tensor, codes: Tensor, features: Tensor | None) -> Tensor:
        """hidden: float32 [num_targets, dim]; rows: int64 [num_targets]; codes: int64 [num_codes] of all, or of each
        [num_targets, num_codes]; features: float32 [num_targets, num_features], None where none are given; scores
        [num_targets, num_tasks] of it.

        Raises ValueError, and IndexError for a row or a code that there is not.
        """
        num, out = len(rows), torch.empty(len(rows), self.num_tasks)
        hidden = _given("hidden", hidden, torch.float32, (num, self._dim))
        rows = _given("rows", rows, torch.int64, (num,))
        stride = self._num_codes if codes.ndim == 2 else 0
        codes = _given("codes", codes, torch.int64, (*([num] if codes.ndim == 2 else []), self._num_codes))
        pointer = None
        if features is not None and self._num_features:
            features = _given("features", features, torch.float32, (num, self._num_features))
            pointer = features.data_ptr()
        targets = CTargets(hidden.data_ptr(), rows.data_ptr(), codes.data_ptr(), stride, num, pointer, out.data_ptr())
        _done(self._kernel.readout(self._handle, ctypes.byref(targets), torch.get_num_threads()))
        return out


def _floats(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return _given(name, tensor.detach().float(), torch.float32, shape)


def _given(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A contiguous tensor on the CPU."""
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
        found = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
        raise ValueError(f"{name}: {found}, must be {dtype} {shape} on the CPU")
    return tensor.contiguous()


def _done(result: int) -> None:
    if result == _NOT_FLOAT32:
        raise FusedUnavailable("this fused kernel does not compute in float32")
    if result == _OUT_OF_RANGE:
        raise IndexError("an item's row or a context code is out of range")
    if result == _OUT_OF_MEMORY:
        raise MemoryError("the fused kernel ran out of memory")
