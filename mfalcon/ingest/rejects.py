"""The file of what is left out: lines that are no event, and events that the server refuses for good."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import orjson

from mfalcon.errors import DataError
from mfalcon.ingest.stream import Line


class Rejects:
    """Appends JSON objects of a line's number, its text and why it is left out."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def add(self, left_out: Sequence[tuple[Line, str]]) -> int:
        """Write them, durably; the file's size then. Raises DataError."""
        try:
            for line, why in left_out:
                text = line.raw.decode(errors="replace").rstrip("\r\n")
                fields = {"line": line.number, "error": why, "text": text}
                self._file.write(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()
        except OSError as error:
            raise DataError(f"--rejects: cannot write {self._path}: {error.strerror}") from error


@contextmanager
def opened_rejects(path: Path, size: int) -> Iterator[Rejects]:
    """The file, cut to what it held when the last window was acknowledged. Raises DataError."""
    try:
        file = path.open("r+b" if size else "wb")
        file.truncate(size)
        file.seek(size)
    except OSError as error:
        raise DataError(f"--rejects: cannot write {path}: {error.strerror}") from error
    with file:
        yield Rejects(file, path)
