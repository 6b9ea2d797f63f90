"""The files of a capture: one is written, and ends at its size or age; the oldest go where all take too much."""

import logging
import os
import secrets
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mfalcon.capture.frames import FILE_ID_BYTES, head
from mfalcon.clock import now_ms
from mfalcon.errors import ConfigError

_log = logging.getLogger(__name__)

SUFFIX: Final = ".mfcap"
_OURS: Final = frozenset({"keys", "lock"})
_INSTEAD: Final = "name a directory in it, which the server makes"
_AGE_SHARE: Final = 10
"""A file is written for at most this part of the longest age, so nothing is kept for much longer than that."""


def capture_files(directory: Path) -> list[Path]:
    """Those of a directory, the oldest first."""
    return sorted(path for path in directory.glob(f"capture-*{SUFFIX}") if _number(path) is not None)


def make_private(directory: Path) -> None:
    """Let nobody else into a directory of captures, if it is there. Raises ConfigError for one that holds other things
    too, or is another user's, and OSError.
    """
    if not directory.is_dir() or not (mode := stat.S_IMODE(directory.stat().st_mode)) & 0o077:
        return
    others = [name for name in os.listdir(directory) if name not in _OURS and not name.endswith(SUFFIX)]
    what = f"capture_dir: {directory} has mode {mode:o}"
    if others:
        raise ConfigError(f"{what} and holds other files ({others[0]!r}), must be of captures alone: {_INSTEAD}")
    try:
        os.chmod(directory, 0o700)
    except PermissionError as error:
        raise ConfigError(f"{what} and is another user's, must be this user's: {_INSTEAD}") from error


def _number(path: Path) -> int | None:
    digits = path.name.removeprefix("capture-").removesuffix(SUFFIX)
    return int(digits) if digits.isdecimal() else None


@dataclass(frozen=True, slots=True)
class FileLimits:
    """budget_bytes: of all files. file_bytes: after which one ends. max_age_s: after which one is deleted."""

    budget_bytes: int
    file_bytes: int
    max_age_s: float


class Files:
    """Those of one server. Belongs to one thread. Its methods raise OSError."""

    def __init__(self, directory: Path, limits: FileLimits) -> None:
        """Raises ConfigError where the directory cannot be read."""
        self._directory = directory
        self._limits = limits
        self._file: int | None = None
        self._size = 0
        self._began = 0.0
        try:
            self._old = {path: path.stat().st_size for path in capture_files(directory)}
        except OSError as error:
            raise ConfigError(f"capture_dir: {directory} cannot be read: {error.strerror}") from error
        numbers = [number for path in self._old if (number := _number(path)) is not None]
        self.number = max(numbers, default=0)
        self.file_id = b""

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(self._old.values()) + self._size

    @property
    def oldest(self) -> int:
        """The number of the oldest file that is kept; of the present one if there is no other."""
        return min((number for path in self._old if (number := _number(path)) is not None), default=self.number)

    @property
    def is_due(self) -> bool:
        """Whether a new file begins with what is written next."""
        is_old = time.monotonic() - self._began > self._limits.max_age_s / _AGE_SHARE
        return self._file is None or self._size >= self._limits.file_bytes or is_old

    def begin(self) -> None:
        """End the present file and begin the next one."""
        self.end()
        number, file_id = self.number + 1, secrets.token_bytes(FILE_ID_BYTES)
        path = self._directory / f"capture-{number:08d}{SUFFIX}"
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._file, self._size, self._began = file, 0, time.monotonic()
        self.number, self.file_id = number, file_id
        try:
            self.write(head(file_id, now_ms()))
        except OSError:
            del self._old[path]
            path.unlink(missing_ok=True)
            raise

    def write(self, content: bytes) -> None:
        """Add a frame: all of it, or nothing where OSError is raised."""
        assert self._file is not None
        view = memoryview(content)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            try:
                os.ftruncate(self._file, self._size)
            except OSError:
                self._size += len(content) - len(view)
            self.end()  # what comes next begins a file of its own
            raise
        self._size += len(content)

    def keep_within(self, coming: int) -> None:
        """Delete the oldest files, and those that are too old, so that there is room for so many bytes more."""
        limits, oldest = self._limits, time.time() - self._limits.max_age_s
        for path in list(self._old):
            is_old = False
            if self.num_bytes + coming <= limits.budget_bytes:
                try:
                    is_old = path.stat().st_mtime < oldest
                except FileNotFoundError:
                    is_old = True
                if not is_old:
                    return
            path.unlink(missing_ok=True)
            del self._old[path]
            _log.info("capture: %s is deleted, %s", path.name, "for its age" if is_old else "for room")

    def end(self) -> None:
        """Close the present file, if there is one."""
        if self._file is None:
            return
        os.close(self._file)
        path = self._directory / f"capture-{self.number:08d}{SUFFIX}"
        self._file, self._old[path], self._size = None, self._size, 0
