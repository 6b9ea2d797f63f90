"""A caller who ranks all the while, and how calls end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import grpc.aio

from proto import ranking_pb2
from tests.server.harness import Running

GOOD = ranking_pb2.RankRequest(user_id="ann", candidates=[1, 2])


async def code_of(call: Awaitable[object]) -> str:
    """How a call ended."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@asynccontextmanager
async def ranking(running: Running, at_least: int) -> AsyncIterator[list[str]]:
    """Rank on a connection of one's own all the while, and so often; hands out how each call ended."""
    codes: list[str] = []
    enough = asyncio.Event()

    async def rank() -> None:
        while True:
            codes.append(await code_of(running.stub.Rank(GOOD, timeout=30)))
            if len(codes) >= at_least:
                enough.set()

    task = asyncio.create_task(rank())
    yield codes
    await enough.wait()
    task.cancel()
