"""The speed limits of this machine, probed: what a counted floor is divided by.

torch's float32 matmul goes through MKL, on AMD at AVX2 speed; oneDNN's packed linear reaches the real peak. It is a
private op, so it is probed only where it exists, runs and gives the same product. The fused kernel's SiLU is faster
than torch's, so where there is a C++ compiler it is probed too, by itself, over buffers in the first-level cache.
"""

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from kernels.cpu import build_library
from loadtest.report.timing import best_seconds

_PRODUCTS = ((512, 512, 2048), (1024, 1024, 1024))
"""(m, k, n) of the probed matrix products."""
_SILU_SIZES = (1 << 13, 1 << 15, 1 << 18, 1 << 20)
"""Elements: in the first-level cache, in the second, and enough for every thread."""

_HEADERS = {
    "avx512_bf16": ("avx512.h", "Avx512F32"),
    "avx512_f32": ("avx512.h", "Avx512F32"),
    "avx2_f32": ("avx2_f32.h", "Avx2F32"),
}
"""Of the policies whose SiLU is probed, compiled for itself, the fastest first; all compute it in float32."""
_SILU_SOURCE = """
#include <cstdint>
#include "{header}"
#include "silu.h"
extern "C" void silus(std::int64_t threads, std::int64_t repeats) {{
#pragma omp parallel num_threads(static_cast<int>(threads))
  {{
    using P = mfalcon::{policy};
    alignas(64) float x[{block}], y[{block}];
    for (int i = 0; i < {block}; i++) x[i] = 8.0f * i / {block} - 4.0f;
    for (std::int64_t repeat = 0; repeat < repeats; repeat++) {{
      for (int i = 0; i < {block}; i += P::kLanes) P::store(y + i, mfalcon::silu<P>(P::load(x + i)));
      asm volatile("" : : "r"(x), "r"(y) : "memory");
    }}
  }}
}}
"""
_BLOCK, _REPEATS = 2048, 200
"""Elements of each of a thread's two buffers, and how often a call goes over them."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Rates per second with the torch threads of the probe; `_by` names the op that reached it."""

    float32_flops: float
    float32_by: str
    bfloat16_flops: float
    bfloat16_by: str
    silus: float
    silus_by: str

    @property
    def described(self) -> str:
        """For people."""
        return (
            f"float32 {self.float32_flops / 1e9:.0f} GFLOP/s ({self.float32_by}), "
            f"bfloat16 {self.bfloat16_flops / 1e9:.0f} ({self.bfloat16_by}), "
            f"SiLU {self.silus / 1e9:.2f} G/s ({self.silus_by})"
        )

    def flops(self, dtype: torch.dtype) -> float:
        """FLOP/s of the matrix product in a dtype; one of bfloat16 may be computed in float32, where that is faster."""
        return {torch.float32: self.float32_flops, torch.bfloat16: max(self.bfloat16_flops, self.float32_flops)}[dtype]


def probe(seconds: float) -> Peaks:
    """Measure for about so many seconds."""
    share = seconds / (2 * 2 * len(_PRODUCTS) + len(_SILU_SIZES) + 1)
    with torch.inference_mode():
        float32, float32_by = _matmul_peak(torch.float32, share)
        bfloat16, bfloat16_by = _matmul_peak(torch.bfloat16, share)
        return Peaks(float32, float32_by, bfloat16, bfloat16_by, *_silu_peak(share))


def faster(a: Peaks, b: Peaks) -> Peaks:
    """The higher of two probes, rate by rate: on a shared machine each is a lower bound."""
    float32 = a if a.float32_flops >= b.float32_flops else b
    bfloat16 = a if a.bfloat16_flops >= b.bfloat16_flops else b
    silus = a if a.silus >= b.silus else b
    return Peaks(
        float32.float32_flops,
        float32.float32_by,
        bfloat16.bfloat16_flops,
        bfloat16.bfloat16_by,
        silus.silus,
        silus.silus_by,
    )


def _matmul_peak(dtype: torch.dtype, seconds: float) -> tuple[float, str]:
    rates: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    for m, k, n in _PRODUCTS:
        a, weight = (torch.randn(rows, k, generator=generator).to(dtype) for rows in (m, n))
        flops, out = 2 * m * k * n, torch.empty(m, n, dtype=dtype)
        plain = flops / best_seconds(partial(torch.mm, a, weight.t(), out=out), seconds)
        rates["matmul"] = max(plain, rates.get("matmul", 0.0))
        packed = _pack(a, weight)
        if packed is not None:
            rate = flops / best_seconds(partial(_packed_linear, a, packed), seconds)
            rates["packed linear"] = max(rate, rates.get("packed linear", 0.0))
    best = max(rates, key=rates.__getitem__)
    return rates[best], best


def _pack(a: Tensor, weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's layout; None where the op is missing, refuses this CPU or gives another product."""
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, a.shape[0])
        product = _packed_linear(a, packed).float()
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    expected = torch.mm(a.float(), weight.float().t())
    tolerance = 1e-4 if a.dtype == torch.float32 else 1e-2
    close = torch.allclose(product, expected, rtol=tolerance, atol=tolerance * a.shape[1] ** 0.5)
    return packed if close else None


def _packed_linear(a: Tensor, packed: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")
    return out


def _silu_peak(seconds: float) -> tuple[float, str]:
    rates: dict[str, float] = {}
    for size in _SILU_SIZES:
        # Zeros stay zeros, so that the op may run in place as the kernels run it.
        x = torch.zeros(size)
        rate = size / best_seconds(partial(functional.silu, x, inplace=True), seconds)
        rates["torch"] = max(rate, rates.get("torch", 0.0))
    flags = build_library.cpu_flags()
    policy = next((name for name in _HEADERS if build_library.POLICIES[name].cpu_flags <= flags), None)
    compiled = None if policy is None else _compiled_silu(policy)
    if policy is not None and compiled is not None:
        threads = torch.get_num_threads()
        run = partial(compiled, threads, _REPEATS)
        rates[policy] = threads * _REPEATS * _BLOCK / best_seconds(run, seconds)
    best = max(rates, key=rates.__getitem__)
    return rates[best], best


@cache
def _compiled_silu(policy: str) -> Callable[[int, int], object] | None:
    """silus(threads, repeats) in a policy's code; None without a compiler, or one that refuses."""
    compiler = build_library.find_compiler()
    if compiler is None:
        return None
    header, name = _HEADERS[policy]
    flags = build_library.POLICIES[policy].compiler_flags
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "silu.cpp", Path(folder) / "silu.so"
        source.write_text(_SILU_SOURCE.format(header=header, policy=name, block=_BLOCK), encoding="utf-8")
        shared = ("-std=c++20", "-O2", "-fno-math-errno", "-Wno-psabi", "-fopenmp", "-fPIC", "-shared")
        command = [compiler, *shared, *flags, f"-I{build_library.SOURCES}", str(source), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError):
            return None
        function = ctypes.CDLL(str(library)).silus
    function.argtypes, function.restype = (ctypes.c_int64, ctypes.c_int64), None
    return function
