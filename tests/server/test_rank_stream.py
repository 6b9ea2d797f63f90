"""Scores as they come, over both transports and by both clients, with front-ends and without: in order, once each, the
same as in one answer, and with an explicit end.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mfalcon.errors import DeadlineExceeded, Overloaded, Superseded
from mfalcon.types import RankPart, RankRequest, RankResult, no_events
from mfalcon_client import AsyncClient, Client, InvalidArgument, Rank, Retrieve, Unavailable
from mfalcon_client import Overloaded as Refused
from proto import ranking_pb2 as pb
from server.frontends.engine_server import EngineServer
from server.frontends.remote import RemoteEngine
from server.handler import Handler
from server.limits import Limits
from server.parts import MAX_CANDIDATES
from tests.server.access.credentials import RIGHTS, bearer, one_of_each, token
from tests.server.fake_engine import FAILING_ITEM, OTHER, FakeEngine
from tests.server.harness import Running, Served, serving, serving_engine

CANDIDATES = [*range(1, 60), 2**40]
ASKED = Rank("ann", CANDIDATES, top_k=5)
MESSAGE = pb.RankRequest(user_id="ann", candidates=CANDIDATES, top_k=5)
BODY = {"user_id": "ann", "candidates": CANDIDATES, "top_k": 5}
FIRSTS = [0, 10, 20, 30, 40, 50]


class Afar(FakeEngine):
    """Whose ranks are another one's, behind a pipe."""

    def __init__(self, remote: RemoteEngine) -> None:
        super().__init__()
        self.rank = remote.rank  # type: ignore[method-assign]


@pytest.fixture(params=["alone", "front-end"])
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    """Its engine tells ten candidates at a time."""
    engine = FakeEngine()
    engine.part_len = 10
    if request.param == "alone":
        async with serving_engine(engine) as served:
            yield served
        return
    server, heard = EngineServer(f"ipc://{tmp_path}/engine"), asyncio.Event()
    remote = RemoteEngine(f"ipc://{tmp_path}/engine", "0.1", lambda _: heard.set())
    server.serve(engine)
    remote.say_listening()
    await asyncio.wait_for(heard.wait(), 60)
    async with serving_engine(Afar(remote)) as served:
        yield Served(served.channel, served.stub, served.http, engine, served.service, served.addresses)
    remote.close()
    await server.close()


async def lines_of(running: Running, **headers: str) -> list[dict[str, Any]]:
    """The lines of an answer over HTTP."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await running.http.post("/v1/rank/stream", json=BODY, headers=named)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_parts_are_the_answer(running: Running) -> None:
    whole = await running.stub.Rank(MESSAGE)
    *parts, last = [part async for part in running.stub.RankStream(MESSAGE)]
    assert [part.first for part in parts] == FIRSTS
    assert [score for part in parts for score in part.scores] == list(whole.scores)
    by_task = np.concatenate([np.reshape(part.task_scores, (2, -1)) for part in parts], axis=1)
    assert by_task.ravel().tolist() == list(whole.task_scores)
    assert [each for part in parts for each in part.unknown] == list(whole.unknown) == [59]
    assert [each for part in parts for each in part.failed] == list(whole.failed) == [CANDIDATES.index(FAILING_ITEM)]
    assert {(part.model_version, *part.tasks) for part in parts} == {(whole.model_version, "like", "rating")}
    assert (list(last.answer.scores), last.answer.num_scored, list(last.answer.top)) == ([], 60, list(whole.top))
    assert last.answer.history_version == whole.history_version

    *lines, end = await lines_of(running)
    assert [line["first"] for line in lines] == FIRSTS
    assert [score for line in lines for score in line["scores"]] == pytest.approx(list(whole.scores))
    assert (end["answer"]["scores"], end["answer"]["top"]) == ([], list(whole.top))

    async with AsyncClient(running.addresses.grpc) as client:
        stream = await client.rank_stream(ASKED)
        with pytest.raises(ValueError, match="the stream has not come to its end"):
            _ = stream.ranking
        assert [part.first async for part in stream] == FIRSTS
        right = await client.rank("ann", CANDIDATES, top_k=5)
    for name in ("scores", "task_scores", "top", "unknown", "failed"):
        np.testing.assert_array_equal(getattr(stream.ranking, name), getattr(right, name))
    assert stream.ranking.num_scored == 60

    def in_a_thread() -> int:
        with Client(running.addresses.grpc) as threaded, threaded.rank_stream(ASKED) as parts:
            return sum(len(part.scores) for part in parts)

    assert await asyncio.to_thread(in_a_thread) == 60


async def test_the_time_to_the_first_part_is_counted(running: Running) -> None:
    """Of each stream that had one, however it ended, and of nothing else."""

    async def counted() -> dict[str, float]:
        text = (await running.http.get("/metrics")).text
        return {
            sample.labels["transport"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "mfalcon_first_part_seconds_count" and sample.labels["model"] == "fake"
        }

    async def count(expected: dict[str, float]) -> None:
        give_up = time.monotonic() + 60
        while (told := await counted()) != expected:  # a caller may have its answer a moment before it is counted
            assert time.monotonic() < give_up, told
            await asyncio.sleep(0.01)

    await running.stub.Rank(MESSAGE)
    assert await counted() == {}
    assert len([part async for part in running.stub.RankStream(MESSAGE)]) == 7
    await count({"grpc": 1})
    await lines_of(running)
    await count({"grpc": 1, "http": 1})
    running.engine.late_fault = Superseded("the model was exchanged")
    await lines_of(running)
    await count({"grpc": 1, "http": 2})
    running.engine.fault = Overloaded("no room")
    assert (await running.http.post("/v1/rank/stream", json=BODY)).status_code == 429
    running.engine.fault = running.engine.late_fault = None
    await lines_of(running)
    await count({"grpc": 1, "http": 3})


async def test_an_engine_that_tells_nothing_is_told_of_in_parts_too(running: Running) -> None:
    running.engine.part_len = 0
    many = np.arange(5_000)
    async with AsyncClient(running.addresses.grpc) as client:
        stream = await client.rank_stream(Rank("ann", many, model=OTHER.name))
        lengths = [len(part.scores) async for part in stream]
        assert lengths == [MAX_CANDIDATES, MAX_CANDIDATES, 5_000 - 2 * MAX_CANDIDATES]
        np.testing.assert_array_equal(stream.ranking.scores, (await client.rank("ann", many)).scores)


class Losing(FakeEngine):
    """Whose second part never comes."""

    part_len = 10

    def part_of(self, result: RankResult, first: int, stop: int) -> RankPart:
        part = super().part_of(result, first, stop)
        return replace(part, first=7_000) if first == 10 else part


async def test_what_is_lost_on_the_way_is_in_the_end() -> None:
    engine = Losing()
    engine.part_len = 10
    async with serving_engine(engine) as served:
        *parts, _ = [part async for part in served.stub.RankStream(MESSAGE)]
        assert [part.first for part in parts] == [0, 10]
        assert list(parts[1].scores) == list((await served.stub.Rank(MESSAGE)).scores)[10:]


async def test_a_fault_comes_behind_the_parts_that_are_right(running: Running) -> None:
    running.engine.late_fault = Superseded("the model was exchanged")
    got = list[int]()
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        async for part in running.stub.RankStream(MESSAGE):
            got.append(part.first)
    assert got == FIRSTS[:5]
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.ABORTED, "the model was exchanged")
    *lines, last = await lines_of(running)
    assert len(lines) == 5
    assert last == {"error": {"code": "ABORTED", "message": "the model was exchanged", "field": None}}
    async with AsyncClient(running.addresses.grpc) as client:
        stream, taken = await client.rank_stream(ASKED), list[int]()
        with pytest.raises(Unavailable, match="ABORTED"):
            async for each in stream:
                taken.append(each.first)
        assert taken == FIRSTS[:5]
    running.engine.late_fault = RuntimeError("a defect")
    *lines, last = await lines_of(running)
    assert (len(lines), last["error"]["code"]) == (5, "INTERNAL")


async def test_what_is_refused_before_the_first_part_has_a_status_of_its_own(running: Running) -> None:
    running.engine.fault = Overloaded("no room", retry_after_s=100.0)
    answer = await running.http.post("/v1/rank/stream", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "RESOURCE_EXHAUSTED")
    async with AsyncClient(running.addresses.grpc) as client:
        with pytest.raises(Refused, match="no room"):
            await client.rank_stream(ASKED)
        running.engine.fault = None
        for rank, says in (
            (replace(ASKED, candidates=()), "candidates: got 0"),
            (replace(ASKED, returns="top"), "return: got 'top', must be both, scores or empty in a stream"),
            (Rank("ann", (), retrieve=Retrieve(["x"], 5)), "model that has conditions"),
        ):
            with pytest.raises(InvalidArgument, match=says):
                await client.rank_stream(rank)
    assert (await running.http.post("/v1/rank/stream", json={"user_id": "ann"})).status_code == 422


async def test_a_reader_that_leaves_ends_the_work(running: Running) -> None:
    engine = running.engine
    engine.parts_gate.clear()
    call = running.stub.RankStream(MESSAGE)
    assert isinstance(await call.read(), pb.RankPart)
    call.cancel()
    await asyncio.wait_for(engine.cancelled.acquire(), 60)
    async with running.http.stream("POST", "/v1/rank/stream", json=BODY) as answer:
        await anext(answer.aiter_lines())
    await asyncio.wait_for(engine.cancelled.acquire(), 60)
    async with AsyncClient(running.addresses.grpc) as client:
        async with await client.rank_stream(ASKED) as stream:
            await anext(stream)
        await asyncio.wait_for(engine.cancelled.acquire(), 60)


async def test_the_deadline_is_that_of_the_last_part(running: Running) -> None:
    running.engine.parts_gate.clear()
    *lines, last = await lines_of(running, x_request_timeout_ms="2000")
    assert (len(lines), last["error"]["code"]) == (5, "DEADLINE_EXCEEDED")
    call = running.stub.RankStream(MESSAGE, timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
        async for _ in call:
            pass
    for _ in range(2):
        await asyncio.wait_for(running.engine.cancelled.acquire(), 60)


async def test_a_reader_that_does_not_read_holds_up_nobody() -> None:
    """The rank itself is done, its scores wait here until its time is over, and others are answered."""
    engine = FakeEngine()
    handler = Handler(Limits(99, 9, 9, 9, 9, 256, request_timeout_ms=500))
    handler.serve(engine)
    request = RankRequest("bob", np.arange(60), 0, 0, no_events(), {})
    engine.part_len = 10
    written = list[int]()

    async def write(part: RankPart) -> None:
        written.append(part.first)
        await asyncio.Event().wait()

    stuck = asyncio.create_task(handler.rank_stream(request, "", None, write))
    assert (await handler.rank(request, "", 60)).num_scored == 60
    with pytest.raises(DeadlineExceeded, match="no answer within 500 ms"):
        await asyncio.wait_for(stuck, 60)
    assert written == [0]
    await asyncio.wait_for(handler.wait_idle(), 60)


async def test_who_may_ask(tmp_path: Path) -> None:
    async with serving(tokens_file=one_of_each(tmp_path / "callers.toml")) as running:
        for holder in RIGHTS:
            known = bearer(token(holder))
            may = holder in ("rank", "admin")
            answer = await running.http.post("/v1/rank/stream", json=BODY, headers={"authorization": known})
            assert answer.status_code == (200 if may else 403)
            call, code = running.stub.RankStream(MESSAGE, metadata=(("authorization", known),)), "OK"
            try:
                async for _ in call:
                    pass
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            assert code == ("OK" if may else "PERMISSION_DENIED")
