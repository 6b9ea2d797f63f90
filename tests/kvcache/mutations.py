"""What storage, networks and other users can do to a chunk; `python -m tests.kvcache.mutations` counts what passes.

Every second value is made and read with a secret. A mutation that is accepted, or that ends in anything but
ChunkRejected, is a defect.
"""

import argparse
import random
import struct
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from random import Random

from mfalcon.kvcache.chunk import HEADER_BYTES, ChunkHeader, ChunkLayout, ChunkRejected, PayloadDtype, pack, unpack

LAYOUT = ChunkLayout(
    fingerprint=b"sixteen bytes of",
    tokens_per_event=2,
    num_layers=2,
    num_heads=2,
    qk_dim=16,
    v_dim=24,
    dtype=PayloadDtype.BFLOAT16,
)
USER = bytes(range(16))
SECRET = b"a secret of the operator"

ACCEPTED = "ACCEPTED"


def sample(
    layout: ChunkLayout = LAYOUT, user: bytes = USER, secret: bytes | None = None, num_events: int = 63
) -> bytes:
    """The last chunk of a user's state: 40 KB of random payload behind one full chunk."""
    first = 1024 + layout.events_per_chunk
    header = ChunkHeader(layout, user, bytes(reversed(range(16))), 1024, first, first + num_events)
    return pack(header, Random(user + layout.fingerprint).randbytes(layout.payload_bytes(num_events)), secret)


@cache
def foreign() -> tuple[bytes, ...]:
    """Chunks that are right for somebody else: another user, another model, both, another length, another secret."""
    other_user, other_model = bytes(16), replace(LAYOUT, fingerprint=b"of another model")
    return (
        sample(user=other_user),
        sample(user=other_user, secret=SECRET),
        sample(other_model),
        sample(other_model, secret=SECRET),
        sample(other_model, other_user),
        sample(user=other_user, num_events=61),
        sample(secret=b"another secret"),
    )


def _flip_bits(value: bytes, rng: Random) -> bytes:
    """One to eight bits, half of the time in the header, which is a thousandth of the value."""
    mutant, end = bytearray(value), rng.choice((HEADER_BYTES, len(value)))
    for _ in range(rng.choice((1, 1, 2, 8))):
        mutant[rng.randrange(min(end, len(value)))] ^= 1 << rng.randrange(8)
    return bytes(mutant)


def _overwrite_run(value: bytes, rng: Random) -> bytes:
    first, stop = _region(value, rng)
    return value[:first] + rng.randbytes(stop - first) + value[stop:]


def _zero_run(value: bytes, rng: Random) -> bytes:
    first, stop = _region(value, rng)
    return value[:first] + bytes(stop - first) + value[stop:]


def _set_field(value: bytes, rng: Random) -> bytes:
    """A small, huge or neighbouring number in some field of the header."""
    size, form = rng.choice(((2, "<H"), (4, "<I"), (8, "<Q")))
    offset = rng.randrange(0, HEADER_BYTES - size + 1, 2)
    (old,) = struct.unpack_from(form, value, offset)
    limit = 1 << (8 * size)
    number = rng.choice((0, 1, old + 1, old - 1, old * 2, limit - 1, limit // 2)) % limit
    return value[:offset] + struct.pack(form, number) + value[offset + size :]


def _truncate(value: bytes, rng: Random) -> bytes:
    return value[: rng.choice((rng.randrange(len(value)), rng.randrange(HEADER_BYTES + 1), len(value) - 1))]


def _extend(value: bytes, rng: Random) -> bytes:
    tail = rng.choice((rng.randbytes(rng.randrange(1, 65)), bytes(rng.randrange(1, 65)), value))
    return value + tail


def _cut_out(value: bytes, rng: Random) -> bytes:
    first, stop = _region(value, rng)
    return value[:first] + value[stop:]


def _swap_regions(value: bytes, rng: Random) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(value) + 1) for _ in range(4))
    return value[:a] + value[c:d] + value[b:c] + value[a:b] + value[d:]


def _foreign_header(value: bytes, rng: Random) -> bytes:
    return rng.choice(foreign())[:HEADER_BYTES] + value[HEADER_BYTES:]


def _foreign_payload(value: bytes, rng: Random) -> bytes:
    return value[:HEADER_BYTES] + rng.choice(foreign())[HEADER_BYTES:]


def _foreign_run(value: bytes, rng: Random) -> bytes:
    first, stop = _region(value, rng)
    return value[:first] + rng.choice(foreign())[first:stop] + value[stop:]


def _foreign_chunk(value: bytes, rng: Random) -> bytes:
    return rng.choice(foreign())


def _relabelled_chunk(value: bytes, rng: Random) -> bytes:
    """A foreign chunk under this one's facts, all but the checksum."""
    return value[: HEADER_BYTES - 16] + rng.choice(foreign())[HEADER_BYTES - 16 :]


def _region(value: bytes, rng: Random) -> tuple[int, int]:
    """A run of up to 4 KB, half of the time one that begins in the header."""
    first = rng.randrange(min(rng.choice((HEADER_BYTES, len(value))), len(value)))
    return first, min(len(value), first + rng.choice((1, 8, 16, 64, rng.randrange(1, 4096))))


KINDS: Mapping[str, Callable[[bytes, Random], bytes]] = {
    "flip bits": _flip_bits,
    "overwrite run": _overwrite_run,
    "zero run": _zero_run,
    "set header field": _set_field,
    "truncate": _truncate,
    "extend": _extend,
    "cut out run": _cut_out,
    "swap regions": _swap_regions,
    "foreign header": _foreign_header,
    "foreign payload": _foreign_payload,
    "foreign run": _foreign_run,
    "foreign chunk": _foreign_chunk,
    "relabelled chunk": _relabelled_chunk,
}


def mutate_kind(kind: str, value: bytes, rng: Random) -> bytes:
    """A mutant of one kind. It differs from the value: what came out equal (zeroed zeros) is drawn again."""
    while (mutant := KINDS[kind](value, rng)) == value:
        pass
    return mutant


def mutate(value: bytes, rng: Random) -> bytes:
    """A mutant of any kind, different from the value, which is at least a header long."""
    return mutate_kind(rng.choice(tuple(KINDS)), value, rng)


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of mutants: (kind, reason) -> count. The reason of a defect is ACCEPTED or an exception's name."""

    counts: Counter[tuple[str, str]]
    num_defects: int


def tally(count: int, seed: int) -> Tally:
    """Mutate and read `count` chunks, kinds in turn."""
    rng, counts, num_defects = random.Random(seed), Counter[tuple[str, str]](), 0
    kinds, secrets = tuple(KINDS), (None, SECRET)
    values = {secret: sample(secret=secret) for secret in secrets}
    for index in range(count):
        kind, secret = kinds[index % len(kinds)], secrets[index // len(kinds) % 2]
        mutant = mutate_kind(kind, values[secret], rng)
        try:
            unpack(mutant, LAYOUT, USER, secret)
        except ChunkRejected as rejected:
            reason: str = rejected.reason
        except Exception as error:  # noqa: BLE001  # which one is what this counts
            reason, num_defects = type(error).__name__, num_defects + 1
        else:
            reason, num_defects = ACCEPTED, num_defects + 1
        counts[kind, reason] += 1
    return Tally(counts, num_defects)


def table(counts: Counter[tuple[str, str]]) -> str:
    """Kinds down, reasons across."""
    reasons = sorted({reason for _, reason in counts})
    rows = [["kind", *reasons, "all"]]
    for kind in KINDS:
        row = [counts[kind, reason] for reason in reasons]
        rows.append([kind, *map(str, row), str(sum(row))])
    sums = [sum(counts[kind, reason] for kind in KINDS) for reason in reasons]
    rows.append(["all", *map(str, sums), str(sum(sums))])
    return "\n".join(row[0].ljust(18) + "".join(cell.rjust(11) for cell in row[1:]) for row in rows)


def main() -> int:
    """Print the table; 1 if there is a defect."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = tally(arguments.count, arguments.seed)
    print(table(result.counts))
    print(f"{arguments.count} mutants of a chunk of {len(sample())} bytes, seed {arguments.seed}: ", end="")
    print(f"{result.num_defects} accepted or crashed")
    return 1 if result.num_defects else 0


if __name__ == "__main__":
    sys.exit(main())
