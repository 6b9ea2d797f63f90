"""Every error of the engine has its code on both transports; deadlines and cancels reach the engine."""

import asyncio
import logging
import time

import grpc
import grpc.aio
import pytest

from mfalcon import errors
from mfalcon.load import Load
from proto import ranking_pb2
from server.grpc import edge as grpc_edge
from server.http import errors as http_errors
from tests.server.harness import Running, serving

RANK = ranking_pb2.RankRequest(user_id="ann", candidates=[1])
RANK_JSON = {"user_id": "ann", "candidates": [1]}


async def rank_refused(running: Running, **options: float) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.Rank(RANK, **options)
    return refused.value.code().name, refused.value.details() or ""


def test_both_tables_cover_what_an_engine_raises() -> None:
    of_commands = {errors.CheckpointError, errors.DataError, errors.ConfigError, errors.CallFailed}
    answers = set(errors.MFalconError.__subclasses__()) - of_commands
    assert set(grpc_edge.STATUS) == set(http_errors.STATUS) == answers
    for error in answers:
        assert grpc_edge.STATUS[error].name == http_errors.STATUS[error][1]


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        (errors.Overloaded("the queue holds 8 requests, must be at most 8"), "RESOURCE_EXHAUSTED", 429),
        (errors.DeadlineExceeded("no time left"), "DEADLINE_EXCEEDED", 504),
        (errors.ShuttingDown("closing"), "UNAVAILABLE", 503),
        (errors.StorageUnavailable("Redis is unreachable"), "UNAVAILABLE", 503),
        (errors.EngineFailure("the step failed"), "INTERNAL", 500),
        (errors.HistoryMismatch.of_len(3, 4, bytes(16)), "FAILED_PRECONDITION", 409),
    ],
)
async def test_engine_errors(running: Running, fault: errors.MFalconError, code: str, status: int) -> None:
    running.engine.fault = fault

    assert await rank_refused(running) == (code, str(fault))
    answer = await running.http.post("/v1/rank", json=RANK_JSON)
    assert answer.status_code == status
    assert answer.json() == {"error": {"code": code, "message": str(fault), "field": None}}
    assert ("retry-after" in answer.headers) == (status in {429, 503})

    running.engine.fault = None
    assert (await running.stub.Rank(RANK)).scores
    assert (await running.http.post("/v1/rank", json=RANK_JSON)).status_code == 200


async def test_a_defect_is_logged_and_not_told(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    running.engine.fault = ZeroDivisionError("secret")
    with caplog.at_level(logging.ERROR):
        code, by_grpc = await rank_refused(running)
        answer = await running.http.post("/v1/rank", json=RANK_JSON)

    assert code == "INTERNAL"
    assert answer.status_code == 500
    by_http = answer.json()["error"]
    assert by_http["code"] == "INTERNAL"
    assert by_http["message"] == by_grpc
    assert "secret" not in by_grpc
    assert "Error" not in by_grpc
    assert caplog.text.count("ZeroDivisionError: secret") == 2
    assert "Traceback" in caplog.text


async def test_no_memory_is_overload(running: Running) -> None:
    running.engine.fault = MemoryError()
    answer = await running.http.post("/v1/rank", json=RANK_JSON)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    message = "the server is short of memory; ask again later"
    assert answer.json() == {"error": {"code": "RESOURCE_EXHAUSTED", "message": message, "field": None}}


async def test_who_is_refused_is_told_when_to_come_again(running: Running) -> None:
    running.engine.fault = errors.Overloaded("too much to do", retry_after_s=2.1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.Rank(RANK)
    assert dict(refused.value.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "2100"
    answer = await running.http.post("/v1/rank", json=RANK_JSON)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")


async def test_a_rank_that_must_come_too_late_is_refused_before_its_body_is_converted(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def converted(*_: object) -> None:
        raise AssertionError("made something of the body")

    running.engine.load = Load(free_at=time.monotonic() + 60)
    monkeypatch.setattr("server.grpc.codec.rank_request", converted)
    monkeypatch.setattr("server.http.reading.parse", converted)
    code, text = await rank_refused(running, timeout=5.0)
    assert code == "RESOURCE_EXHAUSTED" and "behind the other requests" in text
    for headers in ({"x-request-timeout-ms": "50"}, {}):  # ours is 10 s
        answer = await running.http.post("/v1/rank", json=RANK_JSON, headers=headers)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 45
    assert running.engine.requests == []
    monkeypatch.undo()
    running.engine.load = Load()
    assert (await running.stub.Rank(RANK)).scores


@pytest.mark.parametrize("body", [b"\xff", b"\x00" * 2**21], ids=["no message", "2 MiB"])
async def test_a_rank_that_must_come_too_late_is_refused_unread(running: Running, body: bytes) -> None:
    rank: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = running.channel.unary_unary("/mfalcon.v1.Ranking/Rank")
    for load, code in ((Load(is_full=True), "RESOURCE_EXHAUSTED"), (Load(), "INVALID_ARGUMENT")) * 2:
        running.engine.load = load
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await rank(body, timeout=5)
        assert refused.value.code().name == code


async def test_deadline_of_the_server() -> None:
    async with serving(request_timeout_ms=50) as running:
        running.engine.gate.clear()
        assert await rank_refused(running) == ("DEADLINE_EXCEEDED", "no answer within 50 ms")
        answer = await running.http.post("/v1/rank", json=RANK_JSON)
        assert answer.status_code == 504
        assert answer.json()["error"]["message"] == "no answer within 50 ms"
        assert running.engine.num_cancelled == running.engine.num_entered  # a busy machine may spend it on the way


async def test_deadline_of_the_caller(running: Running) -> None:
    async def over_grpc() -> None:
        code, _ = await rank_refused(running, timeout=0.05)
        assert code == "DEADLINE_EXCEEDED"

    async def over_http() -> None:
        answer = await running.http.post("/v1/rank", json=RANK_JSON, headers={"x-request-timeout-ms": "50"})
        assert answer.status_code == 504

    running.engine.gate.clear()
    for ask in (over_grpc, over_http):
        before = running.engine.num_entered
        async with asyncio.timeout(60):
            while running.engine.num_entered == before:  # a busy machine may spend the time on the way
                await ask()
            await running.engine.cancelled.acquire()


async def test_the_engine_knows_the_deadline(running: Running) -> None:
    began = time.monotonic()
    await running.stub.Rank(RANK, timeout=3)
    await running.http.post("/v1/rank", json=RANK_JSON, headers={"x-request-timeout-ms": "3000"})
    await running.stub.Rank(RANK)
    by_grpc, by_http, default = (deadline - began for deadline in running.engine.deadlines if deadline)
    passed = time.monotonic() - began
    assert 2 < by_grpc < 3 + passed
    assert 3 <= by_http < 3 + passed
    assert 10 <= default < 10 + passed


async def test_a_cancelled_call_is_dropped(running: Running) -> None:
    running.engine.gate.clear()
    call = running.stub.Rank(RANK)
    waiting = asyncio.ensure_future(call.wait_for_connection())
    await running.engine.entered.wait()
    call.cancel()
    async with asyncio.timeout(60):
        await running.engine.cancelled.acquire()
    waiting.cancel()
    running.engine.gate.set()
    assert (await running.stub.Rank(RANK)).scores


async def test_a_client_that_leaves_is_dropped(running: Running) -> None:
    running.engine.gate.clear()
    leaving = asyncio.create_task(running.http.post("/v1/rank", json=RANK_JSON))
    async with asyncio.timeout(60):
        await running.engine.entered.wait()
        leaving.cancel()
        await running.engine.cancelled.acquire()
    running.engine.gate.set()
    assert (await running.http.post("/v1/rank", json=RANK_JSON)).status_code == 200


async def test_many_at_once_are_each_answered_once(running: Running) -> None:
    async def one(index: int) -> bool:
        if index % 2:
            answer = await running.http.post("/v1/rank", json={"user_id": str(index), "candidates": [index]})
            return bool(answer.json()["unknown"] == [])
        return not (await running.stub.Rank(ranking_pb2.RankRequest(user_id=str(index), candidates=[index]))).unknown

    assert all(await asyncio.gather(*(one(index) for index in range(1, 65))))
    assert sorted(int(request.user_id) for request in running.engine.requests) == list(range(1, 65))
