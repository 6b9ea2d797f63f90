"""Scores that come in parts, for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

import grpc.aio

from mfalcon_client.calls import Expected
from mfalcon_client.errors import ClientError
from mfalcon_client.retry import Failure
from mfalcon_client.streams import Reader
from mfalcon_client.types import Part, Ranking

Responses = grpc.aio.UnaryStreamCall[bytes, bytes]


class AsyncRankStream(AsyncIterator[Part]):
    """What `RankStream` is, for the tasks of one event loop."""

    def __init__(
        self, call: Responses, first: bytes, expected: Expected, closed: Callable[[], ClientError | None]
    ) -> None:
        """See `RankStream`."""
        self._call = call
        self._first: bytes | None = first
        self._reader = Reader(expected)
        self._closed = closed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __anext__(self) -> Part:
        if self._reader.has_ended:
            raise StopAsyncIteration
        message, self._first = self._first, None
        if message is None:
            message = await self._next()
        part = self._reader.read(message)
        if part is None:
            raise StopAsyncIteration
        return part

    @property
    def ranking(self) -> Ranking:
        """The whole answer, once all parts were taken. Raises ValueError before that."""
        return self._reader.ranking

    def close(self) -> None:
        """Take no more parts."""
        self._call.cancel()

    async def _next(self) -> bytes:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            failure = Failure.of(error.code().name, error.details(), error.trailing_metadata())
            raise (self._closed() or failure.error(outcome_unknown=False)) from error
        except asyncio.CancelledError:
            task, closed = asyncio.current_task(), self._closed()
            if closed is None or (task is not None and task.cancelling()):
                self._call.cancel()
                raise
            raise closed from None
        if not isinstance(message, bytes):  # grpc.aio.EOF
            raise self._reader.broken_off()
        return message
