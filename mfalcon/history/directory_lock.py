"""One process at a time in a directory: a lock that ends with its process, however that ends."""

import fcntl
import os
from pathlib import Path

from mfalcon.errors import ConfigError

_NAME = "lock"


class DirectoryLock:
    """Held from its making to `release`."""

    def __init__(self, directory: Path, setting: str = "log_dir") -> None:
        """Make the directory if there is none, readable by this user alone, and lock it.

        Raises ConfigError if another process holds the lock, which it names, or the directory cannot be used.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(directory / _NAME, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise ConfigError(f"{setting}: {directory} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise ConfigError(
                f"{setting}: {directory} is in use by process {holder}, must be that of one server alone"
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)
