"""What endpoints share: the caller's time, a caller that leaves, and JSON that is an answer."""

import asyncio
import math
import re
from collections.abc import Coroutine
from typing import Annotated, Any, Final, TypeVar

from fastapi import Header, Request, Response
from starlette.exceptions import HTTPException

from server.http.reading import CLIENT_CLOSED_REQUEST
from server.limits import MAX_TIMEOUT_MS

RETRY_LATER: Final = frozenset({429, 503})

Answer = TypeVar("Answer")
Timeout = Annotated[
    int | None,
    Header(alias="x-request-timeout-ms", ge=1, le=MAX_TIMEOUT_MS, description="Give up after so many milliseconds."),
]


def seconds(timeout_ms: int | None) -> float | None:
    """The caller's timeout as the handler wants it."""
    return None if timeout_ms is None else timeout_ms / 1000


def granted(request: Request) -> float | None:
    """The caller's timeout before it has been checked, None if it is none."""
    timeout_ms = request.headers.get("x-request-timeout-ms", "")
    return int(timeout_ms) / 1000 if re.fullmatch(r"[0-9]{1,9}", timeout_ms) else None


async def while_connected(request: Request, answer: Coroutine[Any, Any, Answer]) -> Answer:
    """Await the answer; when the client goes away first, cancel it."""
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(disconnected(request))
    leaving.add_done_callback(lambda task: task.cancelled() or task.exception())  # heard, also where nobody asks
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        leaving.result()
        raise HTTPException(CLIENT_CLOSED_REQUEST, "the client closed the connection")
    finally:
        leaving.cancel()
        answering.cancel()


async def disconnected(request: Request) -> None:
    """Return when the client has gone; a body that nobody has read is dropped. Raises what is wrong with it."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_response(content: bytes, status: int = 200, retry_after_s: float | None = None) -> Response:
    """JSON that is already serialized. retry_after_s: when to come again, if that is known."""
    headers = {"retry-after": str(max(1, math.ceil(retry_after_s or 0)))} if status in RETRY_LATER else None
    return Response(content, status_code=status, headers=headers, media_type="application/json")
