"""Callers who are over their rate of requests, as far as this process has heard: they are refused before a body is
read.

The account is in the engine's process alone; what it refuses with a time that holds for every request of a caller is
remembered here until then, so that a flood costs neither a parse nor a question to that process.
"""

import time
from collections.abc import Callable
from typing import Final

from mfalcon.errors import Overloaded

HEARD_S: Final = 2.0
"""Longest time for which it is not asked again: the limit may have changed since."""


class Gate:
    """Lives on one event loop, that of a transport. clock: monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._closed: dict[str, tuple[float, float, str]] = {}
        """By caller: until when he is refused here, until when by the account, and what was said."""

    def close(self, caller: str, error: Overloaded) -> None:
        """The engine's process has refused this caller, if it was for a rate of requests."""
        if error.of_caller and (wait_s := error.retry_after_s) is not None:
            now = self._clock()
            self._closed[caller] = now + min(wait_s, HEARD_S), now + wait_s, str(error)

    def open(self) -> None:
        """The limits may be others now."""
        self._closed.clear()

    def check(self, caller: str) -> None:
        """Raise Overloaded for one that is closed out."""
        closed = self._closed.get(caller)
        if closed is None:
            return
        refused_until, until, text = closed
        now = self._clock()
        if now < refused_until:
            raise Overloaded(text, retry_after_s=until - now, elsewhere=False)
        del self._closed[caller]
