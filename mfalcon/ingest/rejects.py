"""The file of what is left out: lines that are no event, and events that the server refuses for good."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from mfalcon.errors import DataError


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something of a stream that is left out. place: its line, or where else it was. raw: what stood there."""

    place: int | str
    raw: bytes
    why: str


class Rejects:
    """Appends JSON objects of a place, what stood there and why it is left out."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def add(self, left_out: Sequence[LeftOut]) -> int:
        """Write them, durably; the file's size then. Raises DataError."""
        try:
            for each in left_out:
                text = each.raw.decode(errors="replace").rstrip("\r\n")
                fields = {"place": each.place, "error": each.why, "text": text}
                self._file.write(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()
        except OSError as error:
            raise DataError(f"--rejects: cannot write {self._path}: {error.strerror}") from error


@contextmanager
def opened_rejects(path: Path, size: int | None) -> Iterator[Rejects]:
    """The file, cut to a size that it had before, or as it is if that is None. Raises DataError."""
    try:
        file = path.open("ab" if size is None else "r+b" if size else "wb")
        if size is not None:
            file.truncate(size)
            file.seek(size)
    except OSError as error:
        raise DataError(f"--rejects: cannot write {path}: {error.strerror}") from error
    with file:
        yield Rejects(file, path)
