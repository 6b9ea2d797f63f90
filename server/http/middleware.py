"""What is done to every HTTP request on its way to the routes, and to every answer on its way back."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mfalcon.errors import Overloaded
from server.balancing import LOAD, LoadReport
from server.handler import Handler

BODIES_AT_ONCE = 64
"""Of the largest legal size: all bodies that are read or in work take no more memory."""


class BodyLimit:
    """Refuses a body of more than `max_bytes`, also one that comes in chunks of unknown number, and any while so many
    bytes of others are held that there is no room for it.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_held_bytes = BODIES_AT_ONCE * max_bytes
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what the application receives."""
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            received = len(message.get("body", b""))
            num_bytes += received
            self._held_bytes += received
            if num_bytes > self._max_bytes:
                raise HTTPException(413, f"body: got more, must be at most {self._max_bytes} bytes")
            if self._held_bytes > self._max_held_bytes:
                raise Overloaded(f"the bodies of requests in work are at most {self._max_held_bytes} bytes together")
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held_bytes -= num_bytes


class LastAnswer:
    """While the server leaves, each answer is the last one of its connection, so that callers open the
    next one elsewhere, and nothing is on its way here when connections are closed.
    """

    def __init__(self, app: ASGIApp, handler: Handler) -> None:
        self._app = app
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the header."""

        async def last(message: Message) -> None:
            if message["type"] == "http.response.start" and self._handler.leaving:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, last)


class LoadHeader:
    """Every answer under /v1 and /v2 says how busy the server is."""

    def __init__(self, app: ASGIApp, report: LoadReport) -> None:
        self._app = app
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the header."""

        async def reported(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (LOAD.encode(), self._report.text().encode())]
            await send(message)

        await self._app(scope, receive, reported if scope["path"].startswith(("/v1/", "/v2/")) else send)
