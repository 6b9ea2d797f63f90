"""A circuit breaker that lets one call through now and then, and closes when that is answered."""

import time
from collections.abc import Callable
from typing import Final

NUM_FAILURES: Final = 5
"""In a row, after which nobody is sent to a service for a while."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0


class Circuit:
    """Closed while a service answers. After a pause one call is the probe: if it is answered all others go again, if
    not the pause is twice as long. Owned by one thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._opens_at = 0.0
        self._is_probed = False

    @property
    def is_open(self) -> bool:
        """Whether calls are held back, but for a probe."""
        return self._failures >= NUM_FAILURES

    def may_call(self) -> bool:
        """Whether one may call now; if so it must say how that ended: `succeeded`, `failed` or `abandoned`."""
        if not self.is_open:
            return True
        if self._is_probed or self._clock() < self._opens_at:
            return False
        self._is_probed = True
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        self._failures, self._pause_s, self._is_probed = 0, FIRST_PAUSE_S, False

    def failed(self) -> bool:
        """A call was not answered. True if calls are held back from now on and were not before."""
        was_open, was_probe = self.is_open, self._is_probed
        self._failures, self._is_probed = self._failures + 1, False
        if not self.is_open:
            return False
        if was_probe:
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        if was_probe or not was_open:
            self._opens_at = self._clock() + self._pause_s
        return not was_open

    def abandoned(self) -> None:
        """Nobody waited for a call any more, which says nothing of the service."""
        self._is_probed = False
