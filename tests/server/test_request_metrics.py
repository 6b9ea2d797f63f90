"""Every request is counted once, under the code that its caller gets, whatever its end."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

import grpc
import grpc.aio
import httpx
import pytest

from mfalcon import errors
from mfalcon.metrics.server_metrics import ServerMetrics
from proto import inference_pb2, ranking_pb2
from server.config import load_config
from server.grpc.api import SERVICE
from server.grpc.counted import verb_of
from server.http.counted import VERBS
from server.oip.grpc_service import OPEN
from server.service import Service
from tests.server.fake_engine import FakeEngine
from tests.server.harness import FREE_PORTS, Running, serving_engine

RANK = ranking_pb2.RankRequest(user_id="ann", candidates=[1])
RANK_JSON = {"user_id": "ann", "candidates": [1]}
EVENT = ranking_pb2.Event(item_id=7, actions=1, value=1, time_ms=1_000_000)
EVENT_JSON = {"item_id": 7, "actions": 1, "value": 1.0, "time_ms": 1_000_000}
MAX_BYTES = 10_000
Labels = tuple[str, str, str, str]
"""Model, verb, transport, code."""


@dataclass(frozen=True, slots=True)
class Counting:
    """A running server, and what it counts in."""

    running: Running
    metrics: ServerMetrics

    def counts(self, suffix: str = "requests_total") -> dict[Labels, int]:
        """Requests by their labels; the code is "" where the metric has none."""
        return {
            (s.labels["model"], s.labels["verb"], s.labels["transport"], s.labels.get("code", "")): round(s.value)
            for family in self.metrics.registry.collect()
            for s in family.samples
            if s.name == f"mfalcon_{suffix}"
        }

    async def become(self, expected: dict[Labels, int]) -> None:
        """Wait until just these are counted: a caller may have its answer a moment before."""
        for _ in range(6_000):
            if self.counts() == expected:
                break
            await asyncio.sleep(0.01)
        assert self.counts() == expected


@pytest.fixture
async def counting() -> AsyncIterator[Counting]:
    metrics = ServerMetrics()
    async with serving_engine(FakeEngine(), metrics, max_message_bytes=MAX_BYTES, max_candidates=99) as running:
        yield Counting(running, metrics)


async def code_of(call: Awaitable[object]) -> str:
    """How a gRPC call ends."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


def raw_call(running: Running, method: str, message: bytes) -> Awaitable[bytes]:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = running.channel.unary_unary(f"/{SERVICE}/{method}")
    return call(message)


def test_verbs_have_one_name_on_both_transports() -> None:
    ours = ranking_pb2.DESCRIPTOR.services_by_name["Ranking"].methods
    public = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    assert {verb_of(method.name) for method in (*ours, *public) if method.name not in OPEN} == VERBS


async def test_each_verb_of_both_transports(counting: Counting) -> None:
    stub, http = counting.running.stub, counting.running.http
    await stub.Rank(RANK)
    await stub.Rank(ranking_pb2.RankRequest(user_id="ann", candidates=[1], model="other"))
    await stub.AppendEvents(ranking_pb2.AppendEventsRequest(user_id="ann", events=[EVENT]))
    await stub.GetHistory(ranking_pb2.GetHistoryRequest(user_id="ann"))
    await stub.Prefill(ranking_pb2.PrefillRequest(user_id="ann"))
    await stub.DeleteUser(ranking_pb2.DeleteUserRequest(user_id="ann"))
    await stub.GetModel(ranking_pb2.GetModelRequest())
    await stub.ListModels(ranking_pb2.ListModelsRequest())
    for answer in (
        await http.post("/v1/rank", json=RANK_JSON),
        await http.post("/v1/rank", json=RANK_JSON | {"model": "other"}),
        await http.post("/v1/users/ann/events", json={"events": [EVENT_JSON]}),
        await http.get("/v1/users/ann/history"),
        await http.post("/v1/users/ann/prefill"),
        await http.delete("/v1/users/ann"),
        await http.get("/v1/model"),
        await http.get("/v1/models"),
        await http.get("/readyz"),
        await http.get("/metrics"),
        await http.get("/openapi.json"),
    ):
        assert answer.status_code == 200

    models = {
        "rank": ("fake", "other"),
        "append_events": ("",),
        "get_history": ("",),
        "prefill": ("fake",),
        "delete_user": ("",),
        "get_model": ("fake",),
        "list_models": ("",),
    }
    expected = {
        (model, verb, transport, code): 1
        for verb, names in models.items()
        for model in names
        for transport, code in (("grpc", "OK"), ("http", "200"))
    }
    await counting.become(expected)
    assert counting.counts("request_seconds_count") == {(*labels[:3], ""): 1 for labels in expected}


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        (errors.Overloaded("too many"), "RESOURCE_EXHAUSTED", "429"),
        (errors.DeadlineExceeded("late"), "DEADLINE_EXCEEDED", "504"),
        (errors.EngineFailure("it failed"), "INTERNAL", "500"),
        (ZeroDivisionError("a defect"), "INTERNAL", "500"),
    ],
)
async def test_what_the_engine_refuses(counting: Counting, fault: Exception, code: str, status: str) -> None:
    counting.running.engine.fault = fault
    assert await code_of(counting.running.stub.Rank(RANK)) == code
    assert str((await counting.running.http.post("/v1/rank", json=RANK_JSON)).status_code) == status
    await counting.become({("fake", "rank", "grpc", code): 1, ("fake", "rank", "http", status): 1})
    assert not counting.counts("request_seconds_count")


async def test_what_is_refused_before_it_reaches_the_engine(counting: Counting) -> None:
    running = counting.running
    assert await code_of(raw_call(running, "Rank", b"\xff")) == "INVALID_ARGUMENT"
    assert await code_of(running.stub.Rank(ranking_pb2.RankRequest(candidates=[1]))) == "INVALID_ARGUMENT"
    assert await code_of(raw_call(running, "Rank", b"0" * (MAX_BYTES + 1))) == "RESOURCE_EXHAUSTED"
    assert await code_of(raw_call(running, "Rake", b"")) == "UNIMPLEMENTED"
    for send, status in (
        (running.http.post("/v1/rank", content=b"{"), 422),
        (running.http.post("/v1/rank", json=RANK_JSON | {"user_id": ""}), 422),
        (running.http.post("/v1/rank", content=b"0" * (MAX_BYTES + 1)), 413),
        (running.http.get("/v1/rank"), 405),
        (running.http.post("/v1/rake"), 404),
        (running.http.post("/v1/rake/2"), 404),
    ):
        assert (await send).status_code == status
    await counting.become(
        {
            ("", "rank", "grpc", "INVALID_ARGUMENT"): 1,
            ("fake", "rank", "grpc", "INVALID_ARGUMENT"): 1,
            ("", "rank", "grpc", "RESOURCE_EXHAUSTED"): 1,
            ("", "", "grpc", "UNIMPLEMENTED"): 1,
            ("", "rank", "http", "422"): 1,
            ("fake", "rank", "http", "422"): 1,
            ("", "rank", "http", "413"): 1,
            ("", "rank", "http", "405"): 1,
            ("", "", "http", "404"): 2,
        }
    )


async def test_names_of_models_that_callers_invent_make_no_series(counting: Counting) -> None:
    for index in range(20):
        name = f"invented-{index}"
        message = ranking_pb2.RankRequest(user_id="ann", candidates=[1], model=name)
        assert await code_of(counting.running.stub.Rank(message)) == "NOT_FOUND"
        answer = await counting.running.http.post("/v1/rank", json=RANK_JSON | {"model": name})
        assert answer.status_code == 404
    await counting.become({("", "rank", "grpc", "NOT_FOUND"): 20, ("", "rank", "http", "404"): 20})


async def test_deadlines_of_callers(counting: Counting) -> None:
    """Also of a caller whose message never comes. gRPC ends a call itself, perhaps before its deadline has come here:
    they are long, so that a busy machine does not make it look like a caller that left.
    """

    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    running = counting.running
    running.engine.gate.clear()
    empty: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = running.channel.stream_unary(f"/{SERVICE}/Rank")
    by_grpc, without_message, by_http = await asyncio.gather(
        code_of(running.stub.Rank(RANK, timeout=3)),
        code_of(empty(nothing(), timeout=3)),
        running.http.post("/v1/rank", json=RANK_JSON, headers={"x-request-timeout-ms": "50"}),
    )
    assert (by_grpc, without_message, by_http.status_code) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", 504)
    await counting.become(
        {
            ("fake", "rank", "grpc", "DEADLINE_EXCEEDED"): 1,
            ("", "rank", "grpc", "DEADLINE_EXCEEDED"): 1,
            ("fake", "rank", "http", "504"): 1,
        }
    )


async def test_calls_that_are_too_many() -> None:
    metrics = ServerMetrics()
    async with serving_engine(FakeEngine(), metrics, grpc_max_calls=1) as running:
        running.engine.gate.clear()
        first = asyncio.ensure_future(code_of(running.stub.Rank(RANK)))
        await running.engine.entered.wait()
        assert await code_of(running.stub.Rank(RANK)) == "RESOURCE_EXHAUSTED"
        running.engine.gate.set()
        assert await first == "OK"
        expected = {("", "rank", "grpc", "RESOURCE_EXHAUSTED"): 1, ("fake", "rank", "grpc", "OK"): 1}
        await Counting(running, metrics).become(expected)


async def test_callers_that_leave(counting: Counting) -> None:
    running = counting.running
    running.engine.gate.clear()
    call = running.stub.Rank(RANK)
    waiting = asyncio.ensure_future(call.wait_for_connection())
    await running.engine.entered.wait()
    call.cancel()
    await running.engine.cancelled.acquire()
    waiting.cancel()

    running.engine.entered.clear()
    writer = await half_sent(running, b'{"user_id":"ann","candidates":[1]}', 0)
    await running.engine.entered.wait()
    writer.close()
    await running.engine.cancelled.acquire()

    writer = await half_sent(running, b'{"user_id":', 100)
    await counting.become({("fake", "rank", "grpc", "CANCELLED"): 1, ("fake", "rank", "http", "499"): 1})
    writer.close()
    await counting.become(
        {
            ("fake", "rank", "grpc", "CANCELLED"): 1,
            ("fake", "rank", "http", "499"): 1,
            ("", "rank", "http", "499"): 1,
        }
    )
    assert not counting.counts("request_seconds_count")


async def half_sent(running: Running, body: bytes, missing: int) -> asyncio.StreamWriter:
    """A rank by HTTP of which the last bytes are missing."""
    host, port = running.addresses.http.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port))
    head = "POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body) + missing}\r\n\r\n".encode() + body)
    await writer.drain()
    return writer


async def test_what_no_application_hears_of() -> None:
    """Bytes that are no HTTP, a head and a body that never end."""
    metrics = ServerMetrics()
    limits = {"http_header_timeout_s": 0.2, "http_body_timeout_s": 0.2}
    async with serving_engine(FakeEngine(), metrics, **limits) as running:
        host, port = running.addresses.http.rsplit(":", 1)
        for said, status in ((b"\0\r\n\r\n", b"400"), (b"GET /livez HTTP/1.1\r\n", b"408")):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            assert (await reader.readline()).split()[1] == status
            writer.close()
        writer = await half_sent(running, b"{", 100)
        expected = {("", "", "http", "400"): 1, ("", "", "http", "408"): 1, ("", "rank", "http", "408"): 1}
        await Counting(running, metrics).become(expected)
        writer.close()


async def test_before_there_is_an_engine() -> None:
    metrics = ServerMetrics()
    service = Service(load_config(None, FREE_PORTS | {"drain_seconds": 1}), metrics)
    addresses = await service.listen()
    async with httpx.AsyncClient(base_url=f"http://{addresses.http}", timeout=60) as http:
        assert (await http.post("/v1/rank", json=RANK_JSON)).status_code == 503
    await service.stop()
    labels = {"model": "", "verb": "rank", "transport": "http", "code": "503"}
    assert metrics.registry.get_sample_value("mfalcon_requests_total", labels) == 1


async def test_a_drain_answers_late_comers_and_ends_those_in_flight(counting: Counting) -> None:
    running = counting.running
    running.engine.gate.clear()
    by_grpc = asyncio.ensure_future(code_of(running.stub.Rank(RANK)))
    by_http = asyncio.ensure_future(running.http.post("/v1/rank", json=RANK_JSON))
    async with asyncio.timeout(60):
        while running.engine.num_entered < 2:  # noqa: ASYNC110 (two have entered)
            await asyncio.sleep(0.01)
    stopping = asyncio.ensure_future(running.service.stop())
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await running.stub.Rank(RANK)
    await stopping
    assert (await by_grpc, (await by_http).status_code) == ("UNAVAILABLE", 503)
    arrived = (late.value.details() or "").startswith("the server")  # before it stopped to listen
    await counting.become({("fake", "rank", "grpc", "UNAVAILABLE"): 1 + arrived, ("fake", "rank", "http", "503"): 1})


async def test_the_sum_is_what_was_sent(counting: Counting) -> None:
    """Mixed ends at the same time: each request is counted, and none twice."""
    running, codes = counting.running, Counter[Labels]()
    messages = {
        "": RANK,
        "nobody": ranking_pb2.RankRequest(user_id="ann", candidates=[1], model="nobody"),
        "other": ranking_pb2.RankRequest(user_id="", candidates=[1], model="other"),
    }

    async def one(index: int) -> None:
        name = list(messages)[index % 3]
        if index % 2:
            code = await code_of(running.stub.Rank(messages[name]))
        else:
            body = {"user_id": messages[name].user_id, "candidates": [1], "model": name}
            code = str((await running.http.post("/v1/rank", json=body)).status_code)
        model = {"": "fake", "nobody": "", "other": "other"}[name]
        codes[model, "rank", "grpc" if index % 2 else "http", code] += 1

    await asyncio.gather(*(one(index) for index in range(90)))
    assert len(codes) == 6
    await counting.become(dict(codes))
