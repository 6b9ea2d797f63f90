"""Answers for the first candidates over both transports, of a real engine that is too slow for all of them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc.aio
import numpy as np
import pytest
import torch

from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.ranker import RankerOptions
from mfalcon.types import Append, Floats
from proto import ranking_pb2
from tests.server.harness import Served, serving_engine
from tests.slow_device import LONGER_AND_LONGER_S, SlowDevice
from tests.small import NOW_MS, random_events, small_checkpoint

CHECKPOINT = small_checkpoint(dtype=torch.float32)
CANDIDATES = np.tile(CHECKPOINT.items.item_id, 10)
TOP_K = 150
TRANSPORTS = ("grpc", "http")


@dataclass(frozen=True, slots=True)
class Answer:
    """Of either transport."""

    scores: Floats
    task_scores: Floats
    top: list[int]
    num_scored: int


@dataclass(frozen=True, slots=True)
class World:
    """A server with a user, and how slow it is."""

    served: Served[Engine]
    slow: SlowDevice

    async def rank(self, transport: str, timeout_s: float, *, allow_partial: bool) -> Answer | str:
        """The answer, or the name of an error."""
        fields = {"candidates": CANDIDATES.tolist(), "top_k": TOP_K, "request_time_ms": NOW_MS}
        if transport == "http":
            reply = await self.served.http.post(
                "/v1/rank",
                json=fields | {"user_id": "ann", "allow_partial": allow_partial},
                headers={"x-request-timeout-ms": str(round(1_000 * timeout_s))},
            )
            got = reply.json()
            return got["error"]["code"] if reply.is_error else _answer(**got)
        request = ranking_pb2.RankRequest(user_id="ann", allow_partial=allow_partial, **fields)
        try:
            response = await self.served.stub.Rank(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return _answer(response.scores, response.task_scores, response.top, response.num_scored)


def _answer(scores: object, task_scores: object, top: "list[int]", num_scored: int, **_: object) -> Answer:
    by_task = np.array(task_scores, dtype=np.float32).reshape(2, num_scored)
    return Answer(np.array(scores, dtype=np.float32), by_task, list(top), num_scored)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    slow = SlowDevice(monkeypatch)
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    await asyncio.to_thread(engine.wait_ready, 60)
    await engine.append_events("ann", Append(random_events(20)))
    async with serving_engine(engine, engine.metrics) as served:
        yield World(served, slow)
        slow.stops_at = None


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_is_scored_in_time_is_a_prefix_of_the_whole(world: World, transport: str) -> None:
    whole = await world.rank(transport, 60, allow_partial=False)
    assert isinstance(whole, Answer) and whole.num_scored == len(CANDIDATES) == len(whole.scores)
    in_time = await world.rank(transport, 60, allow_partial=True)
    assert isinstance(in_time, Answer) and in_time.num_scored == len(CANDIDATES)

    world.slow.stops_at = 128
    for seconds in LONGER_AND_LONGER_S:
        part = await world.rank(transport, seconds, allow_partial=True)
        if part != "DEADLINE_EXCEEDED":
            break
    assert isinstance(part, Answer)
    assert 0 < part.num_scored < len(CANDIDATES) and len(part.scores) == part.num_scored
    np.testing.assert_allclose(part.scores, whole.scores[: part.num_scored], rtol=0, atol=1e-6)
    np.testing.assert_allclose(part.task_scores, whole.task_scores[:, : part.num_scored], rtol=0, atol=1e-6)
    assert part.top == np.argsort(-part.scores, kind="stable")[:TOP_K].tolist()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_did_not_ask_for_a_part_gets_none(world: World, transport: str) -> None:
    world.slow.stops_at = 128
    assert await world.rank(transport, 0.5, allow_partial=False) == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_no_scores_are_no_answer(world: World, transport: str) -> None:
    world.slow.stops_at = 0
    assert await world.rank(transport, 0.5, allow_partial=True) == "DEADLINE_EXCEEDED"
