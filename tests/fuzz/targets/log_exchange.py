"""Any bytes as a file of JSON lines that `mfalcon log import` reads. Parquet is left out, see `tables.py`."""

from collections.abc import Iterator

from mfalcon.errors import DataError
from mfalcon.history.exchange import read_jsonl, write_jsonl
from mfalcon.history.history import History, no_history
from tests.fuzz.files import directory
from tests.small import random_events


def histories() -> Iterator[History]:
    """Two."""
    yield no_history("ann", b"one life").extended(random_events(5))
    yield no_history("bob", b"one life").extended(random_events(70)).trimmed(32)


def seeds() -> list[bytes]:
    """Files that were exported, and lines that others may write."""
    lines = directory("exchange") / "seed.jsonl"
    write_jsonl(histories(), lines)
    plain = b'{"user_id": "zoe", "events": [[7, 1, 2.5, 893286700000], [8, 0, 0, 893286700001]]}\n'
    return [lines.read_bytes(), plain]


def target(data: bytes) -> None:
    """Histories that prove themselves, or DataError."""
    path = directory("exchange") / "fuzzed.jsonl"
    path.write_bytes(data)
    try:
        for history in read_jsonl(path):
            assert len(history.version) == 16
    except DataError:
        return
