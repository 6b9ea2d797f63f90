"""Callers who are over their rate of requests, as far as this process has heard: they are refused before a body is
read.

The account is in the engine's process alone; what it refuses with a time that holds for every request of a caller is
remembered here until then, so that a flood costs neither a parse nor a question to that process.
"""

import time

from mfalcon.errors import Overloaded


class Gate:
    """Lives on one event loop, that of a transport."""

    def __init__(self) -> None:
        self._closed: dict[str, tuple[float, str]] = {}
        """By caller: until when, as a reading of `time.monotonic()`, and what was said."""

    def close(self, caller: str, error: Overloaded) -> None:
        """The engine's process has refused this caller, if it was for a rate of requests."""
        if error.of_caller and error.retry_after_s is not None:
            self._closed[caller] = time.monotonic() + error.retry_after_s, str(error)

    def check(self, caller: str) -> None:
        """Raise Overloaded for one that is closed out."""
        closed = self._closed.get(caller)
        if closed is None:
            return
        until, text = closed
        left = until - time.monotonic()
        if left > 0:
            raise Overloaded(text, retry_after_s=left, elsewhere=False)
        del self._closed[caller]
