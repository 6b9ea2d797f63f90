"""Whatever happens to a user's requests, no line of the log, of the access log, and no span names him or his key."""

import asyncio
import io
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import mfalcon.spans
import server.tracing
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.history.chain import user_hash
from mfalcon.history.redis_log import LogOptions
from mfalcon.pseudonym import user_tag
from mfalcon.redis.client import RedisSettings
from mfalcon.redis.keys import Keys
from proto import inference_pb2, ranking_pb2
from server.logs import JsonFormatter, TextFormatter, belongs
from tests.redis_fixtures import OwnRedis
from tests.server.harness import Served, serving_engine
from tests.small import START_MS, small_checkpoint

WHO = "who-is-this-9f2c@example.org"
TRACED = f"00-{7:032x}-{7:016x}-01"
INFER = "/inference.GRPCInferenceService/ModelInfer"
EVENT = ranking_pb2.Event(item_id=1, actions=1, value=1.0, time_ms=START_MS)


@pytest.fixture
def written() -> Iterator[list[io.StringIO]]:
    """All that is logged, in both forms, of every level that a server may write."""
    streams = [io.StringIO(), io.StringIO()]
    handlers = []
    for stream, formatter in zip(streams, (TextFormatter(), JsonFormatter()), strict=True):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        handler.addFilter(belongs)
        handlers.append(handler)
        logging.getLogger().addHandler(handler)
    for name in ("mfalcon", "server"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield streams
    for handler in handlers:
        logging.getLogger().removeHandler(handler)
    for name in ("mfalcon", "server"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def oip_message(behind: bytes = b"") -> inference_pb2.ModelInferRequest:
    """A rank by tensors. behind: bytes at the end of the user's id."""
    request = inference_pb2.ModelInferRequest()
    user = request.inputs.add(name="user_id", datatype="BYTES", shape=[1])
    user.contents.bytes_contents.append(WHO.encode() + behind)
    request.inputs.add(name="candidate_ids", datatype="INT64", shape=[2]).contents.int64_contents.extend([1, 2])
    return request


async def ask_all(running: Served[Engine]) -> None:
    """Good requests and bad ones, of every method by both transports; how they end is another test's."""
    metadata = (("traceparent", TRACED),)
    stub = running.stub
    far = ranking_pb2.Event(item_id=1, actions=2**31, value=float("nan"), time_ms=1)
    rank = ranking_pb2.RankRequest(user_id=WHO, candidates=[1, 2])
    infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = running.channel.unary_unary(INFER)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: stub.AppendEvents(
            ranking_pb2.AppendEventsRequest(user_id=WHO, events=[EVENT]), timeout=5, metadata=metadata
        ),
        lambda: stub.AppendEvents(
            ranking_pb2.AppendEventsRequest(user_id=WHO, events=[far]), timeout=5, metadata=metadata
        ),
        lambda: stub.AppendEvents(
            ranking_pb2.AppendEventsRequest(user_id=WHO, events=[EVENT], expected_len=99), timeout=5, metadata=metadata
        ),
        lambda: stub.Rank(ranking_pb2.RankRequest(user_id=WHO, candidates=[1, 2]), timeout=5, metadata=metadata),
        lambda: stub.Rank(ranking_pb2.RankRequest(user_id=WHO + "\n", candidates=[1]), timeout=5, metadata=metadata),
        lambda: stub.Rank(ranking_pb2.RankRequest(user_id=WHO, candidates=[1]), timeout=1e-3, metadata=metadata),
        lambda: stub.Rank(
            ranking_pb2.RankRequest(user_id=WHO, candidates=[1], model="none"), timeout=5, metadata=metadata
        ),
        lambda: stub.Prefill(ranking_pb2.PrefillRequest(user_id=WHO), timeout=5, metadata=metadata),
        lambda: stub.GetHistory(ranking_pb2.GetHistoryRequest(user_id=WHO), timeout=5, metadata=metadata),
        lambda: stub.RankBatch(
            ranking_pb2.RankBatchRequest(requests=[rank, rank, ranking_pb2.RankRequest(user_id=WHO, model=WHO)]),
            timeout=5,
            metadata=metadata,
        ),
        lambda: stub.AppendBatch(
            ranking_pb2.AppendBatchRequest(
                appends=[ranking_pb2.AppendEventsRequest(user_id=WHO, events=[event]) for event in (EVENT, far)]
            ),
            timeout=5,
            metadata=metadata,
        ),
        lambda: stub.Interests(ranking_pb2.InterestsRequest(user_id=WHO), timeout=5, metadata=metadata),
        lambda: infer(oip_message().SerializeToString(), timeout=5, metadata=metadata),
        lambda: infer(oip_message(b"\xff").SerializeToString(), timeout=5, metadata=metadata),
    ]
    for call in calls:
        with suppress(grpc.aio.AioRpcError):
            await call()
    http, headers = running.http, {"traceparent": TRACED}
    for body in ({"user_id": WHO, "candidates": [1]}, {"user_id": WHO}, {"user_id": WHO, "candidates": ["x", WHO]}):
        await http.post("/v1/rank", json=body, headers=headers)
    await http.post(f"/v1/users/{WHO}/events", json={"events": [], WHO: 1}, headers=headers)
    await http.get(f"/v1/users/{WHO}/history?first={WHO}", headers=headers)
    await http.put(f"/v1/users/{WHO}", headers=headers)
    await http.get(f"/v1/nowhere/{WHO}", headers=headers)
    await http.post(f"/v1/users/{WHO}/prefill", headers=headers)
    ranks, event = {"user_id": WHO, "candidates": [1]}, {"item_id": 1, "time_ms": START_MS}
    await http.post(
        "/v1/rank/batch", json={"requests": [ranks, ranks | {"model": WHO}, ranks | {WHO: 1}]}, headers=headers
    )
    await http.post(
        "/v1/events", json={"appends": [{"user_id": WHO, "events": [event]}, {"user_id": WHO}]}, headers=headers
    )
    await http.post("/v1/interests", json={"user_id": WHO}, headers=headers)
    tensors: list[dict[str, object]] = [
        {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": [WHO]},
        {"name": "candidate_ids", "datatype": "INT64", "shape": [1], "data": [1]},
    ]
    for inputs in (tensors, [tensors[0] | {"name": WHO}]):
        for model in (running.engine.models[0].name, WHO):
            await http.post(f"/v2/models/{model}/infer", json={"inputs": inputs, "id": "1"}, headers=headers)


async def test_nothing_that_is_written_names_a_user(
    own_redis: OwnRedis, written: list[io.StringIO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(mfalcon.spans, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(server.tracing, "_tracer", provider.get_tracer("test"))
    redis, keys, access = own_redis(), Keys("t"), tmp_path / "access.log"
    options = RedisOptions(RedisSettings(redis.url, 0.3, 0.3), prefix="t", log=LogOptions(on_damage="start-empty"))
    engine = compose(
        small_checkpoint(),
        EngineConfig(threads=1, ranker=RankerOptions(microbatch=8), histories=HistoryOptions(redis=options)),
    )
    await asyncio.to_thread(engine.wait_ready)
    async with serving_engine(engine, access_log=str(access), otlp_endpoint="http://127.0.0.1:1") as running:
        await ask_all(running)
        redis.command("SET", keys.log(user_hash(WHO)), "this is no log")  # moved away, and said
        await ask_all(running)
        redis.command("DEL", keys.log(user_hash(WHO)))  # a log that went back, said too
        await ask_all(running)
        with monkeypatch.context() as broken:  # a defect: its traceback is logged
            broken.setattr(engine.histories, "append", _defect)
            broken.setattr(engine.catalog.default, "counted", _defect)
            await ask_all(running)
        await running.stub.DeleteUser(ranking_pb2.DeleteUserRequest(user_id=WHO))
        redis.kill()
        await ask_all(running)
        with suppress(grpc.aio.AioRpcError):
            await running.stub.DeleteUser(ranking_pb2.DeleteUserRequest(user_id=WHO), timeout=2)
    spans = [span.to_json() for span in exporter.get_finished_spans()]
    log = "".join(stream.getvalue() for stream in written)
    assert len(spans) > 50 and any(user_tag(WHO) in span for span in spans)
    assert "is now the key that ends in" in log and "went back" in log and "a defect" in log
    assert user_tag(WHO) in log and user_tag(WHO) in access.read_text()
    verbs = {line["verb"] for line in map(json.loads, access.read_text().splitlines())}
    assert verbs >= {"rank", "rank_batch", "append_batch", "interests", "model_infer", "get_history"}
    for name in (WHO, WHO.partition("@")[0], user_hash(WHO).hex()):
        assert not [span for span in spans if name in span]
        assert not [line for line in (log + access.read_text()).splitlines() if name in line]


def _defect(*args: object) -> None:
    raise ZeroDivisionError("a defect")
