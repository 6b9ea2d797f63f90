"""The speed limits of this machine, probed: what a counted floor is divided by.

torch's float32 matmul goes through MKL, on AMD at AVX2 speed; oneDNN's packed linear reaches the real peak. It is a
private op, so it is probed only where it exists, runs and gives the same product.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from loadtest.timing import best_seconds

_PRODUCTS = ((512, 512, 2048), (1024, 1024, 1024))
"""(m, k, n) of the probed matrix products."""
_SILU_SIZES = (1 << 13, 1 << 15, 1 << 18, 1 << 20)
"""Elements: in the first-level cache, in the second, and enough for every thread."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Rates per second with the torch threads of the probe; `_by` names the op that reached it."""

    float32_flops: float
    float32_by: str
    bfloat16_flops: float
    bfloat16_by: str
    silus: float

    def flops(self, dtype: torch.dtype) -> float:
        """FLOP/s of the matrix product in a dtype."""
        return {torch.float32: self.float32_flops, torch.bfloat16: self.bfloat16_flops}[dtype]


def probe(seconds: float) -> Peaks:
    """Measure for about so many seconds."""
    share = seconds / (2 * 2 * len(_PRODUCTS) + len(_SILU_SIZES))
    with torch.inference_mode():
        float32, float32_by = _matmul_peak(torch.float32, share)
        bfloat16, bfloat16_by = _matmul_peak(torch.bfloat16, share)
        return Peaks(float32, float32_by, bfloat16, bfloat16_by, _silu_peak(share))


def faster(a: Peaks, b: Peaks) -> Peaks:
    """The higher of two probes, rate by rate: on a shared machine each is a lower bound."""
    float32 = a if a.float32_flops >= b.float32_flops else b
    bfloat16 = a if a.bfloat16_flops >= b.bfloat16_flops else b
    return Peaks(
        float32.float32_flops,
        float32.float32_by,
        bfloat16.bfloat16_flops,
        bfloat16.bfloat16_by,
        max(a.silus, b.silus),
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


def _silu_peak(seconds: float) -> float:
    rates = []
    for size in _SILU_SIZES:
        # Zeros stay zeros, so that the op may run in place as the kernels run it.
        x = torch.zeros(size)
        rates.append(size / best_seconds(partial(functional.silu, x, inplace=True), seconds))
    return max(rates)
