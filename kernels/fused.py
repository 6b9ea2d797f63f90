"""The fused CPU kernel: prefill, append and score of a whole stack of layers as one call each.

The second height of the seam (ARCHITECTURE.md). `load` gives a compiled policy, `FusedStack` packs a stack's weights
for it, `PackedKV` is a KV state in its layout. The C++ is in `kernels/cpu/`, compiled by `kernels.cpu_build`.
"""

from kernels import cpu_build
from kernels.fused_check import deviation
from kernels.fused_library import FusedUnavailable, Kernel, available
from kernels.fused_stack import FusedStack, LayerWeights, PackedBuffer, PackedKV, StackConfig

__all__ = [
    "FusedStack",
    "FusedUnavailable",
    "Kernel",
    "LayerWeights",
    "PackedBuffer",
    "PackedKV",
    "StackConfig",
    "available",
    "load",
]

SELF_CHECK_BOUND = {"float32": 2e-5, "bfloat16": 5e-2}
"""Worst difference from `kernels.reference`, relative to the largest output. float32: sums in another order; bfloat16:
8 bits, over two layers."""


def load(policy: str | None = None, sanitize: str = "") -> Kernel:
    """A policy's library, checked against `kernels.reference`; without a name the fastest one in float32.

    Raises FusedUnavailable.
    """
    names = available(sanitize)
    if policy is None:
        policy = next((name for name in names if cpu_build.POLICIES[name].element == "float32"), None)
    if policy is None or policy not in names:
        raise FusedUnavailable(
            f"fused kernel {policy or ''}: compiled and fit for this processor are {names or 'none'}; "
            "compile with: python -m kernels.cpu_build"
        )
    kernel = Kernel(cpu_build.POLICIES[policy], cpu_build.library_path(cpu_build.POLICIES[policy], sanitize))
    worst = max(deviation(kernel, concat) for concat in (False, True))
    if not worst <= SELF_CHECK_BOUND[kernel.policy.element]:
        raise FusedUnavailable(f"fused kernel {policy}: differs from the reference by {worst:.1e} in its self-check")
    return kernel
