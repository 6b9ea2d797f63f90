"""A file of histories that is damaged is refused by name, also where the library that reads it panics."""

from pathlib import Path

from mfalcon.errors import DataError
from mfalcon.history.exchange import read_parquet, write_parquet
from mfalcon.history.history import no_history
from tests.small import random_events


def test_a_damaged_parquet_file_is_no_defect_of_ours(tmp_path: Path) -> None:
    """Some of these make polars panic, and a panic is no Exception."""
    write_parquet(iter([no_history("ann", b"one life").extended(random_events(43))]), tmp_path / "out")
    (file,) = (tmp_path / "out").iterdir()
    good, refused = file.read_bytes(), 0
    for at in range(4, len(good), 16):
        file.write_bytes(good[:at] + bytes((good[at] ^ 0xFF,)) + good[at + 1 :])
        try:
            list(read_parquet(file))
        except DataError as error:
            refused += 1
            assert str(file) in str(error)
    assert refused > 10
