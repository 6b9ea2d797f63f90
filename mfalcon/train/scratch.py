"""Arrays with a value for every event: in memory, or in a file that is mapped into it, so that the system may write
pages back and take their memory for something else.
"""

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mfalcon.errors import DataError

Element = TypeVar("Element", bound=np.generic)


PIECE = 1 << 20
"""Events whose arrays are made at a time, so that what is made on the way is small."""


def pieces(length: int) -> Iterator[slice]:
    """Parts of so many events, one behind the other."""
    for start in range(0, length, PIECE):
        yield slice(start, min(start + PIECE, length))


def empty(
    shape: int | tuple[int, ...], dtype: "np.dtype[Element] | type[Element]", scratch: Path | None
) -> NDArray[Element]:
    """[*shape] of no certain values. scratch: the folder of the file, which has no name and ends with the array; None
    for memory. Raises DataError where the disk is full: a page that finds no room later would end the process.
    """
    lengths = shape if isinstance(shape, tuple) else (shape,)
    size = math.prod(lengths) * np.dtype(dtype).itemsize
    if scratch is None or size == 0:
        return np.empty(shape, dtype=dtype)
    try:
        with tempfile.TemporaryFile(dir=scratch) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype=dtype, mode="r+", shape=lengths)
    except OSError as error:
        raise DataError(
            f"{scratch}: {size / 1e6:,.0f} MB of scratch cannot be written: {error.strerror}; free some, or name "
            "another --scratch, and run it again: what was finished before is kept"
        ) from error
