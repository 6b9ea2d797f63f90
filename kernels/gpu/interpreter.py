"""Triton's interpreter, which computes kernels on the CPU in tests: whether it is on, one defect of version 3.6, and a
search that it repeats.
"""

import inspect
from functools import cache
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


def _hasten() -> None:
    """Search a module or class of the language for its built-in functions once, not at every call of a kernel's
    function: that took a quarter of a kernel's time. They carry their mark on the function itself, so a name is
    looked at again each time that one of them has been replaced.
    """
    language = interpreter.tl

    @cache
    def names(package: Any) -> tuple[str, ...]:
        return tuple(name for name, member in inspect.getmembers(package) if language.core.is_builtin(member))

    for package in (language, language.core, language.tensor, language.math, language.core.tensor_descriptor_base):
        names(package)  # before any of them is replaced

    def patch(package: Any, builder: Any, scope: Any) -> None:
        for name in names(package):
            member = getattr(package, name)
            if language.core.is_builtin(member):
                interpreter._patch_attr(package, name, member, builder, scope)

    interpreter._patch_builtin = patch


if interpreted():
    _hasten()
if interpreted() and triton.__version__.startswith("3.6."):
    _mend()
