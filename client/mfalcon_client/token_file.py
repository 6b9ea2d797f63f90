"""A bearer token that lies in a file, where another one may lie tomorrow."""

import os
from pathlib import Path

from mfalcon_client.errors import InvalidArgument


class TokenFile:
    """Gives the token in a file, as `token=` of a client: it is read again when the file is another, so that a token is
    rotated without a restart. White space around it does not count.

    Raises InvalidArgument where the file cannot be read; a call that asks for the token then fails, and the next one
    looks again.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._token = ""

    def __repr__(self) -> str:
        """Without the token."""
        return f"TokenFile({str(self._path)!r})"

    def __call__(self) -> str:
        """The token that lies there now."""
        try:
            found = os.stat(self._path)
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                self._token = self._path.read_text(encoding="ascii").strip()
                self._seen = seen
        except OSError as error:
            raise InvalidArgument("INVALID_ARGUMENT", f"token: cannot read {self._path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InvalidArgument("INVALID_ARGUMENT", f"token: {self._path} must hold printable ASCII") from None
        if not self._token:
            self._seen = None
            raise InvalidArgument("INVALID_ARGUMENT", f"token: {self._path} is empty")
        return self._token
