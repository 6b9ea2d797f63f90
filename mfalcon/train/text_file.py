"""Where in a CSV or TSV file something is, and what is wrong with one that cannot be read: line and column, in a line.

A reader of millions of rows a second says neither, so this goes through a file again when it was refused.
"""

import contextlib
import csv
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mfalcon.errors import DataError

_GZIP = b"\x1f\x8b"
_MOST_SHOWN = 60


@dataclass(frozen=True, slots=True)
class TextKind:
    """How a file separates its fields; quote: None where quotes are letters."""

    separator: str
    quote: str | None


CSV, TSV = TextKind(",", '"'), TextKind("\t", None)
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


class _Fault(Exception):
    """What is wrong, and in which line."""


def shown(value: object) -> str:
    """A value as a message shows it: short, whatever it is."""
    text = repr(value[: 4 * _MOST_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def check_header(path: Path, kind: TextKind) -> None:
    """Raise DataError for a first line that cannot name the columns. Raises OSError."""
    try:
        line, names = next(((line, fields) for line, fields in _records(path, kind) if fields), (1, []))
    except _Fault as fault:
        raise DataError(f"{path}: {fault}") from fault
    if not names:
        raise DataError(f"{path}: is empty")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        columns = ", ".join(str(at + 1) for at, name in enumerate(names) if name == twice[0])
        raise DataError(
            f"{path}: line {line}: columns {columns} are all called {shown(twice[0])}; give each a name of its own"
        )
    others = [mark for mark in _NAMES if mark != kind.separator and mark in names[0]]
    if len(names) == 1 and others:
        raise DataError(
            f"{path}: line {line}: {shown(names[0])} seems to be separated by {_NAMES[others[0]]}, must be by "
            f"{_NAMES[kind.separator]} (a name that ends in .csv is for commas, .tsv for tabs)"
        )


def fault_of(path: Path, kind: TextKind) -> str | None:
    """The first thing that makes a file unreadable, with its line and what to do; None if nothing is found."""
    width = 0
    try:
        for line, fields in _records(path, kind):
            width = width or len(fields)
            if len(fields) > width:
                return (
                    f"line {line}: {len(fields)} fields, the header has {width}; the first too many is "
                    f"{shown(fields[width])}; leave it out, or put a field that has {_NAMES[kind.separator]} in quotes"
                )
    except _Fault as fault:
        return str(fault)
    return None


def line_of(path: Path, kind: TextKind, row: int) -> int | None:
    """Of a row of data, 0 being the first, the number of the line that it begins in; None if that cannot be told."""
    is_data = False
    with contextlib.suppress(_Fault):
        for line, fields in _records(path, kind):
            if is_data and row == 0:
                return line
            row -= is_data
            is_data = is_data or bool(fields)
    return None


def _records(path: Path, kind: TextKind) -> Iterator[tuple[int, list[str]]]:
    """Records with the line that each begins in; a blank line has no fields. Raises _Fault."""
    with path.open("rb") as file:
        reader = csv.reader(
            _lines(file),
            delimiter=kind.separator,
            quotechar=kind.quote,
            quoting=csv.QUOTE_MINIMAL if kind.quote else csv.QUOTE_NONE,
            strict=True,
        )
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise _Fault(f"line {line}: {_in_words(str(error))}") from error
            if fields is None:
                return
            yield line, fields


def _lines(file: BinaryIO) -> Iterator[str]:
    """Lines of UTF-8, with or without a mark at the beginning, gzipped or not. Raises _Fault."""
    is_gzip = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    number = 0
    try:
        for number, line in enumerate(gzip.GzipFile(fileobj=file) if is_gzip else file, 1):
            if number == 1 and b"\0" in line:
                raise _Fault(
                    "line 1: has zero bytes, as UTF-16 has; write the file as UTF-8 (iconv -f utf-16 -t utf-8)"
                )
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                around = line[max(0, error.start - 20) : error.start + 20].decode("latin-1").strip()
                raise _Fault(
                    f"line {number}, byte {error.start + 1}: {line[error.start : error.start + 1]!r} is not UTF-8 (as "
                    f"Latin-1 it reads {shown(around)}); write the file as UTF-8 (iconv -f latin1 -t utf-8)"
                ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _Fault(f"after line {number}: the gzip stream is damaged or ends early; copy the file again") from error


def _in_words(error: str) -> str:
    if "unexpected end" in error or "field larger" in error:
        return 'a quote (") opens a field that never ends; take it away, or double it and close the field'
    if "new-line" in error:
        return "a carriage return stands alone; end lines with a line feed"
    return 'text follows a closing quote ("); inside quotes a quote is written twice'
