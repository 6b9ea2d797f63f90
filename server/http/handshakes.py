"""The pace at which TLS connections begin, so that a flood of new ones leaves the event loop to those that are open.

A handshake takes about a millisecond of the loop, and who makes one may leave and make the next at once. So what comes
beyond the pace waits before any of it is done, and addresses take turns.
"""

import asyncio
import ipaddress
import logging
import select
import socket
from collections.abc import Callable
from typing import Final, Literal

from server.logs import SELDOM

logger = logging.getLogger(__name__)

BURST_S: Final = 0.025
"""After a while with few of them, so many seconds' worth of handshakes are begun at once."""

End = Literal["begun", "late", "closed"]
"""Of a wait: had its turn; had none in time; had to make place or has left, or the server ended."""


class HandshakeTurns:
    """Those of one port in one process; lives on its event loop."""

    def __init__(self, per_second: float, most: int, longest_s: float, waited: Callable[[End], None]) -> None:
        """most: that wait at once; one more, and of the address that has most of them the oldest is closed. longest_s:
        that one waits. waited: is called at the end of each wait.
        """
        self._interval_s = 1 / per_second
        self._most = most
        self._longest_s = longest_s
        self._waited = waited
        self._loop = asyncio.get_running_loop()
        self._next = 0.0
        """When another one may begin, by the loop's clock; in the past if there is room for several."""
        self._timer: asyncio.TimerHandle | None = None
        self._queues: dict[str, dict[asyncio.Future[None], Callable[[], bool]]] = {}
        """By address, that whose turn is next first; in each the one that has waited longest first, and whether it has
        left.
        """
        self._num_waiting = 0

    async def turn(self, host: str, has_left: Callable[[], bool] = lambda: False) -> None:
        """Return when a client of this host may begin. Raises TimeoutError, and CancelledError for one that has left by
        then, or has to make place.
        """
        if not self._queues and self._takes_one():
            return
        address, turn = network_of(host), self._loop.create_future()
        self._queues.setdefault(address, {})[turn] = has_left
        self._num_waiting += 1
        if self._num_waiting > self._most:
            self._close_one()
        self._wake()
        end: End = "closed"
        try:
            async with asyncio.timeout(self._longest_s):
                await turn
            end = "begun"
        except TimeoutError:
            end = "late"
            self._warn()
            raise
        finally:
            self._remove(address, turn)
            self._waited(end)

    def _takes_one(self) -> bool:
        now = self._loop.time()
        if self._next > now:
            return False
        self._next = max(self._next, now - BURST_S) + self._interval_s
        return True

    def _wake(self) -> None:
        if self._timer is None and self._queues:
            self._timer = self._loop.call_at(self._next, self._begin)

    def _begin(self) -> None:
        self._timer = None
        while self._queues:
            address, queue = next(iter(self._queues.items()))
            turn, has_left = next(iter(queue.items()))
            if has_left():  # a turn for each that gave up, and who comes again in its place would never have one
                self._remove(address, turn)
                turn.cancel()
                continue
            if not self._takes_one():
                break
            self._remove(address, turn)
            if queue:  # behind the others
                self._queues[address] = self._queues.pop(address)
            if not turn.done():
                turn.set_result(None)
        self._wake()

    def _close_one(self) -> None:
        address, queue = max(self._queues.items(), key=lambda each: len(each[1]))
        turn = next(iter(queue))
        self._remove(address, turn)
        turn.cancel()
        self._warn()

    def _warn(self) -> None:
        logger.warning("http: TLS connections were closed in front of their handshake: too many come", extra=SELDOM)

    def _remove(self, address: str, turn: "asyncio.Future[None]") -> None:
        queue = self._queues.get(address, {})
        if turn in queue:
            del queue[turn]
            self._num_waiting -= 1
            if not queue:
                del self._queues[address]


def hung_up(client: socket.socket) -> bool:
    """Whether it has closed the connection, even if it sent something before."""
    poll = select.poll()
    poll.register(client, getattr(select, "POLLRDHUP", select.POLLHUP))
    return bool(poll.poll(0))


def network_of(host: str) -> str:
    """Who takes turns with others: an address, of IPv6 all that share its first half, as one client may have these."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(address.ipv4_mapped or address.packed[:8].hex())
