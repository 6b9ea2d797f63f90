"""Calls whose message is not here yet: they take a place among a server's calls, and cost their caller nothing."""

import asyncio
from typing import Any

import grpc
import grpc.aio

from mfalcon.errors import DeadlineExceeded, Overloaded


class Waiting:
    """Those of one server."""

    def __init__(self, wait_s: float, most: int) -> None:
        """wait_s: longest time that a message may take to arrive. most: calls that may wait at once; one more, and the
        call that has waited longest is ended.
        """
        self._wait_s = wait_s
        self._most = most
        self._calls: dict[asyncio.Timeout, None] = {}
        """In the order in which they began to wait."""

    async def message(self, context: "grpc.aio.ServicerContext[Any, Any]") -> bytes | None:
        """The next message of a call, None after the last one. Raises DeadlineExceeded, and Overloaded for a call that
        has to make place.
        """
        scope = asyncio.timeout(self._wait_s)
        try:
            async with scope:
                self._calls[scope] = None
                if len(self._calls) > self._most:
                    self._end(next(iter(self._calls)))
                raw = await context.read()
        except TimeoutError as error:
            if scope not in self._calls:
                raise Overloaded(f"calls without a message: more than {self._most}, and this one the oldest") from error
            raise DeadlineExceeded(f"no message within {self._wait_s * 1000:.0f} ms") from error
        finally:
            self._calls.pop(scope, None)
        return raw if isinstance(raw, bytes) else None  # grpc.aio.EOF

    def _end(self, scope: asyncio.Timeout) -> None:
        del self._calls[scope]
        if not scope.expired():
            scope.reschedule(asyncio.get_running_loop().time())
