"""Where kernels are tested: on a CUDA device where there is one, else on the CPU, in Triton's interpreter."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""tests/conftest.py says so where torch finds no device."""
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
needs_interpreter = pytest.mark.skipif(
    not INTERPRETED or find_spec("triton") is None, reason="for Triton's interpreter on the CPU"
)


def dtypes() -> list[torch.dtype]:
    """What is worth computing in there. float64 shows errors of order and of masks that float32 hides in rounding, but
    devices for inference multiply it slowly, and triton's products of it need not compile.
    """
    everywhere = [torch.float32, torch.bfloat16, torch.float16]
    return [torch.float64, *everywhere] if INTERPRETED else everywhere


def rounding(dtype: torch.dtype) -> float:
    """How far one rounding takes a number, relative to it: half a unit in the last place.

    Twice that in bfloat16 in the interpreter, which cuts off what it should round.
    """
    cut_off = INTERPRETED and dtype == torch.bfloat16
    return torch.finfo(dtype).eps * (1.0 if cut_off else 0.5)


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory holds NaN, and the largest integer: what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
