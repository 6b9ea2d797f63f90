"""Chunks: what was packed comes back for its own model, dtype, user and secret, and nothing else ever does."""

import struct
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.errors import ConfigError
from mfalcon.history.chain import CHAIN_BLOCK
from mfalcon.kvcache.chunk import (
    FULL_CHUNK_BYTES,
    HEADER_BYTES,
    ChunkHeader,
    ChunkLayout,
    ChunkRejected,
    PayloadDtype,
    Reason,
    pack,
    unpack,
)
from tests.kvcache.mutations import KINDS, LAYOUT, SECRET, USER, mutate, mutate_kind, sample, tally

HEADER = ChunkHeader(LAYOUT, USER, link=bytes(range(16, 32)), start=1024, first=1024, stop=1027)
PAYLOAD = Random(0).randbytes(LAYOUT.payload_bytes(3))

FIELDS = {
    # name: offset and form; the format as it is written down, apart from the code
    "magic": (0, "<4s"),
    "format": (4, "<H"),
    "flags": (6, "<H"),
    "dtype": (8, "<H"),
    "tokens_per_event": (10, "<H"),
    "num_layers": (12, "<I"),
    "num_heads": (16, "<I"),
    "qk_dim": (20, "<I"),
    "v_dim": (24, "<I"),
    "fingerprint": (28, "<16s"),
    "user": (44, "<16s"),
    "link": (60, "<16s"),
    "start": (76, "<Q"),
    "first": (84, "<Q"),
    "stop": (92, "<Q"),
    "payload_bytes": (100, "<Q"),
    "zeros": (108, "<4s"),
    "checksum": (112, "<16s"),
}


def rejected(
    value: bytes, *, layout: ChunkLayout = LAYOUT, user: bytes = USER, secret: bytes | None = None
) -> Reason | None:
    """Why a value is refused; None if it is not."""
    try:
        unpack(value, layout, user, secret)
    except ChunkRejected as error:
        return error.reason
    return None


def field(value: bytes, name: str) -> bytes | int:
    offset, form = FIELDS[name]
    (content,) = struct.unpack_from(form, value, offset)
    assert isinstance(content, bytes | int)
    return content


def altered(value: bytes, **fields: bytes | int) -> bytes:
    changed = bytearray(value)
    for name, content in fields.items():
        offset, form = FIELDS[name]
        struct.pack_into(form, changed, offset, content)
    return bytes(changed)


def forged(value: bytes, **fields: bytes | int) -> bytes:
    """Altered, with a checksum that holds: what a wrong or hostile writer without the secret can make."""
    plain = altered(value, **fields)
    return altered(plain, checksum=xxhash.xxh3_128_digest(plain[:112] + plain[HEADER_BYTES:]))


@pytest.mark.parametrize("secret", [None, SECRET])
@pytest.mark.parametrize("num_events", [1, 63, 77])
@pytest.mark.parametrize("tokens_per_event", [1, 2])
@pytest.mark.parametrize("dtype", PayloadDtype)
def test_what_was_packed_comes_back(
    dtype: PayloadDtype, tokens_per_event: int, num_events: int, secret: bytes | None
) -> None:
    layout = replace(LAYOUT, dtype=dtype, tokens_per_event=tokens_per_event)
    first = 5 + 3 * layout.events_per_chunk
    header = ChunkHeader(layout, USER, bytes(16), start=5, first=first, stop=first + num_events)
    payload = Random(1).randbytes(layout.payload_bytes(num_events))
    for given_as in (payload, bytearray(payload), memoryview(payload)):
        value = pack(header, given_as, secret)
        assert len(value) == HEADER_BYTES + len(payload)
        found, view = unpack(value, layout, USER, secret)
        assert found == header
        assert view == payload
        assert view.obj is value  # a view, no copy


def test_the_format_is_the_one_written_down() -> None:
    value = pack(HEADER, PAYLOAD, None)
    expected = {
        "magic": b"MFKV",
        "format": 1,
        "flags": 0,
        "dtype": 2,
        "tokens_per_event": 2,
        "num_layers": 2,
        "num_heads": 2,
        "qk_dim": 16,
        "v_dim": 24,
        "fingerprint": LAYOUT.fingerprint,
        "user": USER,
        "link": HEADER.link,
        "start": 1024,
        "first": 1024,
        "stop": 1027,
        "payload_bytes": len(PAYLOAD),
        "zeros": bytes(4),
        "checksum": xxhash.xxh3_128_digest(value[:112] + PAYLOAD),
    }
    assert {name: field(value, name) for name in FIELDS} == expected
    assert field(pack(HEADER, PAYLOAD, SECRET), "flags") == 1
    assert {dtype.name: dtype.value for dtype in PayloadDtype} == {
        "FLOAT32": 1,
        "BFLOAT16": 2,
        "INT8": 3,
        "FLOAT64": 4,
        "FLOAT16": 5,
    }


ALTERATIONS: list[tuple[str, bytes | int, Reason]] = [
    ("magic", b"MFKW", "magic"),
    ("format", 0, "format"),
    ("format", 2, "format"),
    ("flags", 1, "mac"),
    ("flags", 2, "format"),
    ("flags", 0x8001, "format"),
    ("dtype", 1, "dtype"),
    ("dtype", 99, "dtype"),
    ("tokens_per_event", 1, "shape"),
    ("num_layers", 3, "shape"),
    ("num_heads", 0, "shape"),
    ("qk_dim", 24, "shape"),
    ("v_dim", 2**32 - 1, "shape"),
    ("fingerprint", bytes(16), "model"),
    ("user", bytes(16), "user"),
    ("start", 1025, "range"),  # after first
    ("start", 1023, "range"),  # first is not a multiple of a chunk away
    ("first", 1023, "range"),
    ("first", 1027, "range"),  # empty
    ("stop", 1026, "range"),  # not what the payload holds
    ("stop", 1024, "range"),
    ("stop", 0, "range"),
    ("stop", 2**64 - 1, "range"),
    ("payload_bytes", 0, "range"),
    ("payload_bytes", len(PAYLOAD) + 1, "range"),
    ("payload_bytes", 2**64 - 1, "range"),
]


@pytest.mark.parametrize("alter", [altered, forged])
@pytest.mark.parametrize(("name", "content", "reason"), ALTERATIONS)
def test_every_field_is_compared_whatever_the_checksum(
    name: str, content: bytes | int, reason: Reason, alter: Callable[..., bytes]
) -> None:
    assert rejected(alter(pack(HEADER, PAYLOAD, None), **{name: content})) == reason


@pytest.mark.parametrize("secret", [None, SECRET])
@pytest.mark.parametrize("name", ["link", "zeros", "checksum"])
def test_what_nothing_is_compared_with_is_under_the_checksum(name: str, secret: bytes | None) -> None:
    value = pack(HEADER, PAYLOAD, secret)
    old = field(value, name)
    assert isinstance(old, bytes)
    content = bytes(byte ^ 1 for byte in old)
    assert rejected(altered(value, **{name: content}), secret=secret) == ("mac" if secret else "checksum")


def test_a_forged_range_that_its_length_supports_is_refused() -> None:
    """More events than a chunk has, or at another chunk boundary, with a payload of the right length."""
    limit = LAYOUT.events_per_chunk
    full = pack(replace(HEADER, stop=1024 + limit), bytes(LAYOUT.payload_bytes(limit)), None)
    assert rejected(full) is None
    longer = full + bytes(LAYOUT.payload_bytes(1))
    assert rejected(forged(longer, stop=1025 + limit, payload_bytes=len(longer) - HEADER_BYTES)) == "range"
    assert rejected(forged(full, first=1024 + limit // 2, stop=1024 + limit + limit // 2)) == "range"
    assert rejected(forged(full, first=1024 + limit, stop=1024 + 2 * limit)) is None


def test_a_chunk_of_anybody_else_is_refused() -> None:
    value = pack(HEADER, PAYLOAD, None)
    assert rejected(value) is None
    assert rejected(value, user=bytes(16)) == "user"
    assert rejected(value, layout=replace(LAYOUT, fingerprint=bytes(16))) == "model"
    assert rejected(value, layout=replace(LAYOUT, dtype=PayloadDtype.INT8)) == "dtype"
    assert rejected(value, layout=replace(LAYOUT, num_layers=1)) == "shape"


@pytest.mark.parametrize("secret", [None, SECRET])
def test_every_other_length_is_refused(secret: bytes | None) -> None:
    layout = replace(LAYOUT, num_layers=1, num_heads=1, qk_dim=3, v_dim=5)
    header = ChunkHeader(layout, USER, bytes(16), 0, 0, 3)
    value = pack(header, Random(2).randbytes(layout.payload_bytes(3)), secret)
    assert rejected(value, layout=layout, secret=secret) is None
    for length in range(len(value)):
        assert rejected(value[:length], layout=layout, secret=secret) == "truncated", length
    for tail in (b"\0", bytes(layout.payload_bytes(1)), value):
        assert rejected(value + tail, layout=layout, secret=secret) == "truncated"


def test_a_secret_admits_its_own_chunks_alone() -> None:
    plain, keyed = pack(HEADER, PAYLOAD, None), pack(HEADER, PAYLOAD, SECRET)
    assert rejected(keyed, secret=SECRET) is None
    assert rejected(keyed, secret=b"another secret") == "mac"
    assert rejected(keyed) == "mac"  # nothing here can verify it
    assert rejected(plain, secret=SECRET) == "mac"
    assert rejected(forged(plain, flags=1), secret=SECRET) == "mac"
    assert rejected(forged(keyed, flags=0), secret=SECRET) == "mac"  # no way down to the plain checksum
    assert rejected(altered(keyed, link=bytes(16)), secret=SECRET) == "mac"
    assert rejected(keyed[:-1] + bytes([keyed[-1] ^ 1]), secret=SECRET) == "mac"


@given(
    st.sampled_from(PayloadDtype),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 48),
    st.integers(1, 32),
    st.integers(1, 512),
    st.integers(1, 512),
)
def test_full_chunks_are_256_to_512_kib(
    dtype: PayloadDtype, tokens: int, layers: int, heads: int, qk: int, v: int
) -> None:
    layout = ChunkLayout(bytes(16), tokens, layers, heads, qk, v, dtype)
    num_events = layout.events_per_chunk
    assert num_events % CHAIN_BLOCK == 0 or (num_events < CHAIN_BLOCK and num_events.bit_count() == 1)
    assert layout.payload_bytes(7) == 7 * layout.payload_bytes(1)
    if layout.payload_bytes(1) <= FULL_CHUNK_BYTES - HEADER_BYTES - 64:
        assert FULL_CHUNK_BYTES // 2 - 256 < layout.payload_bytes(num_events) + HEADER_BYTES <= FULL_CHUNK_BYTES
    else:
        assert num_events == 1


def test_dtypes_have_names() -> None:
    names = ("float32", "bfloat16", "int8", "float64", "float16")
    assert [PayloadDtype.from_name(name) for name in names] == list(PayloadDtype)
    for name in ("FLOAT32", "auto", ""):
        with pytest.raises(ConfigError, match="payload dtype"):
            PayloadDtype.from_name(name)


def test_no_mutation_is_accepted() -> None:
    result = tally(3_000, seed=1)
    assert result.num_defects == 0, result.counts
    assert result.counts.total() == 3_000
    assert {kind for kind, _ in result.counts} == set(KINDS)


def test_mutants_differ_and_what_they_mutate_is_sound() -> None:
    value, rng = sample(), Random(3)
    assert rejected(value) is None
    assert rejected(sample(secret=SECRET), secret=SECRET) is None
    assert all(mutate(value, rng) != value for _ in range(200))
    assert all(
        mutate_kind(kind, bytes(200), rng) != bytes(200) for kind in KINDS if kind not in ("zero run", "swap regions")
    )


def test_the_tally_sees_a_reader_that_lets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its checksum the format is open, and the tally says so."""
    monkeypatch.setattr("mfalcon.kvcache.chunk._checksum", lambda facts, payload, secret: bytes(16))
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: True)
    assert tally(100, seed=1).num_defects > 10
