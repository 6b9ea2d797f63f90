"""Mutations of good inputs, the same for a seed: bytes, numbers, lengths, runs and parts of other inputs."""

from collections.abc import Sequence
from random import Random

NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    16,
    31,
    32,
    64,
    100,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
)
TEXTS = (
    *(b"null", b"true", b"[]", b"{}", b'""', b"-1", b"1e999", b"NaN", b"Infinity", b"9" * 400, b"0x10", b"\xff\xfe"),
    *(
        b"\\ud800",
        b"\0",
        b"\r\n",
        b"\r\n\r\n",
        b"%00",
        b"%ff",
        b"../../etc/passwd",
        b"\xc3\x28",
        b"[" * 300,
        b"{" * 300,
    ),
)


def mutate(corpus: Sequence[bytes], rng: Random) -> bytes:
    """One of a corpus with one to five things changed. Its first byte, which is often a kind, seldom is."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        _edit(data, corpus, rng)
    return bytes(data)


def _edit(data: bytearray, corpus: Sequence[bytes], rng: Random) -> None:
    at = rng.randrange(0 if rng.random() < 0.05 else 1, max(2, len(data) + 1))
    end = at + rng.choice((1, 2, 4, 8, 16, rng.randrange(1, 64)))
    match rng.randrange(9):
        case 0:
            data[at : at + 1] = bytes((rng.randrange(256),))
        case 1:
            if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
        case 2:
            del data[at:end]
        case 3:
            data[at:at] = data[at:end] * rng.choice((1, 1, 2, 50))
        case 4:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) * rng.choice((1, 1, -1))
            data[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
        case 5:
            data[at : at + rng.choice((0, 1, 4))] = rng.choice(TEXTS)
        case 6:
            other = rng.choice(corpus)
            start = rng.randrange(len(other) + 1)
            data[at : at + rng.choice((0, 8))] = other[start : start + rng.randrange(1, 64)]
        case 7:
            del data[at:]
        case _:
            data[at : at + 1] = str(rng.choice(NUMBERS)).encode()
