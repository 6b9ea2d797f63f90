"""A rank is a part of its caller's trace, over both transports and through front-ends, and of nobody else's."""

import asyncio

import grpc.aio
import pytest

from proto import ranking_pb2, ranking_pb2_grpc
from tests.server.harness import serving
from tests.server.test_life import started

RANK = ranking_pb2.RankRequest(user_id="ann", candidates=[1])
RANK_JSON = {"user_id": "ann", "candidates": [1]}
TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
PARENT = f"00-{TRACE:032x}-00f067aa0ba902b7-01"
HOSTILE = ["", "00", f"ff-{TRACE:032x}-00f067aa0ba902b7-01", f"00-{0:032x}-{0:016x}-01", "0" * 4_000, "ÿ"]


@pytest.mark.parametrize("frontends", [0, 1])
async def test_a_rank_is_a_part_of_its_callers_trace(frontends: int) -> None:
    async with serving(frontends=frontends) as running:
        await running.stub.Rank(RANK)
        await running.stub.Rank(RANK, metadata=(("traceparent", PARENT), ("tracestate", "a=1")))
        await running.stub.Rank(RANK)
        await running.http.post("/v1/rank", json=RANK_JSON, headers={"traceparent": PARENT})
        await running.http.post("/v1/rank", json=RANK_JSON)
        assert running.engine.traces == [0, TRACE, 0, TRACE, 0]


async def test_what_is_no_trace_is_ignored() -> None:
    async with serving() as running:
        for hostile in HOSTILE:
            if hostile.isascii():
                await running.stub.Rank(RANK, metadata=(("traceparent", hostile), ("tracestate", "=" * 600)))
            headers = [(b"traceparent", hostile.encode("latin-1")), (b"traceparent", b"\xff"), (b"tracestate", b"\xff")]
            assert (await running.http.post("/v1/rank", json=RANK_JSON, headers=headers)).status_code == 200
        assert set(running.engine.traces) == {0}


async def test_calls_of_one_connection_have_their_own_traces() -> None:
    async with serving() as running:
        calls: list[grpc.aio.UnaryUnaryCall[ranking_pb2.RankRequest, ranking_pb2.RankResponse]] = [
            running.stub.Rank(RANK, metadata=(("traceparent", f"00-{number:032x}-00f067aa0ba902b7-01"),))
            for number in range(1, 21)
        ]
        for call in calls:
            await call
        assert sorted(running.engine.traces) == list(range(1, 21))


async def test_a_hostile_trace_is_no_line_of_the_log() -> None:
    process = await started()
    assert process.stdout is not None
    async with asyncio.timeout(60):
        address = (await process.stdout.readline()).decode().split()[1].removeprefix("grpc=")
        async with grpc.aio.insecure_channel(address) as channel:
            metadata = (("traceparent", PARENT), ("tracestate", "mischief=="))
            await ranking_pb2_grpc.RankingStub(channel).Rank(RANK, metadata=metadata)
        process.terminate()
        _, complaints = await process.communicate()
    assert b"mischief" not in complaints
