"""Item ids that are text, as the 64-bit numbers that a model knows: a number that is written plainly is that number,
anything else its hash.

Of n texts two have one number with odds of n * (n - 1) / 2**65: 2.7e-8 of a million, 0.001 of 195 million.
"""

import hashlib
import re
from collections.abc import Iterable

import numpy as np

from mfalcon.types import Ids

MAX_ITEM_ID_BYTES = 256
CONTROL_CHARACTER = "[\\x00-\\x1f\\x7f-\\x9f]"
ITEM_ID_LIMIT = f"1 to {MAX_ITEM_ID_BYTES} bytes of UTF-8 without control characters"
_LOW, _HIGH = -(2**63), 2**63 - 1


def item_id(text: str) -> int:
    """The number of an id: itself if it is one of 64 bits as a program writes it ("7", "-12", not "007" or "+7"), else
    the first 8 bytes of its BLAKE2b hash over UTF-8, little-endian, with a sign.
    """
    if len(text) <= 20 and text.removeprefix("-").isdecimal() and text.isascii():
        number = int(text)
        if str(number) == text and _LOW <= number <= _HIGH:
            return number
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def checked_item_id(text: str) -> int:
    """The number of an id. Raises ValueError, with what it must be, for a text that is none."""
    if not 1 <= len(text) <= MAX_ITEM_ID_BYTES:
        raise ValueError(ITEM_ID_LIMIT)
    if not (text.isascii() and text.isprintable()):  # most ids are, and this is a tenth of the time that follows
        try:
            num_bytes = len(text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(ITEM_ID_LIMIT) from error
        if num_bytes > MAX_ITEM_ID_BYTES or re.search(CONTROL_CHARACTER, text):
            raise ValueError(ITEM_ID_LIMIT)
    return item_id(text)


def item_ids(texts: Iterable[str]) -> Ids:
    """Of each, int64 [n]."""
    return np.fromiter((item_id(text) for text in texts), dtype=np.int64)
