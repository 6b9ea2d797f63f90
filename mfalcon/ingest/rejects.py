"""The file of what is left out: lines that are no event, and events that the server refuses for good."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

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

    def __init__(self, file: FileIO, path: Path, size: int) -> None:
        """size: the file's."""
        self._file = file
        self._path = path
        self._size = size

    def add(self, left_out: Sequence[LeftOut]) -> int:
        """Write them, durably; the file's size then. Raises DataError, and none of them is there."""
        rest = b"".join(map(_line, left_out))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
            self._size = self._file.tell()
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._size)
                self._file.seek(self._size)
            raise DataError(
                f"--rejects: cannot write {self._path}: {error.strerror}; mend that and run it again: nothing is lost"
            ) from error
        return self._size


def _line(left_out: LeftOut) -> bytes:
    text = left_out.raw.decode(errors="replace").rstrip("\r\n")
    fields = {"place": left_out.place, "error": left_out.why, "text": text}
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


@contextmanager
def opened_rejects(path: Path, size: int | None) -> Iterator[Rejects]:
    """The file, cut to a size that it had before, or as it is if that is None. Raises DataError."""
    try:
        file = FileIO(path, "a" if size is None else "r+" if size else "w")
        if size is not None:
            file.truncate(size)
            file.seek(size)
        size = file.tell()
    except OSError as error:
        raise DataError(f"--rejects: cannot write {path}: {error.strerror}") from error
    with file:
        yield Rejects(file, path, size)
