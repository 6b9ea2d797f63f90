"""Who may connect: as many as there is room for, and then those who have waited least for a request."""

import asyncio
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from server.addresses import BACKLOG
from server.http.connection import Connection, ConnectionLimits, Waiting
from server.http.handshakes import HandshakeTurns, hung_up
from server.logs import SELDOM

logger = logging.getLogger(__name__)

ACCEPTED_AT_ONCE = 16
RESERVE = 16
"""So many come in beyond the limit while every connection has a request in work: probes do not wait for others."""
RETRY_SECONDS = 0.1
MIN_CONNECTIONS = 16


def room_for(max_connections: int) -> int:
    """As many, and at most half of the files that this process may open; others are gRPC's, Redis', the model's."""
    max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = min(max_connections, max(MIN_CONNECTIONS, max_files // 2))
    if room < max_connections:
        logger.warning("http: %d connections at most, since this process may open %d files", room, max_files)
    return room


@dataclass(frozen=True, slots=True)
class Tls:
    """context: what the next connection is given. limits: how long its client may take for a handshake, and to agree to
    the connection's end. turns: where it waits before the handshake, if anywhere.
    """

    context: Callable[[], ssl.SSLContext]
    limits: ConnectionLimits
    turns: HandshakeTurns | None = None


class Handshake:
    """A connection whose client is yet to agree on a cipher: it waits as one does that is yet to send a request."""

    def __init__(self, opening: "asyncio.Task[None]") -> None:
        self._opening = opening

    def abort(self) -> None:
        """Close it at once."""
        self._opening.cancel()


class Listener:
    """Accepts connections from a listening socket until it is closed.

    connections: those open. waiting: those of them that wait for their client, the one that does for longest first; it
    is closed where there is no room for another.
    """

    def __init__(
        self,
        sock: socket.socket,
        connect: Callable[[], Connection],
        connections: "set[Connection]",
        waiting: dict[Waiting, None],
        max_connections: int,
        tls: Tls | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._sock.setblocking(False)
        self._connect = connect
        self._connections = connections
        self._waiting = waiting
        self._max_connections = max_connections
        self._tls = tls
        self._opening: set[asyncio.Task[None]] = set()
        self._listen()

    def close(self) -> None:
        """Accept no more than those who have connected already."""
        if self._sock.fileno() < 0:
            return
        self._accept(BACKLOG)
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def give_up(self) -> None:
        """Wait for no handshake any more."""
        for opening in tuple(self._opening):
            opening.cancel()

    def _listen(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._accept, ACCEPTED_AT_ONCE)

    def _accept(self, at_most: int) -> None:
        for _ in range(at_most):
            try:
                accepted, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.warning("http: cannot accept a connection: %s", error.strerror, extra=SELDOM)
                if not self._close_one():
                    # The socket stays readable: it would be asked, and fail, as often as the processor can.
                    self._loop.remove_reader(self._sock)
                    self._loop.call_later(RETRY_SECONDS, self._listen)
                return
            if self._has_room():
                self._begin(accepted, peer[0])
            else:
                accepted.close()

    def _has_room(self) -> bool:
        """Whether another may come, for whom one that waits may have to go."""
        num_connections = len(self._connections) + len(self._opening)
        if num_connections < self._max_connections or self._close_one():
            return True
        logger.warning("http: all %d connections have a request in work", num_connections, extra=SELDOM)
        return num_connections < self._max_connections + RESERVE

    def _close_one(self) -> bool:
        """Whether there was one that waits."""
        for connection in self._waiting:
            del self._waiting[connection]
            connection.abort()
            return True
        return False

    def _begin(self, accepted: socket.socket, host: str) -> None:
        opening = self._loop.create_task(self._open(accepted, host))
        self._opening.add(opening)
        handshake = Handshake(opening)
        if self._tls is not None:
            self._waiting[handshake] = None

        def done(_: "asyncio.Task[None]") -> None:
            self._opening.discard(opening)
            self._waiting.pop(handshake, None)
            if opening.cancelled():  # it may not have begun
                accepted.close()

        opening.add_done_callback(done)

    async def _open(self, accepted: socket.socket, host: str) -> None:
        try:
            if self._tls is None:
                await self._loop.connect_accepted_socket(self._connect, accepted)
                return
            if self._tls.turns is not None:
                await self._tls.turns.turn(host, partial(hung_up, accepted))
            await self._loop.connect_accepted_socket(
                self._connect,
                accepted,
                ssl=self._tls.context(),
                ssl_handshake_timeout=self._tls.limits.handshake_timeout_s,
                ssl_shutdown_timeout=self._tls.limits.body_timeout_s,
            )
        except OSError:  # of TLS too, and a turn that did not come in time
            accepted.close()
