"""The chunk: a run of a KV state's events as one Redis value that describes and proves itself.

value    header (128 bytes, two cache lines), payload; little endian
header   magic, format, flags, dtype, tokens per event, layers, heads, qk_dim, v_dim, fingerprint, user, link, start,
         first, stop, payload bytes, four zero bytes, checksum of everything before it and of the payload
payload  int64 times [T]; for int8, float16 scales of K, then of V [2, layers, heads, T]; K codes [layers, heads, T,
         qk_dim]; V codes [layers, heads, T, v_dim]; T = events * tokens per event

Items of a block never grow from one block to the next, so every block is naturally aligned within the value. Nothing
of a header is used for more than a comparison before the checksum holds; the worst that a chunk can be is a miss.
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias

import numpy as np
import xxhash

from mfalcon.errors import ConfigError
from mfalcon.history.chain import CHAIN_BLOCK

HEADER_BYTES = 128
FULL_CHUNK_BYTES = 512 * 1024
"""No payload of more than one event is larger."""

_VALUE_OVERHEAD = 64
"""What Redis adds to a string value, and some more."""
_MAGIC = b"MFKV"
_FORMAT = 1
_KEYED = 1  # the flag of a checksum that is a MAC
_FACTS = struct.Struct("<4sHHHHIIII16s16s16sQQQQ4x")
_CHECKSUM_BYTES = 16
assert _FACTS.size + _CHECKSUM_BYTES == HEADER_BYTES

Reason: TypeAlias = Literal[
    "truncated",  # not of the length that its events need, shorter or longer
    "magic",  # no chunk at all
    "format",  # another version of the format, or a flag that this one does not know
    "model",  # another checkpoint or compute dtype
    "dtype",  # codes of another type
    "shape",  # other layers, heads or dimensions
    "user",  # another user's
    "range",  # events that no chunk of this layout holds
    "finite",  # good bytes, but some number is NaN or infinity: it would spoil every score of its user
    "history",  # not the next chunk of the asked history
    "checksum",  # altered
    "mac",  # altered, or made under another secret, or with a secret where there is none, or the reverse
]


class ChunkRejected(Exception):
    """A value is no chunk of the asked layout and user. A miss, to be counted by its reason; never a caller's error."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class PayloadDtype(Enum):
    """Type of the codes. The numbers are part of the format."""

    FLOAT32 = 1
    BFLOAT16 = 2
    INT8 = 3
    FLOAT64 = 4
    FLOAT16 = 5

    @classmethod
    def from_name(cls, name: str) -> "PayloadDtype":
        """The type of a name such as "bfloat16". Raises ConfigError for any other."""
        names = {dtype.name.lower(): dtype for dtype in cls}
        if name not in names:
            raise ConfigError(f"payload dtype: got {name!r}, must be one of {', '.join(names)}")
        return names[name]

    @property
    def code_bytes(self) -> int:
        """Bytes of one element of K or V."""
        return _CODE_BYTES[self]

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scale of one token in one head of one layer, K or V alone."""
        return 2 if self is PayloadDtype.INT8 else 0


_CODE_BYTES = {
    PayloadDtype.FLOAT32: 4,
    PayloadDtype.BFLOAT16: 2,
    PayloadDtype.INT8: 1,
    PayloadDtype.FLOAT64: 8,
    PayloadDtype.FLOAT16: 2,
}


_INFINITY = {
    PayloadDtype.FLOAT32: 0x7F80_0000,
    PayloadDtype.BFLOAT16: 0x7F80,
    PayloadDtype.INT8: 0x7C00,  # of their scales, in float16
    PayloadDtype.FLOAT64: 0x7FF0_0000_0000_0000,
    PayloadDtype.FLOAT16: 0x7C00,
}
"""As bits; a magnitude from there on is infinite or no number."""


@dataclass(frozen=True, slots=True)
class ChunkLayout:
    """What every chunk of one model at one payload dtype has in common.

    fingerprint: 16 bytes that name the checkpoint and the compute dtype.
    """

    fingerprint: bytes
    tokens_per_event: int
    num_layers: int
    num_heads: int
    qk_dim: int
    v_dim: int
    dtype: PayloadDtype

    def payload_bytes(self, num_events: int) -> int:
        """Bytes of a payload of so many events."""
        per_head = (self.qk_dim + self.v_dim) * self.dtype.code_bytes + 2 * self.dtype.scale_bytes
        return num_events * self.tokens_per_event * (8 + self.num_layers * self.num_heads * per_head)

    @property
    def events_per_chunk(self) -> int:
        """Events of a full chunk: as many blocks of 32 as fit 512 KiB, header included; below that a power of two.

        So 256 to 512 KiB, the small end of what Redis serves well (256 KB to 1 MB: beside larger values other clients
        wait), because an append writes the last chunk of a state again; and just below 512 KiB where that is possible,
        because an allocator's size classes are that far apart (a chunk of 385 KiB takes 448).
        """
        fits = (FULL_CHUNK_BYTES - HEADER_BYTES - _VALUE_OVERHEAD) // self.payload_bytes(1)
        return fits // CHAIN_BLOCK * CHAIN_BLOCK if fits >= CHAIN_BLOCK else 1 << max(0, fits.bit_length() - 1)


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """What a chunk says of itself.

    user: hash of the user id, 16 bytes. link: chained hash of the history at `stop`, 16 bytes. start: the event at
    which the state's window begins. [first, stop): the chunk's events. Events are counted from the start of the
    history.
    """

    layout: ChunkLayout
    user: bytes
    link: bytes
    start: int
    first: int
    stop: int


def pack(header: ChunkHeader, payload: bytes | bytearray | memoryview, secret: bytes | None) -> bytes:
    """The value of a chunk; copies the payload once. With a secret the checksum is a MAC."""
    layout, size = header.layout, memoryview(payload).nbytes
    assert len(layout.fingerprint) == len(header.user) == len(header.link) == 16
    assert _in_range(header.start, header.first, header.stop, layout)
    assert size == layout.payload_bytes(header.stop - header.first)
    facts = _FACTS.pack(
        _MAGIC,
        _FORMAT,
        0 if secret is None else _KEYED,
        layout.dtype.value,
        layout.tokens_per_event,
        layout.num_layers,
        layout.num_heads,
        layout.qk_dim,
        layout.v_dim,
        layout.fingerprint,
        header.user,
        header.link,
        header.start,
        header.first,
        header.stop,
        size,
    )
    return b"".join((facts, _checksum(facts, payload, secret), payload))


def unpack(value: bytes, layout: ChunkLayout, user: bytes, secret: bytes | None) -> tuple[ChunkHeader, memoryview]:
    """The header and a view of the payload of a user's chunk. Raises ChunkRejected; copies nothing.

    Whether link, start, first and stop are the wanted ones is for the caller to compare.
    """
    view = memoryview(value)
    header = unpack_header(view[:HEADER_BYTES], len(view), layout, user, keyed=secret is not None)
    payload = view[HEADER_BYTES:]
    expected = _checksum(view[: _FACTS.size], payload, secret)
    if not hmac.compare_digest(expected, view[_FACTS.size : HEADER_BYTES]):
        raise ChunkRejected("checksum" if secret is None else "mac")
    return header, payload


def unpack_header(
    head: bytes | memoryview, num_bytes: int, layout: ChunkLayout, user: bytes, *, keyed: bool
) -> ChunkHeader:
    """What a user's chunk of so many bytes says of itself in its first `HEADER_BYTES`; nothing is proved of its
    payload. Raises ChunkRejected.
    """
    if len(head) < HEADER_BYTES:
        raise ChunkRejected("truncated")
    magic, version, flags, dtype, *shape, fingerprint, owner, link, start, first, stop, size = _FACTS.unpack_from(head)
    facts: tuple[tuple[bool, Reason], ...] = (
        (magic == _MAGIC, "magic"),
        (version == _FORMAT and flags & ~_KEYED == 0, "format"),
        (fingerprint == layout.fingerprint, "model"),
        (dtype == layout.dtype.value, "dtype"),
        (shape == [layout.tokens_per_event, layout.num_layers, layout.num_heads, layout.qk_dim, layout.v_dim], "shape"),
        (owner == user, "user"),
        (_in_range(start, first, stop, layout) and size == layout.payload_bytes(stop - first), "range"),
        (size == num_bytes - HEADER_BYTES, "truncated"),
        (flags == (_KEYED if keyed else 0), "mac"),
    )
    for holds, reason in facts:
        if not holds:
            raise ChunkRejected(reason)
    return ChunkHeader(layout, user, link, start, first, stop)


def is_finite(payload: memoryview, layout: ChunkLayout) -> bool:
    """Whether every number of a payload is finite, for int8 every scale: 7 us for 256 KiB."""
    num_tokens = layout.tokens_per_event * (len(payload) // layout.payload_bytes(1))
    begin, end = 8 * num_tokens, len(payload)
    if layout.dtype is PayloadDtype.INT8:
        end = begin + 2 * num_tokens * layout.num_layers * layout.num_heads * layout.dtype.scale_bytes
    infinity = _INFINITY[layout.dtype]
    size = layout.dtype.scale_bytes or layout.dtype.code_bytes
    bits = np.frombuffer(payload[begin:end], dtype=f"<u{size}")
    # Two passes that copy nothing: the sign is the first bit, so positive numbers are the largest of signed integers,
    # negative ones of unsigned integers, each in the order of their magnitudes.
    return int(bits.view(f"<i{size}").max()) < infinity and int(bits.max()) < infinity | 1 << 8 * size - 1


def _in_range(start: int, first: int, stop: int, layout: ChunkLayout) -> bool:
    limit = layout.events_per_chunk
    return start <= first < stop <= first + limit and (first - start) % limit == 0


def _checksum(facts: bytes | memoryview, payload: bytes | bytearray | memoryview, secret: bytes | None) -> bytes:
    """xxh3_128 against accidents, HMAC-SHA256 cut to 128 bits against everybody who does not know the secret."""
    if secret is None:
        plain = xxhash.xxh3_128(facts)
        plain.update(payload)
        return plain.digest()
    keyed = hmac.new(secret, facts, hashlib.sha256)
    keyed.update(payload)
    return keyed.digest()[:_CHECKSUM_BYTES]
