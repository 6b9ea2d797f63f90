"""Item ids that are text to their numbers, many in one call of C++; without its library whoever asks hashes himself.

`mfalcon.item_ids` is the definition; `src/text_ids.cpp` computes the same.
"""

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.cpu import build_library


class CompiledTextIds:
    """The library."""

    def __init__(self, function: Callable[[bytes, int, int, int], int]) -> None:
        self._function = function

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64] | None:
        """[num_texts] numbers; None if one of the texts is no id."""
        numbers = np.empty(len(texts), dtype=np.int64)
        if not texts:
            return numbers
        try:
            joined = "\0".join(texts).encode()
        except UnicodeEncodeError:
            return None
        well = self._function(joined, len(joined), len(texts), numbers.ctypes.data)
        return numbers if well == len(texts) else None


def load(sanitize: str = "") -> CompiledTextIds | None:
    """None where it is not compiled, or cannot be loaded here."""
    try:
        library = ctypes.CDLL(str(build_library.library_path(build_library.TEXT_IDS, sanitize)))
    except OSError:
        return None
    function = library.mf_text_ids
    function.restype = ctypes.c_int64
    function.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    return CompiledTextIds(function)
