"""What balancers are told: whose key a request has, how busy the server is, and what another replica may answer."""

import asyncio
import base64
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import hpack
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtest.faults.raw_http2 import connected
from mfalcon import errors
from mfalcon.load import Load
from mfalcon.rank_key import RANK_KEY, rank_key
from proto import ranking_pb2
from server.balancing import LOAD_BINARY, LoadReport
from server.grpc.api import SERVICE
from tests.server.harness import Running, serving
from tests.server.load_report import load_report

ROOT = Path(__file__).parents[2]
RANK = ranking_pb2.RankRequest(user_id="ann", candidates=[1])
RANK_JSON = {"user_id": "ann", "candidates": [1]}
RIGHT = rank_key("ann")
HOSTILE = ["'; drop", RIGHT.upper(), RIGHT + "0", "a" * 4_000]


def test_the_key_is_the_one_that_the_proto_names() -> None:
    assert rank_key("ann") == "8d3adf6abf23f3a5"
    assert rank_key("ann") in (ROOT / "proto" / "ranking.proto").read_text()
    assert rank_key("Zoë 😀") == "a9b4baf36fd6dedf"


async def mismatches(http: httpx.AsyncClient) -> dict[tuple[str, str], float]:
    """Counts by transport and what was wrong."""
    text = (await http.get("/metrics")).text
    return {
        (sample.labels["transport"], sample.labels["key"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "mfalcon_affinity_mismatch_total"
    }


@pytest.mark.parametrize("frontends", [0, 1])
async def test_keys_that_are_not_the_user_s_are_counted(frontends: int) -> None:
    async with serving(frontends=frontends) as running:
        for _ in range(3):
            await running.stub.Rank(RANK, metadata=((RANK_KEY, RIGHT),))
            await running.http.post("/v1/rank", json=RANK_JSON, headers={RANK_KEY: RIGHT})
        await running.http.delete("/v1/users/ann", headers={RANK_KEY: RIGHT})
        await running.stub.ListModels(ranking_pb2.ListModelsRequest())  # is about no user
        assert await mismatches(running.http) == {}
        for key in HOSTILE:
            await running.stub.Rank(RANK, metadata=((RANK_KEY, key),))
            assert (await running.http.post("/v1/rank", json=RANK_JSON, headers={RANK_KEY: key})).status_code == 200
        for none in ((), ((RANK_KEY, ""),)):
            await running.stub.Rank(RANK, metadata=none)
        await running.http.post("/v1/rank", json=RANK_JSON, headers={RANK_KEY: ""})
        await running.stub.Rank(RANK, metadata=((RANK_KEY, RIGHT),) * 2)
        await running.http.post("/v1/rank", json=RANK_JSON, headers=[(RANK_KEY, RIGHT)] * 2)
        await running.http.post("/v1/rank", json=RANK_JSON, headers=[(RANK_KEY.encode(), b"\xff\xfe")])
        assert await mismatches(running.http) == {
            ("grpc", "wrong"): len(HOSTILE) + 1,
            ("http", "wrong"): len(HOSTILE) + 2,
            ("grpc", "none"): 2,
            ("http", "none"): 1,
        }


async def test_a_key_of_megabytes_is_refused_and_no_more(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.Rank(RANK, metadata=((RANK_KEY, "a" * 2**22),))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    try:
        answer = await running.http.post("/v1/rank", json=RANK_JSON, headers={RANK_KEY: "a" * 2**22})
        assert answer.status_code == 431
    except httpx.TransportError:
        pass  # it was still being sent
    assert (await running.stub.Rank(RANK)).scores
    assert (await running.http.post("/v1/rank", json=RANK_JSON)).status_code == 200


async def report_on_the_wire(address: str) -> Any:
    """The binary report in the trailers of a call. gRPC's clients keep it for their balancers and show it to nobody."""
    async with connected(address) as connection:
        assert await connection.ask(f"/{SERVICE}/GetModel", b"") == 0
        decoder = hpack.Decoder()
        fields = dict(field for block in connection.headers for field in decoder.decode(block, raw=True))
    text = fields[LOAD_BINARY.encode()]
    return load_report(base64.b64decode(text + b"=" * (-len(text) % 4)))


@pytest.mark.parametrize("frontends", [0, 1])
async def test_every_answer_says_how_busy_the_server_is(frontends: int) -> None:
    async with serving(frontends=frontends) as running:
        running.engine.load = Load(free_at=time.monotonic() + 600, utilisation=0.25)
        async with asyncio.timeout(60):
            while True:  # a front-end hears of it a little later
                answer = await running.http.get("/v1/model")
                report, _, rest = answer.headers["endpoint-load-metrics"].partition(",rps_fractional=")
                rate, _, queue = rest.partition(",named_metrics.queue_ms=")
                if report == "TEXT application_utilization=0.25" and float(rate):
                    break
                await asyncio.sleep(0.02)
        assert 500_000 < float(queue) < 600_000
        by_grpc = running.stub.GetModel(ranking_pb2.GetModelRequest())
        await by_grpc
        trailers = dict(await by_grpc.trailing_metadata())
        assert str(trailers["endpoint-load-metrics"]).startswith(f"{report},")
        message = await report_on_the_wire(running.addresses.grpc)
        assert message.application_utilization == 0.25
        assert 500_000 < message.named_metrics["queue_ms"] < 600_000
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.stub.Rank(RANK, timeout=5)
        told = dict(refused.value.trailing_metadata() or ())
        assert told["endpoint-load-metrics"].startswith(f"{report},") and told["x-rank-retry"] == "elsewhere"
        assert "endpoint-load-metrics" not in (await running.http.get("/livez")).headers


def test_a_report_counts_the_answers_that_it_goes_with() -> None:
    """gRPC's weighted_round_robin takes no report without a rate."""
    report = LoadReport(lambda: Load(utilisation=0.5))
    began, num = time.monotonic(), 0
    while True:
        report.text()
        num += 1
        (_, text), (_, binary) = report.trailers()
        num += 1
        assert isinstance(binary, bytes)
        message = load_report(binary)
        if message.rps_fractional:
            break
        time.sleep(0.01)
    passed = time.monotonic() - began
    assert 0 < message.rps_fractional <= num
    assert passed >= 1
    assert text == (
        f"TEXT application_utilization=0.50,rps_fractional={message.rps_fractional:.1f},named_metrics.queue_ms=0.0"
    )
    assert dict(message.named_metrics) == {"queue_ms": 0.0}


@pytest.mark.parametrize("frontends", [0, 1])
async def test_what_another_replica_may_answer_is_told_from_what_none_can(frontends: int) -> None:
    async with serving(frontends=frontends) as running:
        for fault, is_elsewhere, pushback in [
            (errors.Overloaded("busy", retry_after_s=0.2), True, "200"),
            (errors.Overloaded("full"), True, None),
            (errors.Overloaded("too short anywhere", elsewhere=False), False, "-1"),
            (errors.ShuttingDown("closing"), True, None),
            (errors.ShuttingDown("closing", may_be_done=True), False, None),
            (errors.StorageUnavailable("Redis is unreachable"), False, None),
            (errors.DeadlineExceeded("no time left"), False, None),
            (errors.EngineFailure("the step failed"), False, None),
        ]:
            running.engine.fault = fault
            answer = await running.http.post("/v1/rank", json=RANK_JSON)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await running.stub.Rank(RANK)
            told = dict(refused.value.trailing_metadata() or ())
            assert (told.get("x-rank-retry") == "elsewhere") == is_elsewhere, fault
            assert answer.headers.get("x-rank-retry") == told.get("x-rank-retry")
            assert told.get("grpc-retry-pushback-ms") == pushback


async def test_a_write_that_a_shutdown_cuts_off_is_no_other_replica_s() -> None:
    async with serving(drain_seconds=0.4) as running:
        running.engine.gate.clear()
        append = ranking_pb2.AppendEventsRequest(user_id="ann", events=[ranking_pb2.Event(item_id=1, time_ms=1)])
        calls = [
            asyncio.ensure_future(running.stub.Rank(RANK)),
            asyncio.ensure_future(running.stub.AppendEvents(append)),
            asyncio.ensure_future(running.stub.DeleteUser(ranking_pb2.DeleteUserRequest(user_id="ann"))),
        ]
        async with asyncio.timeout(60):
            while running.engine.num_entered < len(calls):  # noqa: ASYNC110 (nobody is told)
                await asyncio.sleep(0.01)
        await running.service.stop()
        told = []
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            told.append(dict(refused.value.trailing_metadata() or ()).get("x-rank-retry"))
        assert told == ["elsewhere", None, None]
