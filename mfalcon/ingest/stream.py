"""Lines of a file or of standard input as windows. A place is the number of a byte in the stream."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from mfalcon.errors import DataError, InvalidInput
from mfalcon.ingest.lines import LineReader, Row
from mfalcon.ingest.windows import Window

MAX_LINE_BYTES = 1 << 20
HEAD_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the stream, counted from 1."""

    number: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Taken:
    """A window of a stream. lines: by their places. left_out: those that are no event, and why."""

    window: Window
    lines: dict[int, Line]
    left_out: tuple[tuple[Line, str], ...]


class LineStream:
    """The lines of a stream. name: in messages."""

    def __init__(self, file: BinaryIO, name: str, reader: LineReader, *, leaves_out: bool) -> None:
        """leaves_out: whether lines that are no event are left out and told of; else the first one ends the stream."""
        self._file = file
        self._name = name
        self._reader = reader
        self._leaves_out = leaves_out
        self._at = 0
        self._number = 0
        self._head = b""

    @property
    def at(self) -> int:
        """The place of the next line."""
        return self._at

    def head_at(self, place: int) -> str:
        """A hash of the stream's first bytes, HEAD_BYTES at most, up to a place that has been read."""
        return hashlib.blake2b(self._head[:place], digest_size=8).hexdigest()

    def skip(self, place: int, head: str) -> None:
        """Go on at a place where the head was this one. Raises DataError if this is not that stream."""
        while self._at < place and self._next() is not None:
            pass
        if self._at != place or (place and self.head_at(place) != head):
            raise DataError(
                f"{self._name}: is not the stream of which {place:,} bytes were ingested: it was changed, cut or "
                "replaced; remove the file of --progress to begin with it anew"
            )

    def windows(self, num_events: int, first_end: int) -> Iterator[Taken]:
        """The rest of the stream in windows of so many events. first_end: where the first one ends if it is behind the
        next line: it was sent before. Raises DataError for a line that is no event, when those before it are taken.
        """
        end = first_end if first_end > self._at else None
        while True:
            taken, why = self._window(num_events, end)
            if end is not None and taken.window.end != end:
                raise why or DataError(f"{self._name}: ends at byte {self._at:,}; {end:,} bytes were there before")
            if taken.lines or taken.left_out:
                yield taken
            if why is not None:
                raise why
            if taken.window.end == taken.window.begin:
                return
            end = None

    def _window(self, num_events: int, end: int | None) -> tuple[Taken, DataError | None]:
        """So many events, or those before `end`; and what is wrong with the line behind them, if that is why."""
        begin = self._at
        rows: list[Row] = []
        lines: dict[int, Line] = {}
        left_out: list[tuple[Line, str]] = []
        while self._at < end if end is not None else len(rows) + len(left_out) < num_events:
            place = self._at
            line = self._next()
            if line is None:
                break
            if not line.raw.strip():
                continue
            try:
                rows.append(self._reader.read(line.raw))
                lines[place] = line
            except InvalidInput as error:
                if not self._leaves_out:
                    window = Window.of(begin, place, rows, list(lines))
                    wrong = DataError(f"{self._name}:{line.number}: {error}")
                    return Taken(window, lines, ()), wrong
                left_out.append((line, str(error)))
        return Taken(Window.of(begin, self._at, rows, list(lines)), lines, tuple(left_out)), None

    def _next(self) -> Line | None:
        """The next line, None behind the last. Raises DataError for one that does not end."""
        raw = self._file.readline(MAX_LINE_BYTES + 1)
        if not raw:
            return None
        self._number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise DataError(f"{self._name}:{self._number}: a line must have at most {MAX_LINE_BYTES:,} bytes")
        self._at += len(raw)
        if len(self._head) < HEAD_BYTES:
            self._head += raw[: HEAD_BYTES - len(self._head)]
        return Line(self._number, raw)
