"""An answer in lines of JSON, each sent as soon as it is known."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from mfalcon.errors import MFalconError
from mfalcon.types import RankPart, RankResult
from server.http import codec
from server.http.answering import while_connected
from server.parts import Write

logger = logging.getLogger(__name__)

NDJSON: Final = "application/x-ndjson"
STREAMED: Final = "streamed"
"""In the state of a request whose answer comes in lines: the status that it would have as a whole."""

ErrorLine = Callable[[Exception], tuple[int, bytes]]
"""The status that an error would have, and its line."""


class StreamedRanking(Response):
    """Scores in lines, and a last one that says how it ended: what fails before the first line has a status of its own,
    what fails later is that line. A client that does not read holds up nobody; one that leaves ends the work.
    """

    media_type = NDJSON

    def __init__(self, rank: Callable[[Write], Awaitable[RankResult]], error_line: ErrorLine) -> None:
        """rank: writes parts, and returns the answer."""
        super().__init__(b"")
        del self.headers["content-length"]
        self._rank = rank
        self._error_line = error_line

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines."""
        has_begun = False

        async def line(content: bytes, *, is_last: bool = False) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                scope["state"][STREAMED] = "200"
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": content + b"\n", "more_body": not is_last})

        async def write(part: RankPart) -> None:
            await line(codec.part_reply(part))

        async def rank() -> RankResult:
            return await self._rank(write)

        try:
            result = await while_connected(Request(scope, receive), rank())
            last = codec.last_part_reply(result)
        except HTTPException:  # the client has left
            if not has_begun:
                raise
            return
        except Exception as error:
            if not has_begun:
                raise
            if not isinstance(error, MFalconError):
                logger.exception("a stream failed")
            status, last = self._error_line(error)
            scope["state"][STREAMED] = str(status)
        await line(last, is_last=True)
