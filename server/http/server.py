"""uvicorn inside our process: the sockets, the connections and the end of both."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

LAST_CONNECTIONS_SECONDS = 0.1


class HttpServer(uvicorn.Server):
    """uvicorn inside our event loop: our socket, our signals."""

    def __init__(self, app: ASGIApp, close_within_s: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=close_within_s,
            )
        )
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the process that we are a part of."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say when it listens."""
        await super().startup(sockets)
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop to listen a little before connections are closed: one that was just opened still gets its answer."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_CONNECTIONS_SECONDS)
        await super().shutdown(sockets)
