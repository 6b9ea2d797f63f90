"""Linear layers for the fused CPU kernel's matrix product: weights packed once, rows in float32.

torch's float32 product goes through MKL, which on AMD computes at AVX2's speed: 112 GFLOP/s a core of the 271 that
AVX-512 has there. This one is the product of the stacks, so a row's sums have one order whatever stands beside it.
"""

import ctypes
import weakref

import torch
from torch import Tensor

from kernels.cpu.library import CRows, FusedUnavailable, Kernel

_OUT_OF_MEMORY, _NOT_FLOAT32 = 1, 2


class FusedLinear:
    """y = x W^T + b. Safe to use from several threads: it never changes."""

    def __init__(self, kernel: Kernel, weight: Tensor, bias: Tensor | None = None) -> None:
        """weight: [columns, depth]; bias: [columns]. Raises ValueError, and FusedUnavailable for a kernel whose
        elements are not float32.
        """
        _require(weight.ndim == 2 and weight.numel() > 0, f"weight: {tuple(weight.shape)}, must be [columns, depth]")
        self._kernel = kernel
        self.columns, self.depth = weight.shape
        weight = weight.detach().float().contiguous()
        bias = None if bias is None else self._bias(bias.detach().float())
        handle = ctypes.c_void_p()
        pointer = None if bias is None else bias.data_ptr()
        _done(kernel.linear_new(weight.data_ptr(), pointer, self.depth, self.columns, ctypes.byref(handle)))
        self._handle = handle
        weakref.finalize(self, kernel.linear_free, handle).atexit = False

    def __call__(
        self,
        x: Tensor,
        out: Tensor | None = None,
        *,
        relu: bool = False,
        bias: Tensor | None = None,
        factor: Tensor | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """x: [rows, depth] -> out: [rows, columns]: y, max(y, 0) if `relu`, or factor * y + before.

        Rows may lie apart. bias: [columns], in the place of the layer's own. factor and before: [rows, columns], given
        together; `before` may be `out`. Raises ValueError.
        """
        rows = x.shape[0] if x.ndim else 0
        out = torch.empty(rows, self.columns) if out is None else out
        of_x, to = _rows("x", x, rows, self.depth), _rows("out", out, rows, self.columns)
        _require((factor is None) == (before is None), "factor, before: only one is given")
        _require(factor is None or not relu, "relu: not with factor")
        none = CRows(None, 0)
        scaled = none if factor is None else _rows("factor", factor, rows, self.columns)
        added = none if before is None else _rows("before", before, rows, self.columns)
        bias = None if bias is None else self._bias(bias)
        pointers = [ctypes.byref(each) for each in (scaled, added, to)]
        threads = torch.get_num_threads()
        start = None if bias is None else bias.data_ptr()
        _done(self._kernel.linear(self._handle, ctypes.byref(of_x), rows, start, int(relu), *pointers, threads))
        return out

    def _bias(self, bias: Tensor) -> Tensor:
        fits = bias.shape == (self.columns,) and bias.dtype == torch.float32 and bias.device.type == "cpu"
        _require(fits, f"bias: {tuple(bias.shape)} {bias.dtype} on {bias.device}, must be float32 [{self.columns}]")
        return bias.contiguous()


def _rows(name: str, tensor: Tensor, rows: int, columns: int) -> CRows:
    fits = tensor.shape == (rows, columns) and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
    found = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
    _require(fits, f"{name}: {found}, must be float32 [{rows}, {columns}] on the CPU")
    dense = columns == 1 or tensor.stride(1) == 1 or rows == 0
    _require(dense, f"{name}: numbers of a row are {tensor.stride(1)} apart, must lie side by side")
    return CRows(tensor.data_ptr(), tensor.stride(0))


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _done(result: int) -> None:
    if result == _NOT_FLOAT32:
        raise FusedUnavailable("this fused kernel does not compute in float32")
    if result == _OUT_OF_MEMORY:
        raise MemoryError("the fused kernel ran out of memory")
