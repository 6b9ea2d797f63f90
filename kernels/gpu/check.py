"""Whether the Triton kernels can run here, in a dtype; this file and its words need no Triton."""

from functools import cache
from importlib.util import find_spec

import torch

from kernels.reach import Reach
from kernels.sample_stack import Form

BOUNDS = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Worst difference from `kernels.reference` in float32, relative to the largest output: sums in another order; 11 and 8
bits, over two layers.
"""


class GpuUnavailable(RuntimeError):
    """The Triton kernels cannot run here; the message says why."""


@cache
def check(device: torch.device, dtype: torch.dtype, *, softmax: bool = False) -> None:
    """Raises GpuUnavailable unless the kernels agree with the reference on this device and in this dtype. softmax:
    those of softmax and of rotary positions, else all others.

    In Triton's interpreter, which is for tests, nothing is held against the reference, and float64 will do.
    """
    if find_spec("triton") is None:
        raise GpuUnavailable("triton: not installed (pip install triton, or the extra: gpu)")
    from kernels.gpu.interpreter import interpreted  # noqa: PLC0415 (triton is an extra)
    from kernels.gpu.self_check import deviation  # noqa: PLC0415 (as above)

    if device.type != "cuda":
        if not interpreted():
            raise GpuUnavailable(f"triton: computes on CUDA devices, not on {device}")
        return
    if not torch.cuda.is_available():
        raise GpuUnavailable("triton: torch finds no CUDA device here")
    if dtype not in BOUNDS:
        raise GpuUnavailable(f"triton: computes in float32, bfloat16 and float16, not in {dtype}")
    plain = Form(), Form(concat=True, reach=(Reach(7, 40, 5), None))
    for form in (Form(softmax=True),) if softmax else plain:
        try:
            worst = deviation(device, dtype, form)
        except Exception as error:
            raise GpuUnavailable(f"triton: its self-check in {dtype} failed: {error}") from error
        if not worst <= BOUNDS[dtype]:
            raise GpuUnavailable(f"triton: differs from the reference by {worst:.1e} in its self-check in {dtype}")
