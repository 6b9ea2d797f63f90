"""Whether a device is given the kernels for Hopper: only 9.x, and only what agrees there with the plain kernels."""

import sys
from collections.abc import Callable
from functools import cache, partial

import torch

from kernels.gpu.hopper.self_check import Kind, deviation

BOUND = 1e-2
"""Worst difference from the plain kernel, relative to its largest output: sums in another order, of weights of 8 bits
of which a few are rounded to the other side.
"""
FP8_BOUND = 4e-2
"""The same from the definition of float8 products. The unit's tanh is off by 2**-11, so one weight in a hundred has
another last bit of its four, which is up to an eighth of it.
"""


@cache
def usable(device: torch.device, kind: Kind) -> bool:
    """Whether the Hopper kernel computes this on a CUDA device. The first call for a kind compiles and checks it, so it
    must come before a graph is recorded.
    """
    return agrees(kind, torch.cuda.get_device_capability(device), partial(deviation, device))


def agrees(kind: Kind, capability: tuple[int, int], difference: Callable[[Kind], float]) -> bool:
    """Whether a device of this capability is Hopper's, and its kernel differs no more than it may; a failed check says
    so on standard error, in one line.
    """
    if capability[0] != 9:
        return False
    try:
        worst = difference(kind)
    except Exception as error:  # noqa: BLE001 (whatever it is, the plain kernel computes the same)
        reason = f"failed ({type(error).__name__}: {error})".splitlines()[0]
    else:
        if worst <= (FP8_BOUND if kind.fp8 else BOUND):
            return True
        reason = f"differs by {worst:.1e} from what it is to be, so the plain kernel is used instead"
    print(f"triton: the Hopper kernel of {kind} {reason}", file=sys.stderr)
    return False
