"""A write that failed says in a field whether it may have happened all the same, on both transports."""

import asyncio

import grpc.aio
import pytest

from mfalcon import errors
from proto import ranking_pb2 as pb
from tests.server.harness import Running, serving

EVENT = {"item_id": 1, "actions": 1, "time_ms": 1}


async def outcomes(running: Running, timeout_ms: int = 10_000) -> list[str | None]:
    """Of an append and a deletion over gRPC, and of both over HTTP."""
    append = pb.AppendEventsRequest(user_id="ann", events=[pb.Event(item_id=1, actions=1, time_ms=1)])
    calls = (
        running.stub.AppendEvents(append, timeout=timeout_ms / 1000 if timeout_ms > 1_000 else None),
        running.stub.DeleteUser(pb.DeleteUserRequest(user_id="ann")),
    )
    told: list[str | None] = []
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        trailers = dict(failed.value.trailing_metadata())
        told.append(str(trailers.get("mfalcon-outcome")))
    headers = {"x-request-timeout-ms": str(timeout_ms)}
    for answer in (
        await running.http.post("/v1/users/ann/events", json={"events": [EVENT]}, headers=headers),
        await running.http.delete("/v1/users/ann", headers=headers),
    ):
        assert answer.status_code != 422, answer.text
        told.append(answer.json()["error"].get("outcome"))
    return told


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (errors.HistoryMismatch.of_len(3, 4, bytes(16)), "nothing-written"),
        (errors.StorageUnavailable("Redis refused"), "nothing-written"),
        (errors.StorageUnavailable("Redis is unreachable", may_be_done=True), "unknown"),
        (errors.ShuttingDown("closing"), "nothing-written"),
        (errors.ShuttingDown("closed meanwhile", may_be_done=True), "unknown"),
        (errors.EngineFailure("the log is damaged"), "nothing-written"),
        (errors.DeadlineExceeded("no time left"), "nothing-written"),
        (errors.Overloaded("too much"), "nothing-written"),
        (ZeroDivisionError("a defect"), "unknown"),
        (MemoryError(), "unknown"),
    ],
)
async def test_every_failed_write_says_what_became_of_it(running: Running, fault: Exception, outcome: str) -> None:
    running.engine.fault = fault
    assert await outcomes(running) == [outcome] * 4


async def test_what_is_cut_off_may_be_done() -> None:
    async with serving(request_timeout_ms=50) as running:
        running.engine.gate = asyncio.Event()
        assert await outcomes(running) == ["unknown"] * 4


async def test_what_is_no_request_has_written_nothing(running: Running) -> None:
    bad = pb.AppendEventsRequest(user_id="ann")
    for call in (running.stub.AppendEvents(bad), running.stub.AppendEvents(pb.AppendEventsRequest())):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        assert ("mfalcon-outcome", "nothing-written") in tuple(failed.value.trailing_metadata())
    for content in (b"{", b'{"events": 3}', b"\xff"):
        answer = await running.http.post("/v1/users/ann/events", content=content)
        assert answer.json()["error"]["outcome"] == "nothing-written"


async def test_what_does_not_write_has_no_outcome(running: Running) -> None:
    running.engine.fault = errors.EngineFailure("the step failed")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await running.stub.Rank(pb.RankRequest(user_id="ann", candidates=[1]))
    assert "mfalcon-outcome" not in dict(failed.value.trailing_metadata())
    for path in ("/v1/rank", "/v1/users/ann/prefill"):
        answer = await running.http.post(path, json={"user_id": "ann", "candidates": [1]})
        assert "outcome" not in answer.json()["error"]
