"""A real server sends what it did of each request to a real collector: the right parts, parents and times, no user."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from mfalcon.models import checkpoint
from proto import ranking_pb2, ranking_pb2_grpc
from server.oip.grpc_service import SERVICE as INFERENCE
from tests.server.collector import Collector, attributes, collecting
from tests.server.oip.asking import message
from tests.small import NOW_MS, START_MS, small_checkpoint

ROOT = Path(__file__).parents[2]
OPEN_METRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
"""What Prometheus asks for."""
WHO = "who-is-this-9f2c"
TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
CALLER = 0x00F067AA0BA902B7
SAMPLED, NOT_SAMPLED = (f"00-{TRACE:032x}-{CALLER:016x}-0{flag}" for flag in (1, 0))
EVENTS = [
    ranking_pb2.Event(item_id=item, actions=1, value=1.0, time_ms=START_MS + 1_000 * item) for item in range(1, 20)
]
RANK = ranking_pb2.RankRequest(user_id=WHO, candidates=range(1, 30), request_time_ms=NOW_MS)
INPUTS = (
    {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": [WHO]},
    {"name": "candidate_ids", "datatype": "INT64", "shape": [29], "data": range(1, 30)},
    {"name": "request_time_ms", "datatype": "INT64", "shape": [1], "data": [NOW_MS]},
)
RANK_JSON = {"user_id": WHO, "candidates": list(range(1, 30)), "request_time_ms": NOW_MS}


class Server:
    """A process that serves a small model, and a client of each transport."""

    def __init__(self, channel: grpc.aio.Channel, http: httpx.AsyncClient) -> None:
        self.channel = channel
        self.stub = ranking_pb2_grpc.RankingStub(channel)
        self.http = http

    async def spans(self, outcome: str) -> int:
        name = f'mfalcon_spans_total{{outcome="{outcome}"}} '
        text = (await self.http.get("/metrics")).text
        return sum(int(float(line.removeprefix(name))) for line in text.splitlines() if line.startswith(name))


@asynccontextmanager
async def served(directory: Path, *options: str) -> AsyncIterator[Server]:
    """`mfalcon serve` in a process of its own."""
    model = directory / "model"
    if not model.exists():
        small = small_checkpoint()
        checkpoint.save(model, small.model, small.items)
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'client'}:{ROOT}", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    command = (sys.executable, "-m", "mfalcon.cli", "serve", "--checkpoint", str(model), "--device", "cpu")
    ports = ("--grpc-port", "0", "--http-port", "0", "--threads", "1", "--backend", "reference")
    with (directory / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command, *ports, *options, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(120):
            words = (await process.stdout.readline()).decode().split()
        assert words, (directory / "log").read_text()
        by_grpc, by_http = words[1].removeprefix("grpc="), words[2].removeprefix("http=")
        async with (
            grpc.aio.insecure_channel(by_grpc) as channel,
            httpx.AsyncClient(base_url=f"http://{by_http}", timeout=60) as http,
        ):
            yield Server(channel, http)
        process.terminate()
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 (what a collector is sent has no event)
            await asyncio.sleep(0.02)


def check_parents(collector: Collector, root: str, *, front: bool) -> None:
    """Of the one trace that the collector has of `TRACE`."""
    spans = collector.of(TRACE)
    assert len(spans) == len(collector.spans)  # each once, and nothing of other traces or of a library's own
    parents = {
        root: None,
        **dict.fromkeys(("decode", "admission", "encode"), root),
        "rank": root,
        **dict.fromkeys(("log", "queue", "prefill", "score"), "rank"),
    }
    assert parents.keys() <= spans.keys()
    for name, parent in parents.items():
        expected = CALLER.to_bytes(8, "big") if parent is None else spans[parent].span_id
        assert spans[name].parent_span_id == expected, name
        assert spans[name].start_time_unix_nano <= spans[name].end_time_unix_nano
        if parent is not None:  # clocks of processes agree, but two readings of them are not one
            assert spans[name].start_time_unix_nano >= spans[parent].start_time_unix_nano - 2_000_000
            assert spans[name].end_time_unix_nano <= spans[parent].end_time_unix_nano + 2_000_000
    in_order = [spans[name].start_time_unix_nano for name in ("log", "queue", "prefill", "score")]
    assert in_order == sorted(in_order)
    assert spans[root].kind == spans[root].SPAN_KIND_SERVER
    assert [event.name for event in spans["score"].events] == ["slice"] * len(spans["score"].events) != []
    told = [attributes(event)["mfalcon.candidates"] for event in spans["score"].events]  # type: ignore[arg-type]
    assert sum(told) == 29
    assert attributes(spans["rank"])["mfalcon.history_len"] == 19
    assert collector.roles == ({"engine", "frontend"} if front else {"server"})


async def of_tensors_and_a_stream(collector: Collector, server: Server, *, front: bool) -> list[Span]:
    """Have the same rank asked otherwise, with the right parents. Returns the spans that were there before the last."""
    infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(f"/{INFERENCE}/ModelInfer")
    tensors = message(INPUTS, {}, model="small").SerializeToString()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        f"{INFERENCE}/ModelInfer": lambda: infer(tensors, metadata=(("traceparent", SAMPLED),)),
        "POST /v1/rank/stream": lambda: server.http.post(
            "/v1/rank/stream", json=RANK_JSON, headers={"traceparent": SAMPLED}
        ),
    }
    everything = list[Span]()
    for root, call in calls.items():
        everything += collector.spans
        collector.spans.clear()
        await server.stub.DeleteUser(ranking_pb2.DeleteUserRequest(user_id=WHO))
        await server.stub.AppendEvents(ranking_pb2.AppendEventsRequest(user_id=WHO, events=EVENTS))
        await call()
        await eventually(lambda root=root: {"rank", "score", root} <= collector.of(TRACE).keys())  # type: ignore[misc]
        check_parents(collector, root, front=front)
    return everything


@pytest.mark.parametrize("frontends", [0, 1])
async def test_both_transports_send_the_whole_way_of_a_rank(frontends: int, tmp_path: Path) -> None:
    began = time.time_ns()
    traced = (("traceparent", SAMPLED), ("x-request-id", "page-7"))
    with collecting() as collector:
        options = ("--otlp-endpoint", collector.address, "--trace-sample", "0", "--frontends", str(frontends))
        async with served(tmp_path, *options) as server:
            append = ranking_pb2.AppendEventsRequest(user_id=WHO, events=EVENTS)
            await server.stub.AppendEvents(append, metadata=(("traceparent", SAMPLED),))
            await server.stub.Rank(RANK)
            await server.stub.Rank(RANK, metadata=(("traceparent", NOT_SAMPLED),))
            collector_first = len(collector.spans)
            await eventually(lambda: "mfalcon.v1.Ranking/AppendEvents" in collector.of(TRACE))
            collector.spans.clear()
            assert collector_first <= 4
            await server.stub.DeleteUser(ranking_pb2.DeleteUserRequest(user_id=WHO))
            await server.stub.AppendEvents(append)
            await server.stub.Rank(RANK, metadata=traced)
            await eventually(lambda: {"rank", "score", "encode"} <= collector.of(TRACE).keys())
            await eventually(lambda: "mfalcon.v1.Ranking/Rank" in collector.of(TRACE))
            check_parents(collector, "mfalcon.v1.Ranking/Rank", front=bool(frontends))
            told = attributes(collector.of(TRACE)["mfalcon.v1.Ranking/Rank"])
            assert (told["rpc.system"], told["rpc.service"], told["rpc.method"], told["rpc.grpc.status_code"]) == (
                *("grpc", "mfalcon.v1.Ranking", "Rank", 0),
            )
            assert told["mfalcon.request_id"] == "page-7" and told["mfalcon.user"] != WHO
            everything = list(collector.spans)
            collector.spans.clear()
            await server.stub.DeleteUser(ranking_pb2.DeleteUserRequest(user_id=WHO))
            await server.stub.AppendEvents(append)
            await server.http.post("/v1/rank", json=RANK_JSON, headers={"traceparent": SAMPLED, "tracestate": "a=1"})
            await eventually(lambda: {"rank", "score", "POST /v1/rank"} <= collector.of(TRACE).keys())
            check_parents(collector, "POST /v1/rank", front=bool(frontends))
            told = attributes(collector.of(TRACE)["POST /v1/rank"])
            assert (told["http.request.method"], told["http.route"], told["http.response.status_code"]) == (
                *("POST", "/v1/rank", 200),
            )
            assert collector.of(TRACE)["score"].trace_state == "a=1"
            text = (await server.http.get("/metrics", headers={"accept": OPEN_METRICS})).text
            shown = {
                (sample.name, sample.labels.get("stage", sample.labels.get("transport")))
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.exemplar is not None and sample.exemplar.labels == {"trace_id": f"{TRACE:032x}"}
            }
            assert {("mfalcon_stage_seconds_bucket", stage) for stage in ("queue", "score")} <= shown
            if not frontends:  # what front-ends count in mapped files has none
                stages = {("mfalcon_stage_seconds_bucket", stage) for stage in ("admission", "reply")}
                assert {("mfalcon_request_seconds_bucket", by) for by in ("grpc", "http")} | stages <= shown
            assert "trace_id" not in (await server.http.get("/metrics")).text
            everything += await of_tensors_and_a_stream(collector, server, front=bool(frontends))
            failed = {"traceparent": SAMPLED}
            await server.http.delete(f"/v1/users/{WHO}", headers=failed)
            await server.http.post("/v1/rank", json={"user_id": WHO, "candidates": []}, headers=failed)
            await server.http.get(f"/v1/users/{WHO}/history?first=-1", headers=failed)
            await eventually(lambda: "GET /v1/users/{user_id}/history" in collector.of(TRACE))
            await eventually(lambda: "DELETE /v1/users/{user_id}" in collector.of(TRACE))
            everything += collector.spans
    assert not any(WHO in str(span) for span in everything)
    assert all(began <= span.start_time_unix_nano <= time.time_ns() for span in everything)
    assert WHO.encode() not in (tmp_path / "log").read_bytes()


async def test_the_part_that_is_asked_for_is_traced_and_the_rest_is_not(tmp_path: Path) -> None:
    with collecting() as collector:
        async with served(tmp_path, "--otlp-endpoint", collector.address, "--trace-sample", "1") as server:
            await server.stub.Rank(RANK, metadata=(("traceparent", NOT_SAMPLED),))
            with pytest.raises(grpc.aio.AioRpcError):
                await server.stub.Rank(RANK, timeout=1e-4)
            await server.stub.GetModel(ranking_pb2.GetModelRequest())
            await eventually(lambda: "mfalcon.v1.Ranking/GetModel" in {span.name for span in collector.spans})
            assert not collector.of(TRACE)
            late = [span for span in collector.spans if span.name == "mfalcon.v1.Ranking/Rank"]
            assert all(span.status.code == span.status.STATUS_CODE_ERROR for span in late)


async def test_a_collector_that_is_dead_or_frozen_delays_nobody_and_is_said_once(tmp_path: Path) -> None:
    with collecting() as collector:
        collector.frozen.set()
        async with served(tmp_path, "--otlp-endpoint", collector.address) as server:
            async with asyncio.timeout(60):
                for _ in range(600):  # more spans than may wait
                    await server.stub.Rank(RANK)
                while not await server.spans("dropped"):
                    await server.stub.Rank(RANK)
    async with served(tmp_path, "--otlp-endpoint", "http://127.0.0.1:1") as server:
        async with asyncio.timeout(120):
            while not await server.spans("failed"):
                await server.stub.Rank(RANK)
                await asyncio.sleep(0.05)
    assert (tmp_path / "log").read_text().count("takes no spans") <= 2
