"""The compiled libraries of the fused CPU kernel: which ones this processor can run, and their C interface.

The structures mirror `kernels/cpu/abi.h`.
"""

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from kernels import cpu_build

_ABI = 1
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FusedUnavailable(RuntimeError):
    """No library of this policy that this processor can run, or one that computes wrongly."""


class CConfig(ctypes.Structure):
    """MfConfig."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_layers", "num_heads", "dim", "qk_dim", "v_dim", "num_positions")),
        *((name, ctypes.c_int64) for name in ("num_buckets", "activate_all", "concat")),
        *((name, ctypes.c_double) for name in ("attention_norm", "logit_scale", "norm_eps")),
    )


class CLayer(ctypes.Structure):
    """MfLayer."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("norm_in_weight", "norm_in_bias", "uvqk_weight", "uvqk_bias", "norm_out_weight", "norm_out_bias"),
            *("output_weight", "output_bias", "position", "time"),
        )
    )


class CCache(ctypes.Structure):
    """MfCache."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("k", "v", "times")),
        ("capacity", ctypes.c_int64),
    )


class CGeometry(ctypes.Structure):
    """MfGeometry."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("abi", "element_bytes", "dim_step", "capacity_step"))


class Kernel:
    """A loaded library. Make one with `kernels.fused.load`, which checks it."""

    def __init__(self, policy: cpu_build.Policy, path: Path) -> None:
        self.policy = policy
        self.dtype = _DTYPES[policy.element]
        library = ctypes.CDLL(str(path))
        pointer, number, result = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        self.stack_new = _function(library, "mf_stack_new", result, pointer, pointer, pointer, pointer)
        self.stack_free = _function(library, "mf_stack_free", None, pointer)
        self.score = _function(
            library, "mf_score", result, pointer, pointer, number, number, pointer, pointer, number, number, number
        )
        self.extend = _function(
            library, "mf_extend", result, pointer, pointer, number, pointer, pointer, number, number
        )
        self.import_plain = _function(library, "mf_import", result, pointer, pointer, number, pointer, pointer, number)
        self.export_plain = _function(library, "mf_export", None, pointer, pointer, number, pointer, pointer, number)
        self.copy = _function(library, "mf_copy", None, pointer, pointer, pointer, number)
        geometry = CGeometry()
        _function(library, "mf_geometry", None, pointer)(ctypes.byref(geometry))
        if geometry.abi != _ABI or geometry.element_bytes != self.dtype.itemsize:
            raise FusedUnavailable(f"{path.name}: interface {geometry.abi}, this Python speaks {_ABI}")
        self.dim_step: int = geometry.dim_step
        self.capacity_step: int = geometry.capacity_step


def _function(library: ctypes.CDLL, name: str, result: type | None, *arguments: type) -> Callable[..., int]:
    function = library[name]
    function.restype = result
    function.argtypes = arguments
    return function


def available(sanitize: str = "") -> list[str]:
    """Policies that are compiled and that this processor can run, the fastest first."""
    flags = cpu_flags()
    return [
        name
        for name, policy in cpu_build.POLICIES.items()
        if policy.cpu_flags <= flags and cpu_build.library_path(policy, sanitize).exists()
    ]


def cpu_flags() -> frozenset[str]:
    """Names of /proc/cpuinfo; none on other processors than x86."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())
