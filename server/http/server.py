"""uvicorn inside our process: the sockets, the connections and the end of both."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from server.http.connection import Connection, ConnectionLimits, Waiting
from server.http.handshakes import End, HandshakeTurns
from server.http.listener import Listener, Tls, room_for
from server.turns import in_turns

LAST_CONNECTIONS_SECONDS = 0.1
SHARE_WITHOUT_TURN = 4
"""One in so many of the connections may wait for the turn of its handshake."""


class HttpServer(uvicorn.Server):
    """uvicorn inside our event loop: our socket, our connections, our signals."""

    def __init__(
        self,
        app: ASGIApp,
        limits: ConnectionLimits,
        tls: Callable[[], ssl.SSLContext] | None,
        close_within_s: int,
        refused: Callable[[int], None] = lambda status: None,
        handshake_waited: Callable[[End], None] = lambda end: None,
    ) -> None:
        """tls: what the next connection is given; None for connections in clear. refused: see `Connection`.
        handshake_waited: see `HandshakeTurns`.
        """
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",  # warnings are of what clients send
                access_log=False,
                timeout_graceful_shutdown=close_within_s,
            )
        )
        self.listening = asyncio.Event()
        self._limits = limits
        self._tls = tls
        self._refused = refused
        self._handshake_waited = handshake_waited
        self._listeners: list[Listener] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the process that we are a part of."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        room = room_for(self._limits.max_connections)
        connections, waiting = set[Connection](), dict[Waiting, None]()
        self.server_state.connections = connections  # type: ignore[assignment]
        self.servers = []
        tls = None if self._tls is None else Tls(self._tls, self._limits, self._turns(room))
        self._listeners = [
            Listener(
                sock,
                lambda: Connection(self.config, self.server_state, self._limits, waiting, self._refused),
                connections,
                waiting,
                room,
                tls,
            )
            for sock in sockets or []
        ]
        self.started = True
        self.listening.set()

    def _turns(self, room: int) -> HandshakeTurns | None:
        limits = self._limits
        if not limits.handshakes_per_s:
            return None
        most = -(-room // SHARE_WITHOUT_TURN)
        return HandshakeTurns(limits.handshakes_per_s, most, limits.handshake_timeout_s, self._handshake_waited)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop to listen a little before connections are closed: one that was just opened still gets its answer."""
        for listener in self._listeners:
            listener.close()
        await in_turns(LAST_CONNECTIONS_SECONDS)
        for listener in self._listeners:
            listener.give_up()
        await super().shutdown(sockets)
