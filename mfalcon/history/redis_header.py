"""The 80 bytes that head a user's log in Redis: its user, its generation, its length, and the hash at both ends."""

import struct
from dataclasses import dataclass

from mfalcon.history.chain import LINK_BYTES
from mfalcon.history.history import History

HEADER = struct.Struct("<4sHxxQQ8s16s16s16s")
_MAGIC, _FORMAT = b"MFLG", 1
assert HEADER.size == 80


@dataclass(frozen=True, slots=True)
class Header:
    """The head of a user's log. generation: 8 random bytes, one life of the log."""

    base: int
    length: int
    generation: bytes
    base_link: bytes
    link: bytes
    user: bytes

    @staticmethod
    def unpack(raw: bytes) -> "Header | None":
        """None if these bytes are no header."""
        if len(raw) != HEADER.size:
            return None
        magic, version, *rest = HEADER.unpack(raw)
        header = Header(*rest)
        return header if magic == _MAGIC and version == _FORMAT and header.base <= header.length else None


def header_of(history: History) -> bytes:
    """The 80 bytes that head the log of a history; nothing for one that has no log."""
    if not history.generation:
        return b""
    length = len(history)
    base_link, link = history.links[:LINK_BYTES], history.link(length)
    return HEADER.pack(_MAGIC, _FORMAT, history.base, length, history.generation, base_link, link, history.user)
