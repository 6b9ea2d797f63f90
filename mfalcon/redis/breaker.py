"""A circuit breaker: after some failures in a row nobody waits for a server any more, until a probe answers."""

from collections.abc import Callable


class Breaker:
    """Closed while the server answers. Owned by the event loop.

    num_failures: failures in a row that open it, unless all of them were calls for one key, which may be the fault of
    that key. The client's probe runs whether there is traffic or not, so an idle server's breaker opens as soon as a
    busy one's, and only an answer to a probe closes it.
    """

    def __init__(self, num_failures: int, on_change: Callable[[bool], None]) -> None:
        self._limit = num_failures
        self._on_change = on_change
        self._failures = 0
        self._key: str | None = None
        self._is_of_the_server = False
        self._open = False

    @property
    def open(self) -> bool:
        """True while calls must not be tried."""
        return self._open

    def succeeded(self) -> None:
        """A call was answered, whatever the answer."""
        self._failures, self._key, self._is_of_the_server = 0, None, False
        self._set(False)

    def failed(self, key: str | None = None) -> None:
        """A call was not answered. key: of which it was, None where the key cannot be the cause."""
        self._is_of_the_server |= key is None or (self._failures > 0 and key != self._key)
        self._failures, self._key = self._failures + 1, key
        if self._failures >= self._limit and self._is_of_the_server:
            self._set(True)

    def _set(self, is_open: bool) -> None:
        if is_open != self._open:
            self._open = is_open
            self._on_change(is_open)
