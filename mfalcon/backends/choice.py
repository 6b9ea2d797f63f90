"""Which backend computes a stack of layers here: by device, dtype and a self-check, or the one that is asked for.

Nothing falls back silently: a choice says what was passed over and why, and a backend that was asked for by name is
that one or an error.
"""

from dataclasses import dataclass

import torch

from kernels.cpu import build_library
from kernels.cpu import check as cpu_check
from kernels.cpu.library import FusedUnavailable, Kernel
from kernels.gpu import check as gpu_check

REFERENCE, FUSED, TRITON, TRITON_PLAIN, AUTO = "reference", "fused", "triton", "triton_plain", "auto"
NAMES = (AUTO, REFERENCE, FUSED, TRITON, TRITON_PLAIN, *build_library.POLICIES)
"""What may be asked for. `fused` is the fastest policy of the dtype; the policies can be asked for by name.
`triton_plain` is `triton` without its kernels for Hopper.
"""
ON_DEVICE = frozenset({TRITON, TRITON_PLAIN})
"""Those whose pages lie on a CUDA device."""

_ELEMENTS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_SLOW = frozenset({"portable_f32", "portable_bf16"})
"""Policies that are taken only by name: they run anywhere, and no faster than torch."""


class BackendUnavailable(RuntimeError):
    """The backend that was asked for cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend by name, its compiled kernel if it is a fused one, and the better ones that were passed over."""

    name: str
    kernel: Kernel | None = None
    unavailable: tuple[str, ...] = ()


def choose(asked: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """The backend for stacks of this dtype on this device. Raises BackendUnavailable, never for AUTO or REFERENCE."""
    if asked not in NAMES:
        raise BackendUnavailable(f"backend: got {asked!r}, must be one of {', '.join(NAMES)}")
    unavailable: list[str] = []
    for name in _candidates(asked, device, dtype):
        try:
            return Choice(name, _loaded(name, device, dtype), tuple(unavailable))
        except (FusedUnavailable, gpu_check.GpuUnavailable, BackendUnavailable) as error:
            unavailable.append(str(error))
    reasons = "; ".join(unavailable) or f"no compiled kernel computes in {dtype}"
    raise BackendUnavailable(f"backend {asked}: {reasons}")


def runnable(device: torch.device, dtype: torch.dtype) -> list[Choice]:
    """Every backend that can run here, the preferred one first."""
    found = []
    for name in (*((TRITON,) if device.type == "cuda" else _policies(dtype, slow=True)), REFERENCE):
        try:
            found.append(choose(name, device, dtype))
        except BackendUnavailable:
            continue
    return found


def _candidates(asked: str, device: torch.device, dtype: torch.dtype) -> list[str]:
    if asked == AUTO and device.type == "cuda":
        return [TRITON, REFERENCE]
    if asked == AUTO:
        return [*_policies(dtype), REFERENCE]
    return _policies(dtype) if asked == FUSED else [asked]


def _policies(dtype: torch.dtype, *, slow: bool = False) -> list[str]:
    """The fastest first."""
    return [
        name
        for name, policy in build_library.POLICIES.items()
        if policy.element == _ELEMENTS.get(dtype) and (slow or name not in _SLOW)
    ]


def _loaded(name: str, device: torch.device, dtype: torch.dtype) -> Kernel | None:
    if name == REFERENCE:
        return None
    if name in ON_DEVICE:
        gpu_check.check(device, dtype)
        return None
    if device.type != "cpu":
        raise BackendUnavailable(f"{name}: computes on the CPU, not on {device}")
    if dtype not in _ELEMENTS:
        raise BackendUnavailable(f"{name}: computes in {' or '.join(_ELEMENTS.values())}, not in {dtype}")
    if build_library.POLICIES[name].element != _ELEMENTS[dtype]:
        raise BackendUnavailable(f"{name}: computes in {build_library.POLICIES[name].element}, not in {dtype}")
    return cpu_check.load(name)
