"""The pace at which callers are told their own mistakes: who makes thousands waits for the answers, and others do not.

To find that a request is wrong costs the event loop about as much as to take a right one in, and a client that is
refused asks again at once. Its next request comes no sooner than the answer to its last one, so that is what waits.
"""

import asyncio
from collections.abc import Callable
from typing import Final

BURST_S: Final = 0.05
"""After a while without refusals, so many seconds' worth of them are told at once."""
LONGEST_S: Final = 2.0
"""Nobody waits longer than this."""
HTTP_FAULTS: Final = frozenset({400, 401, 403, 404, 405, 413, 415, 422})
GRPC_FAULTS: Final = frozenset(
    {"INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "UNIMPLEMENTED"}
)
"""Answers that say what the caller did wrong: neither that the server is busy, nor that somebody else was first."""


class Refusals:
    """Those of one transport in one process; lives on its event loop."""

    def __init__(self, per_second: float, most: int, paced: Callable[[], None] = lambda: None) -> None:
        """most: that may wait at once; one more is answered without a wait, as are all that would wait for more than
        `LONGEST_S`. paced: is called for each that waits.
        """
        self._interval_s = 1 / per_second
        self._longest_s = min(LONGEST_S, most * self._interval_s)
        self._paced = paced
        self._next = 0.0
        """When another one may be told, by the loop's clock; in the past if there is room for several."""

    async def turn(self) -> None:
        """Return when one more may be told."""
        now = asyncio.get_running_loop().time()
        at = max(self._next, now - BURST_S)
        if at - now > self._longest_s:
            return
        self._next = at + self._interval_s
        if at > now:
            self._paced()
            await asyncio.sleep(at - now)
