"""Item ids that are text, as the 64-bit numbers that the service knows.

Of n texts two have one number with odds of n * (n - 1) / 2**65: 2.7e-8 of a million, 0.001 of 195 million.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_LOW, _HIGH = -(2**63), 2**63 - 1


def item_id(text: str) -> int:
    """The number of an id: itself if it is one of 64 bits as a program writes it ("7", "-12", not "007" or "+7"), else
    the first 8 bytes of its BLAKE2b hash over UTF-8, little-endian, with a sign. `mfalcon train --columns
    item_ids=text` learns from the same numbers.
    """
    if len(text) <= 20 and text.removeprefix("-").isdecimal() and text.isascii():
        number = int(text)
        if str(number) == text and _LOW <= number <= _HIGH:
            return number
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def item_ids(texts: Iterable[str]) -> NDArray[np.int64]:
    """Of each, int64 [n]: candidates, say, whose texts the caller keeps."""
    return np.fromiter((item_id(text) for text in texts), dtype=np.int64)
