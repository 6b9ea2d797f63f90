"""Item ids that are text, as the 64-bit numbers that the service knows.

Of n texts two have one number with odds of n * (n - 1) / 2**65: 2.7e-8 of a million, 0.001 of 195 million.
"""

import hashlib
import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_LOW, _HIGH = -(2**63), 2**63 - 1
_MAX_BYTES = 256
_CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f-\x9f]")


def item_id(text: str) -> int:
    """The number of an id: itself if it is one of 64 bits as a program writes it ("7", "-12", not "007" or "+7"), else
    the first 8 bytes of its BLAKE2b hash over UTF-8, little-endian, with a sign. `mfalcon train` learns from the
    same numbers.
    """
    if len(text) <= 20 and text.removeprefix("-").isdecimal() and text.isascii():
        number = int(text)
        if str(number) == text and _LOW <= number <= _HIGH:
            return number
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def item_ids(texts: Iterable[str]) -> NDArray[np.int64]:
    """Of each, int64 [n]: candidates, say, whose texts the caller keeps."""
    return np.fromiter((item_id(text) for text in texts), dtype=np.int64)


def checked_item_id(text: str) -> int:
    """The number of an id that the service takes. Raises ValueError for any other text."""
    limit = f"1 to {_MAX_BYTES} bytes of UTF-8 without control characters"
    if not 1 <= len(text.encode()) <= _MAX_BYTES or _CONTROL_CHARACTER.search(text):
        raise ValueError(f"got {text[:80]!r}, must be {limit}")
    return item_id(text)
