"""The container of a capture file: a head, then frames that each prove themselves, so that a file which was cut, or
damaged in places, is read as far as it is whole. docs/capture.md has the format for readers elsewhere.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mfalcon.errors import DataError

VERSION: Final = 1
FILE_ID_BYTES: Final = 16
KEY_ID_BYTES: Final = 16
NONCE_BYTES: Final = 12
MOST_BODY_BYTES: Final = 64 << 20
"""More than the largest legal request with the longest history that a log keeps."""

MODEL: Final = 1
"""A frame that describes a model; its body is not encrypted and says nothing of users."""
RANK: Final = 2
"""A frame of one answered request; its body is encrypted with the key of its user."""

_HEAD = struct.Struct("<8sII16sQI")
"""Magic, version, size of this head, file id, time in milliseconds, CRC-32 of the bytes before."""
_FRAME = struct.Struct("<4sIB3x16s12sII")
"""Marker, size of the body, kind, key id, nonce, CRC-32 of the body, CRC-32 of the bytes before."""
_MAGIC: Final = b"MFALCAPT"
_MARKER: Final = b"\xf5MFR"
_WINDOW: Final = 1 << 20
HEAD_BYTES: Final = _HEAD.size
FRAME_BYTES: Final = _FRAME.size
NO_KEY: Final = bytes(KEY_ID_BYTES)
NO_NONCE: Final = bytes(NONCE_BYTES)


@dataclass(frozen=True, slots=True)
class Frame:
    """kind: MODEL or RANK. key_id, nonce: of the encryption, zeros without one. body: as it lies in the file."""

    kind: int
    key_id: bytes
    nonce: bytes
    body: bytes


@dataclass(slots=True)
class Damage:
    """What of a file was not readable. frames: whose body is not what was written. gaps: places where no frame begins
    and some bytes were passed over to find the next one. cut_bytes: at the end, of a frame that is not whole.
    """

    frames: int = 0
    gaps: int = 0
    cut_bytes: int = 0


def head(file_id: bytes, time_ms: int) -> bytes:
    """The first bytes of a file. file_id: [16] random, part of what its frames are authenticated with."""
    facts = _HEAD.pack(_MAGIC, VERSION, HEAD_BYTES, file_id, time_ms, 0)[:-4]
    return facts + zlib.crc32(facts).to_bytes(4, "little")


def frame(kind: int, body: bytes, key_id: bytes = NO_KEY, nonce: bytes = NO_NONCE) -> bytes:
    """A frame as it lies in the file."""
    facts = _FRAME.pack(_MARKER, len(body), kind, key_id, nonce, zlib.crc32(body), 0)[:-4]
    return b"".join((facts, zlib.crc32(facts).to_bytes(4, "little"), body))


def bound_to(file_id: bytes, kind: int, key_id: bytes) -> bytes:
    """What the body of a frame is authenticated with beside itself: it is of no use in another file or under another
    key.
    """
    return file_id + bytes((kind,)) + key_id


class Content:
    """The bytes of an open file, as many as it has now. What is cut off it later reads as nothing."""

    def __init__(self, file: int) -> None:
        self._file = file
        self.size = os.fstat(file).st_size

    def read(self, at: int, num: int) -> bytes:
        """So many bytes from a place on, fewer at the end. Raises OSError."""
        return os.pread(self._file, min(num, max(0, self.size - at)), at)


def read_head(content: Content, name: str) -> bytes:
    """The id of a file, whose name is for errors. Raises DataError if this is no capture, or one of a later version."""
    facts = content.read(0, HEAD_BYTES)
    if len(facts) < HEAD_BYTES or not facts.startswith(_MAGIC):
        raise DataError(f"{name}: it is no capture file")
    _, version, size, file_id, _, checksum = _HEAD.unpack(facts)
    if zlib.crc32(facts[:-4]) != checksum:
        raise DataError(f"{name}: the head of this capture file is damaged")
    if version != VERSION or size != HEAD_BYTES:
        raise DataError(f"{name}: got a capture file of format {version}, must be {VERSION}")
    assert isinstance(file_id, bytes)
    return file_id


def frames(content: Content, damage: Damage) -> Iterator[Frame]:
    """The whole frames of a file, in order; what is not readable is counted and passed over. Never more than one frame
    is in memory.
    """
    at = HEAD_BYTES
    while at < content.size:
        left = content.size - at
        known = _known(content.read(at, FRAME_BYTES))
        if known is not None:
            size, kind, key_id, nonce, checksum = known
            body = content.read(at + FRAME_BYTES, size)
            if len(body) == size and zlib.crc32(body) == checksum:
                yield Frame(kind, key_id, nonce, body)
                at += FRAME_BYTES + size
                continue
        following = _next(content, at + 1)  # whatever the damaged frame said of its size
        if following is None:
            damage.cut_bytes += left
            return
        if known is None:
            damage.gaps += 1
        else:
            damage.frames += 1
        at = following


def _known(facts: bytes) -> tuple[int, int, bytes, bytes, int] | None:
    """Of a frame that begins so: size of its body, kind, key id, nonce, checksum. None if none does."""
    if len(facts) < FRAME_BYTES or not facts.startswith(_MARKER):
        return None
    _, size, kind, key_id, nonce, checksum, of_facts = _FRAME.unpack(facts)
    if zlib.crc32(facts[:-4]) != of_facts or size > MOST_BODY_BYTES:
        return None
    return size, kind, key_id, nonce, checksum


def _next(content: Content, at: int) -> int | None:
    """Where the next frame begins, from some place on."""
    while at < content.size:
        part = content.read(at, _WINDOW + FRAME_BYTES)
        found = part.find(_MARKER)
        while 0 <= found < _WINDOW:
            if _known(part[found : found + FRAME_BYTES]) is not None:
                return at + found
            found = part.find(_MARKER, found + 1)
        at += _WINDOW
    return None
