"""A gRPC server whose ranks are scripted: what it answers to a request is told before, nothing is computed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio

from proto import ranking_pb2 as pb
from proto import ranking_pb2_grpc

Context = grpc.aio.ServicerContext[pb.RankRequest, pb.RankResponse]
Scripted = Callable[[pb.RankRequest, Context], Awaitable[pb.RankResponse]]


async def right(request: pb.RankRequest, context: Context) -> pb.RankResponse:
    """Scores that depend on the candidates alone."""
    return pb.RankResponse(scores=[item % 7 / 7 for item in request.candidates], model_version="scripted")


async def wrong(request: pb.RankRequest, context: Context) -> pb.RankResponse:
    """Others."""
    return pb.RankResponse(scores=[item % 7 / 7 + 0.001 for item in request.candidates])


async def refused(request: pb.RankRequest, context: Context) -> pb.RankResponse:
    """An explicit error."""
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")


@dataclass(slots=True)
class ScriptedServer:
    """target: its address. Ranks are answered by `script` in turns, but the first `num_before`, which are right.

    users: who were appended to and not deleted.
    """

    target: str = ""
    script: tuple[Scripted, ...] = (right,)
    num_before: int = 0
    num_ranks: int = 0
    users: set[str] = field(default_factory=set)
    left: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def never(self, request: pb.RankRequest, context: Context) -> pb.RankResponse:
        """No answer, until the caller leaves."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.left.release()
            raise
        raise AssertionError

    async def all_left(self, number: int) -> None:
        """Wait until so many callers have left."""
        for _ in range(number):
            await self.left.acquire()


class _Servicer(ranking_pb2_grpc.RankingServicer):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    async def Rank(self, request: pb.RankRequest, context: Context) -> pb.RankResponse:
        """As scripted."""
        number = self._server.num_ranks - self._server.num_before
        self._server.num_ranks += 1
        answer = right if number < 0 else self._server.script[number % len(self._server.script)]
        return await answer(request, context)

    async def AppendEvents(self, request: pb.AppendEventsRequest, context: Context) -> pb.AppendEventsResponse:
        """Remember the user."""
        self._server.users.add(request.user_id)
        return pb.AppendEventsResponse(history_len=len(request.events))

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: Context) -> pb.DeleteUserResponse:
        """Forget the user."""
        self._server.users.discard(request.user_id)
        return pb.DeleteUserResponse()

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """A model of float32."""
        return pb.GetModelResponse(
            name="scripted", version="scripted", backend="cpu float32", max_candidates=1_000, actions=["click"]
        )


@asynccontextmanager
async def scripted_server() -> AsyncIterator[ScriptedServer]:
    """Run one on loopback."""
    server, scripted = grpc.aio.server(), ScriptedServer()
    ranking_pb2_grpc.add_RankingServicer_to_server(_Servicer(scripted), server)
    scripted.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield scripted
    finally:
        await server.stop(None)
