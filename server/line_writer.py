"""Lines that are written beside the event loop: whatever becomes of the file, nobody waits for it."""

import logging
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from mfalcon.errors import ConfigError
from mfalcon.metrics.line_metrics import LineMetrics

logger = logging.getLogger(__name__)

MOST_WAITING: Final = 8_192
GATHER_S: Final = 0.25
"""Lines of so many seconds leave together: to wake a thread costs more than to write a line, and of the requests that
are answered meanwhile those alone are disturbed that meet it."""
LOOK_S: Final = 1.0
"""So often it is seen whether the file is still there; whoever moves it needs to tell nobody."""
RETRY_S: Final = 1.0
_MOST_BYTES: Final = 64 * 2**10
_STDERR: Final = 2

Record = TypeVar("Record")


class LineWriter(Generic[Record]):
    """Writes records as lines, whole ones, to the end of a file that others may write to as well.

    path: None for standard error. line: what a record is in the file, with its end; it runs on the thread of this.
    """

    def __init__(
        self,
        path: Path | None,
        line: Callable[[Record], bytes],
        metrics: LineMetrics,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        """Raises ConfigError for what cannot be written to."""
        self._path = path
        self._line = line
        self._metrics = metrics
        self._most_waiting = most_waiting
        self._waiting = deque[Record]()
        self._woken, self._closing, self._moved = threading.Event(), threading.Event(), threading.Event()
        self._looked_at = time.monotonic()
        self._rest = b""
        """Of a line that was written in part."""
        self._fd = self._opened()
        self._next_line: bytes | None = None
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="mfalcon-lines", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Have it written soon, or count that it is not."""
        if len(self._waiting) >= self._most_waiting:
            self._metrics.lines.labels("dropped").inc()
            return
        self._waiting.append(record)
        if not self._woken.is_set():
            self._woken.set()

    def reopen(self) -> None:
        """Go on in the file that has the name now."""
        self._moved.set()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, for so long at most."""
        self._closing.set()
        self._woken.set()
        self._thread.join(timeout_s)

    def _opened(self) -> int:
        if self._path is None:
            return _STDERR
        try:
            # Nobody may read from a pipe yet, and this shall not wait for one.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            return os.open(self._path, flags, 0o640)
        except OSError as error:
            raise ConfigError(f"access_log: cannot write to {self._path}: {error.strerror}") from error

    def _run(self) -> None:
        while not (self._closing.is_set() and not self._waiting):
            self._woken.wait()
            self._woken.clear()
            self._closing.wait(GATHER_S)
            while self._waiting or self._next_line is not None:
                self._write_some()
        if self._fd != _STDERR:
            os.close(self._fd)

    def _write_some(self) -> None:
        # Several processes may share a pipe, which keeps whole what is no longer than this.
        most = select.PIPE_BUF if _is_pipe(self._fd) else _MOST_BYTES
        lines, num_bytes = list[bytes](), 0
        while (line := self._next()) is not None:
            if lines and num_bytes + len(line) > most:
                self._next_line = line
                break
            lines.append(line)
            num_bytes += len(line)
        if not lines:
            return
        try:
            self._follow()
            self._put(b"".join(lines))
        except (OSError, ConfigError) as error:
            self._metrics.lines.labels("failed").inc(len(lines))
            self._said(f"the access log is not written: {error}")
            self._closing.wait(RETRY_S)  # and what comes meanwhile waits, or is dropped
            return
        self._metrics.lines.labels("written").inc(len(lines))
        if self._is_failing:
            self._is_failing = False
            logger.info("the access log is written again")

    def _follow(self) -> None:
        """The file may have been moved, deleted or replaced."""
        if self._path is None:
            return
        now = time.monotonic()
        if not self._moved.is_set() and now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        try:
            ours, named = os.fstat(self._fd), os.stat(self._path)
            is_there = (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)
        except FileNotFoundError:
            is_there = False
        if not is_there or self._moved.is_set():
            fd = self._opened()
            os.close(self._fd)
            self._fd, self._rest = fd, b""
            self._moved.clear()

    def _next(self) -> bytes | None:
        """The next line; None if there is none now."""
        line, self._next_line = self._next_line, None
        while line is None and self._waiting:
            try:
                line = self._line(self._waiting.popleft())
            except Exception:  # noqa: BLE001 (the thread's edge: one record shall not end it)
                self._metrics.lines.labels("failed").inc()
                self._said("a line of the access log could not be made", exc_info=True)
        return line

    def _put(self, lines: bytes) -> None:
        """Raises OSError; then what was begun of a line is ended by what comes next."""
        rest, left = self._rest, memoryview(self._rest + lines)
        try:
            while left:
                try:
                    left = left[os.write(self._fd, left) :]
                except BlockingIOError:
                    select.select((), (self._fd,), (), RETRY_S)
        except OSError:
            self._rest = unfinished(rest, lines, len(rest) + len(lines) - len(left))
            raise
        self._rest = b""

    def _said(self, what: str, *, exc_info: bool = False) -> None:
        """Once for each time that it goes wrong."""
        if not self._is_failing:
            self._is_failing = True
            logger.error("%s", what, exc_info=exc_info)


def unfinished(rest: bytes, lines: bytes, num_written: int) -> bytes:
    """What must come before any other line. rest: of a line that was begun before; of it and these lines, in order, so
    many bytes were written.
    """
    data = rest + lines
    if not num_written:
        return rest
    return b"" if data[num_written - 1] == ord("\n") else data[num_written:].partition(b"\n")[0] + b"\n"


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False
