"""A file that is read again when it changes: by what is in it, so that no clock matters, and no link that is turned.

One that cannot be used is told in the log once, and what was read before stays in force.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from mfalcon.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_FILE_BYTES: Final = 1 << 20
SETTLE_S: Final = 0.05
"""A file that is another one after so long is still being written, and is looked at again later."""
T = TypeVar("T")


class Watched(Generic[T]):
    """What a file says, by the last version of it that was good."""

    def __init__(self, setting: str, path: Path, parse: Callable[[bytes], T]) -> None:
        """setting: that names the file. parse: raises ConfigError, which names the place in the file. Raises
        ConfigError for a file that cannot be used.
        """
        self._setting = setting
        self._path = path
        self._parse = parse
        self._contents = self._read()
        self._refused: bytes | str = b""
        """The contents that were refused last, or why there were none."""
        self.value = self._parsed(self._contents)

    def fresh(self) -> tuple[bytes, T] | None:
        """What is in the file now; None where that is nothing new, or nothing good. It may wait for a disk."""
        contents: bytes | str = b""
        try:
            contents = self._read()
            if contents == self._contents:
                self._refused = b""
                return None
            value = self._parsed(contents)
            time.sleep(SETTLE_S)
            if contents != self._read():
                return None
        except ConfigError as error:
            seen = contents or str(error)
            if seen != self._refused:
                logger.error("%s; what it said before stays in force", error)
            self._refused = seen
            return None
        self._refused = b""
        return contents, value

    def take(self, fresh: tuple[bytes, T]) -> None:
        """Have what is in the file now in force."""
        self._contents, self.value = fresh
        logger.info("%s: %s was read again", self._setting, self._path)

    def _parsed(self, contents: bytes) -> T:
        try:
            return self._parse(contents)
        except ConfigError as error:
            raise ConfigError(f"{self._setting}: {self._path}: {error}") from None

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                contents = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{self._setting}: {self._path}: cannot be read: {error.strerror}") from None
        if len(contents) > MAX_FILE_BYTES:
            raise ConfigError(f"{self._setting}: {self._path}: got more, must be at most {MAX_FILE_BYTES} bytes")
        return contents
