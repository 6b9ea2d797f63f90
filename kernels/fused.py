"""The fused CPU kernel: prefill, append and score of a whole stack of layers as one call each.

The second height of the seam (ARCHITECTURE.md). `load` gives a compiled policy, `FusedStack` packs a stack's weights
for it and calls it over pages. The C++ is in `kernels/cpu/`, compiled by `kernels.cpu_build`.
"""

from dataclasses import replace

from kernels import cpu_build
from kernels.fused_check import LARGE, SMALL, deviation
from kernels.fused_library import FusedUnavailable, Kernel, available
from kernels.fused_stack import PAGE_TOKENS, FusedStack
from kernels.stack import LayerWeights, StackConfig

__all__ = [
    "PAGE_TOKENS",
    "FusedStack",
    "FusedUnavailable",
    "Kernel",
    "LayerWeights",
    "StackConfig",
    "available",
    "load",
]

SELF_CHECK_BOUND = {"float32": 2e-5, "bfloat16": 5e-2, "int8": 5e-2}
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
        lacking = sorted(cpu_build.POLICIES[policy].cpu_flags - cpu_build.cpu_flags()) if policy else []
        why = f"this processor lacks {', '.join(lacking)}" if lacking else "not compiled (python -m kernels.cpu_build)"
        raise FusedUnavailable(f"fused kernel {policy or 'of float32'}: {why}")
    try:
        kernel = Kernel(cpu_build.POLICIES[policy], cpu_build.library_path(cpu_build.POLICIES[policy], sanitize))
    except (OSError, AttributeError) as error:
        raise FusedUnavailable(f"fused kernel {policy}: cannot be loaded: {error}") from error
    large = replace(LARGE, threads=1) if sanitize == "thread" else LARGE  # OpenMP's barriers are false alarms there
    for int8 in (False, True):
        bound = SELF_CHECK_BOUND["int8" if int8 else kernel.policy.element]
        for concat, size in ((False, SMALL), (True, SMALL), (False, large)):
            worst = deviation(kernel, size, concat=concat, int8=int8)
            if not worst <= bound:
                of_pages = " over int8 pages" if int8 else ""
                raise FusedUnavailable(
                    f"fused kernel {policy}{of_pages}: differs from the reference by {worst:.1e} in its self-check"
                )
    return kernel
