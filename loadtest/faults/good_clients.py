"""Clients that only rank, at one pace over both transports, while others attack: every score is compared."""

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio
import httpx
import numpy as np

from loadtest.faults.oracle import BOUND
from loadtest.faults.server_process import ServerProcess
from loadtest.faults.victim import Victim
from loadtest.faults.world import Person
from loadtest.load.messages import rank_message, rank_result
from mfalcon.types import Floats
from proto.ranking_pb2_grpc import RankingStub

TIMEOUT_S = 1.0
"""What a good client waits at most; the scheduler goes by it."""


@dataclass(slots=True)
class Tally:
    """What good clients were answered in a stretch."""

    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def p99_ms(self) -> float:
        """NaN if nothing was answered."""
        return float(np.percentile(self.seconds, 99) * 1e3) if self.seconds else float("nan")


class GoodClients:
    """They ask until they are stopped; `tally` is where answers are counted from now on."""

    def __init__(self, server: ServerProcess, people: Sequence[Person], right: Sequence[Floats], period_s: float):
        self.tally = Tally()
        self._server, self._people, self._right, self._period_s = server, people, right, period_s

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """While this is entered."""
        server, certificate = self._server, self._server.certificate
        tls = True if certificate is None else ssl.create_default_context(cafile=certificate)
        url = f"{'http' if certificate is None else 'https'}://{server.http}"
        async with (
            Victim(server.grpc, server.http, 0, certificate).channel() as channel,
            httpx.AsyncClient(base_url=url, timeout=30, trust_env=False, verify=tls) as http,
        ):
            tasks = [
                asyncio.create_task(self._keep_asking(lambda at: self._over_grpc(RankingStub(channel), at))),
                asyncio.create_task(self._keep_asking(lambda at: self._over_http(http, at))),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def _keep_asking(self, ask: Callable[[int], Awaitable[Floats]]) -> None:
        loop, number = asyncio.get_running_loop(), 0
        due = loop.time()
        while True:
            await asyncio.sleep(due - loop.time())
            tally, at = self.tally, number % len(self._people)
            try:
                scores = await ask(at)
            except grpc.aio.AioRpcError as error:
                tally.failed[error.code().name] += 1
            except httpx.HTTPError as error:
                tally.failed[type(error).__name__] += 1
            else:
                tally.seconds.append(loop.time() - due)
                if scores.shape != self._right[at].shape or not np.abs(scores - self._right[at]).max() <= BOUND:
                    tally.wrong += 1
            number += 1
            due = max(due + self._period_s, loop.time() - 1)

    async def _over_grpc(self, stub: RankingStub, at: int) -> Floats:
        request = self._people[at].request(at)
        message = rank_message(request.user_id, request.candidates, request_time_ms=request.request_time_ms)
        return rank_result(await stub.Rank(message, timeout=TIMEOUT_S)).task_scores

    async def _over_http(self, http: httpx.AsyncClient, at: int) -> Floats:
        request = self._people[at].request(at)
        body = {"user_id": request.user_id, "candidates": request.candidates.tolist()}
        timeout = {"x-request-timeout-ms": f"{1e3 * TIMEOUT_S:.0f}"}
        answer = await http.post("/v1/rank", json=body | {"request_time_ms": request.request_time_ms}, headers=timeout)
        answer.raise_for_status()
        return np.array(answer.json()["task_scores"], dtype=np.float32).reshape(self._right[at].shape)
