"""The compiled libraries of the fused CPU kernel: which ones this processor can run, and their C interface.

The structures mirror `kernels/cpu/src/abi.h`.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from kernels.cpu import build_library

_ABI = 8
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FusedUnavailable(RuntimeError):
    """No library of this policy that this processor can run, or one that computes wrongly."""


class CConfig(ctypes.Structure):
    """MfConfig."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_layers", "num_heads", "dim", "qk_dim", "v_dim", "num_positions")),
        *((name, ctypes.c_int64) for name in ("num_buckets", "page_tokens", "int8", "activate_all", "concat")),
        ("softmax", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("attention_norm", "logit_scale", "norm_eps", "rotary_base")),
    )


class CLayer(ctypes.Structure):
    """MfLayer."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("norm_in_weight", "norm_in_bias", "uvqk_weight", "uvqk_bias", "norm_out_weight", "norm_out_bias"),
                *("output_weight", "output_bias", "position", "time"),
            )
        ),
        *((name, ctypes.c_int64) for name in ("reach_tokens", "reach_targets", "reach_first")),
    )


class CRows(ctypes.Structure):
    """MfRows."""

    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64))


class CReadout(ctypes.Structure):
    """MfReadout."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dim", "hidden", "num_tasks", "num_features", "dense_hidden")),
        *((name, ctypes.c_int64) for name in ("num_codes", "num_contexts", "num_rows")),
        ("norm_eps", ctypes.c_double),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("norm_weight", "norm_bias", "first_weight", "first_bias", "last_weight", "last_bias"),
                *("dense_first_weight", "dense_first_bias", "dense_last_weight", "dense_last_bias"),
                *("item_bias", "context", "first_codes", "is_binary", "centers"),
            )
        ),
    )


class CTargets(ctypes.Structure):
    """MfTargets."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("hidden", "rows", "codes")),
        *((name, ctypes.c_int64) for name in ("codes_stride", "num_targets")),
        *((name, ctypes.c_void_p) for name in ("features", "out")),
    )


class CSharedTable(ctypes.Structure):
    """MfSharedTable."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("span", "block", "dim", "element_bytes", "offset", "mixes")),
    )


class CGeometry(ctypes.Structure):
    """MfGeometry."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("abi", "element_bytes", "page_step", "small_page"))


class Kernel:
    """A loaded library. Make one with `kernels.cpu.check.load`, which checks it."""

    def __init__(self, policy: build_library.Policy, path: Path) -> None:
        self.policy = policy
        self.dtype = _DTYPES[policy.element]
        library = ctypes.CDLL(str(path))
        pointer, number, result = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
        self.stack_new = _function(library, "mf_stack_new", result, pointer, pointer, pointer, pointer)
        self.stack_on_pages = _function(library, "mf_stack_on_pages", result, pointer, number, pointer)
        self.stack_free = _function(library, "mf_stack_free", None, pointer)
        self.score = _function(
            library, "mf_score", result, pointer, pointer, number, number, pointer, pointer, number, number, number
        )
        self.extend = _function(
            library, "mf_extend", result, pointer, pointer, number, pointer, pointer, number, number
        )
        tokens_of_layer = (pointer, pointer, number, number, pointer, pointer, number)
        self.read = _function(library, "mf_read", None, *tokens_of_layer)
        self.write = _function(library, "mf_write", result, *tokens_of_layer)
        self.copy = _function(library, "mf_copy", result, pointer, pointer, pointer, pointer, number)
        self.finite = _function(library, "mf_finite", result, pointer, pointer, number, number, number)
        self.page_bytes = _function(library, "mf_page_bytes", number, pointer)
        self.linear_new = _function(library, "mf_linear_new", result, pointer, pointer, number, number, pointer)
        self.linear_free = _function(library, "mf_linear_free", None, pointer)
        self.linear = _function(
            library, "mf_linear", result, pointer, pointer, number, pointer, number, *(3 * (pointer,)), number
        )
        self.readout_new = _function(library, "mf_readout_new", result, pointer, pointer)
        self.readout_free = _function(library, "mf_readout_free", None, pointer)
        self.readout = _function(library, "mf_readout", result, pointer, pointer, number)
        self.shared_rows = _function(library, "mf_shared_rows", result, pointer, pointer, number, pointer)
        geometry = CGeometry()
        _function(library, "mf_geometry", None, pointer)(ctypes.byref(geometry))
        if geometry.abi != _ABI or geometry.element_bytes != self.dtype.itemsize:
            raise FusedUnavailable(f"{path.name}: interface {geometry.abi}, this Python speaks {_ABI}")
        self.page_step: int = geometry.page_step
        self.small_page: int = geometry.small_page


def _function(library: ctypes.CDLL, name: str, result: type | None, *arguments: type) -> Callable[..., int]:
    function = library[name]
    function.restype = result
    function.argtypes = arguments
    return function


def available(sanitize: str = "") -> list[str]:
    """Policies that are compiled and that this processor can run, the fastest first."""
    flags = build_library.cpu_flags()
    return [
        name
        for name, policy in build_library.POLICIES.items()
        if policy.cpu_flags <= flags and build_library.library_path(policy, sanitize).exists()
    ]
