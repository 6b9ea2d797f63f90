"""Triton's interpreter, which computes kernels on the CPU in tests: whether it is on, and one defect of version 3.6."""

from typing import Any

import triton
from triton.runtime import interpreter


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU (TRITON_INTERPRET=1 when triton was imported)."""
    return bool(triton.knobs.runtime.interpret)


def _mend() -> None:
    """Let a number be the bound of a loop. Triton 3.6 keeps it as an array of one element and asks numpy for its
    integer, which numpy does since 2.4 only for arrays of no dimension; Triton 3.7 asks rightly.
    """
    patched = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patched(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch


if interpreted() and triton.__version__.startswith("3.6."):
    _mend()
