"""The client for asyncio: `AsyncClient`."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio

from mfalcon_client import calls, encoding
from mfalcon_client.append_ids import KeptIds
from mfalcon_client.async_streams import AsyncRankStream, Responses
from mfalcon_client.calls import Call
from mfalcon_client.client import DEFAULT_TIMEOUT_S, POLL_S
from mfalcon_client.connection import Birthplace, Connection, Metadata, Spread, Tls, Token, anywhere
from mfalcon_client.errors import ClientError, DeadlineExceeded, ServerFailure, Unavailable
from mfalcon_client.retry import DEFAULT_RETRY, ONCE, Attempts, Budget, Failure, Retry, checked_timeout
from mfalcon_client.types import (
    Append,
    Appended,
    CacheInfo,
    Events,
    Features,
    HistoryPage,
    Ids,
    Interests,
    Model,
    Rank,
    Ranking,
    Rerank,
    Retrieve,
    Returns,
)

Answer = TypeVar("Answer")
Reply = TypeVar("Reply")


class AsyncClient:
    """What `Client` is, for the tasks of one event loop: make it, use it and close it there. A task that is cancelled
    takes its call back.
    """

    def __init__(
        self,
        target: str | list[str] | tuple[str, ...],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        tls: Tls | None = None,
        token: Token | None = None,
        token_in_clear: bool = False,
        spread: Spread = "first",
        retry: Retry = DEFAULT_RETRY,
        hedge_after_s: float | None = None,
    ) -> None:
        asyncio.get_running_loop()  # raises where there is none: gRPC would take another one
        if hedge_after_s is not None and not hedge_after_s >= 0:
            raise ValueError(f"hedge_after_s: got {hedge_after_s}, must be at least 0, or None")
        self._connection = Connection(target, tls, token, token_in_clear, spread)
        self._timeout_s = timeout_s
        self._retry = retry
        self._hedge_after_s = hedge_after_s
        self._budget = Budget(retry.budget)
        self._kept_ids = KeptIds()
        self._birthplace = Birthplace()
        self._closing = asyncio.Event()
        address, options = self._connection.address, self._connection.options
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if tls is None
            else grpc.aio.secure_channel(address, tls.credentials, options)
        )
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Calls under way raise Closed, and so does every later one."""
        self._birthplace.check()
        self._closing.set()
        await self._channel.close()

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until a server answers: one that loads its model listens already. Raises Unavailable if none does."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + checked_timeout(timeout_s)
        while True:
            left = max(POLL_S, give_up - loop.time())
            try:
                await self._call(calls.get_model(""), left, waits=True)
                return
            except (Unavailable, DeadlineExceeded) as error:
                if loop.time() >= give_up:
                    raise Unavailable("UNAVAILABLE", f"no server was ready within {timeout_s:g} s: {error}") from error
            await self._wait(POLL_S)

    async def rank(
        self,
        user_id: str,
        candidates: Ids = (),
        *,
        top_k: int = 0,
        request_time_ms: int = 0,
        recent_events: Events = (),
        context: Mapping[str, int] = MappingProxyType({}),
        features: Features = MappingProxyType({}),
        model: str = "",
        allow_partial: bool = False,
        rerank: Rerank | None = None,
        recompute: bool = False,
        retrieve: Retrieve | None = None,
        returns: Returns = "both",
        exclude_unknown: bool = False,
        exclude_seen: bool = False,
        timeout_s: float | None = None,
    ) -> Ranking:
        """See `Client.rank`."""
        options = encoding.rank_options(
            candidates,
            top_k=top_k,
            request_time_ms=request_time_ms,
            recent_events=recent_events,
            context=context,
            features=features,
            model=model,
            allow_partial=allow_partial,
            rerank=rerank,
            recompute=recompute,
            retrieve=retrieve,
            returns=returns,
            exclude_unknown=exclude_unknown,
            exclude_seen=exclude_seen,
        )
        expected = calls.Expected(len(candidates), allow_partial=allow_partial, retrieve=retrieve, returns=returns)
        call = calls.rank(user_id, options, expected)
        return await self._call(call, timeout_s, hedge_after_s=self._hedge_after_s)

    async def rank_batch(
        self, ranks: Sequence[Rank], *, timeout_s: float | None = None
    ) -> tuple[Ranking | ClientError, ...]:
        """See `Client.rank_batch`."""
        return await self._call(calls.rank_batch(ranks), timeout_s)

    async def rank_stream(self, rank: Rank, *, timeout_s: float | None = None) -> AsyncRankStream:
        """See `Client.rank_stream`."""
        call, expected = calls.rank_stream(rank)

        async def attempt(metadata: Metadata, attempts: Attempts) -> tuple[Responses, bytes]:
            method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(call.path)
            responses = method(call.request, timeout=attempts.begin(), metadata=metadata)
            first = await responses.read()
            if not isinstance(first, bytes):
                raise ServerFailure("INTERNAL", "the stream ended before its first message")
            return responses, first

        def closed() -> ClientError | None:
            return attempts.closed() if self._closing.is_set() else None

        attempts = self._attempts(call, timeout_s)
        responses, first = await self._repeat(call, attempts, attempt)
        return AsyncRankStream(responses, first, expected, closed)

    async def append_events(
        self,
        user_id: str,
        events: Events,
        *,
        expected_len: int | None = None,
        expected_version: bytes | None = None,
        append_id: str = "",
        late_events: str = "",
        timeout_s: float | None = None,
    ) -> Appended:
        """See `Client.append_events`."""
        call = calls.append_events(
            user_id,
            events,
            expected_len,
            expected_version,
            append_id,
            late_events,
            ids_are_kept=self._kept_ids.surely,
        )
        return await self._call(call, timeout_s)

    async def append_batch(
        self, appends: Sequence[Append], *, timeout_s: float | None = None
    ) -> tuple[Appended | ClientError, ...]:
        """See `Client.append_batch`."""
        return await self._call(calls.append_batch(appends), timeout_s)

    async def get_history(
        self,
        user_id: str,
        first: int = 0,
        *,
        limit: int = 0,
        expected_version: bytes | None = None,
        with_states: bool = False,
        timeout_s: float | None = None,
    ) -> HistoryPage:
        """See `Client.get_history`."""
        call = calls.get_history(user_id, first, limit, expected_version, with_states=with_states)
        return await self._call(call, timeout_s)

    async def interests(
        self,
        user_id: str,
        conditions: Sequence[str] = (),
        *,
        top_items: int = 0,
        request_time_ms: int = 0,
        recent_events: Events = (),
        model: str = "",
        timeout_s: float | None = None,
    ) -> Interests:
        """See `Client.interests`."""
        options = encoding.interests_options(
            conditions, top_items=top_items, request_time_ms=request_time_ms, recent_events=recent_events, model=model
        )
        return await self._call(calls.interests(user_id, options, conditions, top_items), timeout_s)

    async def prefill(
        self,
        user_id: str,
        *,
        model: str = "",
        conditions: Sequence[str] = (),
        request_time_ms: int = 0,
        timeout_s: float | None = None,
    ) -> CacheInfo:
        """See `Client.prefill`."""
        return await self._call(calls.prefill(user_id, model, conditions, request_time_ms), timeout_s)

    async def delete_user(self, user_id: str, *, timeout_s: float | None = None) -> None:
        """See `Client.delete_user`."""
        await self._call(calls.delete_user(user_id), timeout_s)

    async def get_model(self, name: str = "", *, timeout_s: float | None = None) -> Model:
        """See `Client.get_model`."""
        return await self._call(calls.get_model(name), timeout_s)

    async def list_models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """See `Client.list_models`."""
        return await self._call(calls.list_models(), timeout_s)

    async def _call(
        self,
        call: Call[Answer],
        timeout_s: float | None,
        *,
        hedge_after_s: float | None = None,
        waits: bool = False,
    ) -> Answer:
        attempts = self._attempts(call, timeout_s, waits=waits)
        raw = await self._repeat(
            call, attempts, lambda metadata, attempts: self._attempt(call, metadata, attempts, hedge_after_s, waits)
        )
        answer = call.answer(raw)
        self._kept_ids.heard(answer)
        return answer

    def _attempts(self, call: Call[Answer], timeout_s: float | None, *, waits: bool = False) -> Attempts:
        self._birthplace.check()
        time_s = self._timeout_s if timeout_s is None else timeout_s
        retry, budget = (ONCE, Budget(ONCE.budget)) if waits else (self._retry, self._budget)
        return Attempts(retry, budget, call.repeat, time_s, any_replica=self._connection.spread == "turn")

    async def _repeat(
        self, call: Call[Answer], attempts: Attempts, attempt: Callable[[Metadata, Attempts], Awaitable[Reply]]
    ) -> Reply:
        """What the first attempt gives that does not fail."""
        while not self._closing.is_set():
            metadata = self._connection.metadata(call.user_id)  # what a token raises is no answer of the server
            try:
                reply = await attempt(metadata, attempts)
            except grpc.aio.AioRpcError as error:
                if not self._closing.is_set():
                    failure = Failure.of(error.code().name, error.details(), error.trailing_metadata())
                    await self._wait(attempts.failed(failure))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not self._closing.is_set() or (task is not None and task.cancelling()):
                    raise
                # It is the channel that ended the call, not somebody who cancels this task.
            else:
                attempts.answered()
                return reply
        raise attempts.closed()

    async def _attempt(
        self, call: Call[Answer], metadata: Metadata, attempts: Attempts, hedge_after_s: float | None, waits: bool
    ) -> bytes:
        """One attempt, and a second one beside it if the answer takes long. Raises AioRpcError."""
        method = self._methods.get(call.path)
        if method is None:
            method = self._methods[call.path] = self._channel.unary_unary(call.path)
        first = method(call.request, timeout=attempts.begin(), metadata=metadata, wait_for_ready=waits)
        if hedge_after_s is None:
            return await first
        return await _first(
            first,
            lambda: method(call.request, timeout=attempts.begin(), metadata=anywhere(metadata)),
            hedge_after_s,
        )

    async def _wait(self, seconds: float) -> None:
        """Wait so long, or until the client is closed."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return


async def _first(first: Awaitable[bytes], second: Callable[[], Awaitable[bytes]], after_s: float) -> bytes:
    """The answer of a call, or of another that begins when the first has none for so long, whichever comes first; the
    failure of the last if both fail.
    """
    pending = {asyncio.ensure_future(first)}
    try:
        done, pending = await asyncio.wait(pending, timeout=after_s)
        if not done:
            pending.add(asyncio.ensure_future(second()))
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if pending and _failed(done):
                done, pending = await asyncio.wait(pending)
        return _one(done)
    finally:
        for task in pending:
            task.cancel()


def _failed(done: set["asyncio.Task[bytes]"]) -> bool:
    return all(task.cancelled() or task.exception() is not None for task in done)


def _one(done: set["asyncio.Task[bytes]"]) -> bytes:
    """The result of one that succeeded, or the failure of one."""
    good = [task for task in done if not task.cancelled() and task.exception() is None]
    return (good or list(done))[0].result()
