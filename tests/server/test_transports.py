"""Both transports give the same answers, over real sockets."""

import time
from dataclasses import replace

import grpc.aio
import httpx
import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from pydantic import BaseModel

from mfalcon.history.history import no_history
from mfalcon.types import Rerank
from proto import ranking_pb2
from server.http import append_bodies, bodies, rank_replies, replies
from tests.server.fake_engine import FAILING_ITEM, MEMBERS, MODEL, OTHER, like_scores
from tests.server.harness import Running, health_of

NAMES = [MODEL.name, OTHER.name]
EVENT: dict[str, object] = {"item_id": 7, "actions": 17, "value": 3.5, "time_ms": 1_000_000}


def reply(response: httpx.Response, model: type[BaseModel]) -> dict[str, object]:
    """The JSON of a good answer, which must be what /openapi.json promises."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    model.model_validate_json(response.content)
    fields: dict[str, object] = response.json()
    return fields


async def rank_both(running: Running, **fields: object) -> tuple[ranking_pb2.RankResponse, dict[str, object]]:
    by_grpc = await running.stub.Rank(ParseDict(fields, ranking_pb2.RankRequest()))
    by_http = reply(await running.http.post("/v1/rank", json=fields), rank_replies.RankReply)
    return by_grpc, by_http


async def test_what_the_counters_were_is_told_by_both(running: Running) -> None:
    by_grpc, by_http = await rank_both(running, user_id="ann", candidates=[1], allow_partial=True)
    assert by_grpc.counters_version == by_http["counters_version"] == 2**40
    assert by_grpc.counters_stale is by_http["counters_stale"] is True
    by_grpc, by_http = await rank_both(running, user_id="ann", candidates=[1])
    assert by_grpc.counters_stale is by_http["counters_stale"] is False


async def test_a_reranking_that_was_skipped_is_told_by_both(running: Running) -> None:
    by_grpc, by_http = await rank_both(running, user_id="ann", candidates=[1], rerank={"method": "dpp", "strength": 1})
    assert by_grpc.rerank_skipped == by_http["rerank_skipped"] == "late"
    assert [request.rerank for request in running.engine.requests] == 2 * [Rerank("dpp", 1.0)]
    by_grpc, by_http = await rank_both(running, user_id="ann", candidates=[1])
    assert by_grpc.rerank_skipped == by_http["rerank_skipped"] == ""
    assert running.engine.requests[-1].rerank is None


async def test_candidates_without_a_score_are_named_by_both(running: Running) -> None:
    by_grpc, by_http = await rank_both(running, user_id="ann", candidates=[1, FAILING_ITEM, 2, FAILING_ITEM])
    assert list(by_grpc.failed) == by_http["failed"] == [1, 3]


@pytest.mark.parametrize("num_candidates", [1, 63, 77, 2_000, 16_384])
async def test_rank_is_equal_by_both(running: Running, num_candidates: int) -> None:
    candidates = np.random.default_rng(num_candidates).integers(-(2**63), 2**63, num_candidates)

    by_grpc, by_http = await rank_both(running, user_id="ann", candidates=candidates.tolist(), top_k=5)

    expected = like_scores(candidates, 0)
    for answer in (by_grpc.scores, by_http["scores"]):
        np.testing.assert_array_equal(np.array(answer, dtype=np.float32), expected)
    for answer in (by_grpc.task_scores, by_http["task_scores"]):
        np.testing.assert_array_equal(np.array(answer, dtype=np.float32), np.concatenate((expected, expected + 2)))
    best = np.argsort(-expected, kind="stable")[:5].tolist()
    assert list(by_grpc.top) == by_http["top"] == best
    assert list(by_grpc.unknown) == by_http["unknown"] == list(range(num_candidates))
    assert list(by_grpc.tasks) == by_http["tasks"] == ["like", "rating"]
    assert by_grpc.model_version == by_http["model_version"] == MODEL.version
    assert by_grpc.history_len == by_http["history_len"] == 0
    assert by_grpc.num_scored == by_http["num_scored"] == num_candidates
    assert by_http["cache"] == {"source": "HOST", "reused_tokens": 0, "encoded_tokens": 0}
    assert by_grpc.cache == ranking_pb2.CacheInfo(source="HOST")
    assert by_http["timings"] == {
        "queue_us": 1,
        "state_us": 2,
        "encode_us": 3,
        "score_us": 4,
        "total_us": 10,
        "rerank_us": 5,
        "merge_us": 6,
        "features_us": 8,
    }
    assert by_grpc.timings == ranking_pb2.Timings(
        queue_us=1, state_us=2, encode_us=3, score_us=4, total_us=10, rerank_us=5, merge_us=6, features_us=8
    )


async def test_members_of_an_ensemble_are_told_by_both(running: Running) -> None:
    by_grpc, by_http = await rank_both(running, user_id="ann", candidates=[1], model=OTHER.name)
    assert by_grpc.partial_merge is by_http["partial_merge"] is True
    first, second = by_grpc.members
    assert first == ranking_pb2.MemberResult(
        model="fake",
        weight=0.7,
        version="v",
        arrived=True,
        cache=ranking_pb2.CacheInfo(source="REDIS", reused_tokens=3, encoded_tokens=4),
        timings=ranking_pb2.Timings(queue_us=6, state_us=5, encode_us=4, score_us=3, total_us=20),
        unknown=[0],
        failed=[0],
        took_us=21,
    )
    late = {"model": "fake", "address": "replica:50051", "weight": 0.1, "error": MEMBERS[1].error, "took_us": 70_000}
    assert second == ParseDict(late, ranking_pb2.MemberResult())
    members = by_http["members"]
    assert isinstance(members, list)
    assert ParseDict(members[0], ranking_pb2.MemberResult()) == first
    assert {name: value for name, value in members[1].items() if name in late} == late
    assert not (await running.stub.Rank(ranking_pb2.RankRequest(user_id="ann", candidates=[1]))).members


async def test_an_ensemble_is_described_by_both(running: Running) -> None:
    by_grpc = await running.stub.GetModel(ranking_pb2.GetModelRequest(model=OTHER.name))
    by_http = reply(await running.http.get("/v1/model", params={"model": OTHER.name}), replies.ModelReply)
    told, tasks = by_http["ensemble"], by_http["task_infos"]
    assert isinstance(told, dict) and isinstance(tasks, list)
    assert ParseDict(told, ranking_pb2.Ensemble()) == by_grpc.ensemble
    assert [ParseDict(task, ranking_pb2.TaskInfo()) for task in tasks] == list(by_grpc.task_infos)
    assert (by_grpc.ensemble.merge, by_grpc.ensemble.budget_ms, by_grpc.ensemble.min_members) == ("probability", 70, 1)
    assert [(m.model, m.address, m.weight, m.version) for m in by_grpc.ensemble.members] == [
        ("fake", "", 0.7, "v"),
        ("fake", "replica:50051", 0.1, ""),
    ]
    assert [(task.name, task.kind, task.weight) for task in by_grpc.task_infos] == [
        ("like", "binary", 1.0),
        ("rating", "regression", 0.05),
    ]
    assert not (await running.stub.GetModel(ranking_pb2.GetModelRequest())).HasField("ensemble")
    assert reply(await running.http.get("/v1/model"), replies.ModelReply)["ensemble"] is None


async def test_every_field_reaches_the_engine(running: Running) -> None:
    await rank_both(
        running,
        user_id="zoë/ß 1",
        candidates=[9, -1, 9],
        top_k=2,
        request_time_ms=1_700_000_000_000,
        recent_events=[EVENT, EVENT | {"actions": 31}],
        context={"gender": 1, "hour": 23},
        features={"names": ["age", "price"], "values": [1, 2, 3, 4, 5, -6.5]},
        model="fake",
        allow_partial=True,
        recompute=True,
        rerank={"method": "mmr", "strength": 0.5, "depth": 7, "tail_weight": 0.25},
    )

    for request in running.engine.requests:
        assert request.user_id == "zoë/ß 1"
        assert request.candidates.tolist() == [9, -1, 9]
        assert request.top_k == 2
        assert request.request_time_ms == 1_700_000_000_000
        assert request.recent_events.tolist() == [(7, 17, 3.5, 1_000_000), (7, 31, 3.5, 1_000_000)]
        assert request.context == {"gender": 1, "hour": 23}
        assert request.dense.names == ("age", "price")
        assert request.dense.values.dtype == np.float32
        assert request.dense.values.tolist() == [1, 2, 3, 4, 5, -6.5]
        assert request.allow_partial and request.recompute
        assert request.rerank == Rerank("mmr", 0.5, 7, 0.25)
    assert len(running.engine.requests) == 2


async def test_no_request_time_is_now(running: Running) -> None:
    before = time.time_ns() // 1_000_000
    await rank_both(running, user_id="ann", candidates=[1])
    after = time.time_ns() // 1_000_000
    assert all(before <= request.request_time_ms <= after for request in running.engine.requests)


async def test_history_is_shared(running: Running) -> None:
    event = ParseDict(EVENT, ranking_pb2.Event())
    appended = await running.stub.AppendEvents(
        ranking_pb2.AppendEventsRequest(user_id="a/b", events=[event, event], expected_len=0)
    )
    assert appended.history_len == 2
    answer = await running.http.post("/v1/users/a%2Fb/events", json={"events": [EVENT], "expected_len": 2})
    told = reply(answer, replies.AppendEventsReply)
    assert told == {
        "history_len": 3,
        "version": told["version"],
        "clamped": [],
        "inserted": [],
        "discarded": [],
        "was_written": False,
        "lost_events": 0,
    }
    assert running.engine.histories["a/b"].tolist() == [(7, 17, 3.5, 1_000_000)] * 3

    by_grpc, by_http = await rank_both(running, user_id="a/b", candidates=[1])
    assert by_grpc.history_len == by_http["history_len"] == 3
    assert by_grpc.history_version.hex() == by_http["history_version"] == told["version"]
    for wrong in (
        await running.http.post("/v1/users/a%2Fb/events", json={"events": [EVENT], "expected_version": "0" * 32}),
        await running.http.post(
            "/v1/users/a%2Fb/events", json={"events": [EVENT], "expected_len": 3, "expected_version": "0" * 32}
        ),
    ):
        assert wrong.status_code == 409
        assert f"the history has 3 events and version {told['version']}" in wrong.text
    assert len(running.engine.histories["a/b"]) == 3

    assert (await running.stub.Prefill(ranking_pb2.PrefillRequest(user_id="a/b"))).encoded_tokens == 3
    prefilled = reply(await running.http.post("/v1/users/a%2Fb/prefill"), rank_replies.CacheReply)
    assert prefilled == {"source": "NONE", "reused_tokens": 0, "encoded_tokens": 3}

    assert reply(await running.http.delete("/v1/users/a%2Fb"), replies.DeleteUserReply) == {}
    await running.stub.DeleteUser(ranking_pb2.DeleteUserRequest(user_id="a/b"))
    assert running.engine.histories == {}


async def test_a_history_is_read_back_page_by_page(running: Running) -> None:
    """By both ways; the pages are of one history, or the caller is told."""
    events = [EVENT | {"item_id": item, "value": item / 8} for item in range(5)]
    told = (await running.http.post("/v1/users/a%2Fb/events", json={"events": events})).json()
    read: list[object] = []
    first, version = 0, None
    while first < 5:
        request = ranking_pb2.GetHistoryRequest(
            user_id="a/b", first=first, limit=2, expected_version=version, with_states=True
        )
        page = await running.stub.GetHistory(request)
        params = {"first": first, "limit": 2, "with_states": True, "expected_version": version and version.hex()}
        answer = await running.http.get("/v1/users/a%2Fb/history", params={k: v for k, v in params.items() if v})
        as_json = reply(answer, replies.HistoryReply)
        assert (page.version.hex(), page.page_version.hex()) == (as_json.pop("version"), as_json.pop("page_version"))
        assert ParseDict(as_json, ranking_pb2.GetHistoryResponse()) == ranking_pb2.GetHistoryResponse(
            events=page.events,
            first=first,
            next_first=page.next_first,
            history_len=5,
            base=0,
            states=[
                ranking_pb2.KeptState(
                    model="fake", tier="HOST", num_events=5, num_tokens=10, num_bytes=2**33, fits=True
                )
            ],
        )
        read += as_json["events"]  # type: ignore[arg-type]
        first, version = page.next_first, page.version
        last_version = page.page_version
    assert read == events
    assert version is not None and version.hex() == last_version.hex() == told["version"]

    await running.http.post("/v1/users/a%2Fb/events", json={"events": [EVENT]})
    changed = await running.http.get("/v1/users/a%2Fb/history", params={"expected_version": version.hex()})
    assert changed.status_code == 409
    assert "the history has 6 events and version" in changed.json()["error"]["message"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.GetHistory(ranking_pb2.GetHistoryRequest(user_id="a/b", expected_version=version))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert ("mfalcon-history-len", "6") in tuple(refused.value.trailing_metadata() or ())


async def test_who_is_not_known_has_an_empty_history(running: Running) -> None:
    page = await running.stub.GetHistory(ranking_pb2.GetHistoryRequest(user_id="nobody", first=7))
    assert (len(page.events), page.first, page.next_first, page.history_len) == (0, 0, 0, 0)
    assert page.version == page.page_version == no_history("nobody").version


@pytest.mark.parametrize("user_id", ["x" * 256, "a/events", "%2F", "a b?c#d", "日本", "�", "..", "a//b"])
async def test_user_ids_that_are_hard_on_paths(running: Running, user_id: str) -> None:
    path = "".join(f"%{byte:02X}" for byte in user_id.encode())
    reply(await running.http.post(f"/v1/users/{path}/events", json={"events": [EVENT]}), replies.AppendEventsReply)
    assert list(running.engine.histories) == [user_id]
    reply(await running.http.delete(f"/v1/users/{path}"), replies.DeleteUserReply)
    assert running.engine.histories == {}


async def test_model(running: Running) -> None:
    by_grpc = await running.stub.GetModel(ranking_pb2.GetModelRequest())
    by_http = reply(await running.http.get("/v1/model"), replies.ModelReply)
    assert by_grpc == ParseDict(by_http, ranking_pb2.GetModelResponse())
    assert by_http["name"] == "fake"
    assert by_http["max_candidates"] == 16_384
    assert by_http["context_features"] == [
        {"name": "gender", "num_values": 2, "values": ["F", "M"], "derived": False},
        {"name": "hour", "num_values": 24, "values": [], "derived": True},
    ]


async def test_probes_and_health(running: Running) -> None:
    assert (await running.http.get("/livez")).status_code == 200
    assert (await running.http.get("/readyz")).status_code == 200
    running.engine.ready = False
    assert (await running.http.get("/readyz")).status_code == 503
    for service in ("", "mfalcon.v1.Ranking"):
        assert await health_of(running.channel, service) == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await health_of(running.channel, "mfalcon.v1.Other")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection(running: Running) -> None:
    info: grpc.aio.StreamStreamMultiCallable[
        reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse
    ] = running.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    questions = (
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="mfalcon.v1.Ranking"),
    )
    services, file = [answer async for answer in info(iter(questions))]
    assert {service.name for service in services.list_services_response.service} == {
        "mfalcon.v1.Ranking",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert file.file_descriptor_response.file_descriptor_proto[0] == ranking_pb2.DESCRIPTOR.serialized_pb


async def test_no_answer_waits_for_the_clients_ack(running: Running) -> None:
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        await running.http.get("/v1/model")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.03, "40 ms is Nagle's algorithm meeting a delayed ACK"


async def test_openapi_is_complete(running: Running) -> None:
    schema = (await running.http.get("/openapi.json")).json()
    calls = {(verb, path) for path, verbs in schema["paths"].items() for verb in verbs}
    assert calls == {
        ("post", "/v1/rank"),
        ("post", "/v1/rank/batch"),
        ("post", "/v1/rank/stream"),
        ("get", "/v2"),
        ("get", "/v2/health/live"),
        ("get", "/v2/health/ready"),
        *(
            (verb, f"/v2/models/{{model_name}}{version}{what}")
            for verb, what in (("get", ""), ("get", "/ready"), ("post", "/infer"))
            for version in ("", "/versions/{version}")
        ),
        ("post", "/v1/users/{user_id}/events"),
        ("post", "/v1/events"),
        ("post", "/v1/interests"),
        ("get", "/v1/users/{user_id}/history"),
        ("post", "/v1/users/{user_id}/prefill"),
        ("delete", "/v1/users/{user_id}"),
        ("get", "/v1/model"),
        ("get", "/v1/models"),
        ("get", "/livez"),
        ("get", "/readyz"),
        ("get", "/metrics"),
    }
    rank = schema["paths"]["/v1/rank"]["post"]
    assert rank["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/RankBody")
    assert rank["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/RankReply")
    for status in ("404", "409", "413", "422", "429", "500", "503", "504"):
        assert rank["responses"][status]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorReply")
    for model in (bodies.RankBody, append_bodies.AppendEventsBody, rank_replies.RankReply):
        (example,) = schema["components"]["schemas"][model.__name__]["examples"]
        model.model_validate(example)
    assert (await running.http.get("/docs")).status_code == 200


async def test_metrics_are_what_prometheus_reads(running: Running) -> None:
    answer = await running.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")


async def test_models_by_name(running: Running) -> None:
    """Listed, described, and asked by name; what is not served is refused with the names that are."""
    listed = await running.stub.ListModels(ranking_pb2.ListModelsRequest())
    by_http = reply(await running.http.get("/v1/models"), replies.ModelsReply)
    assert isinstance(by_http["models"], list)
    assert [model.name for model in listed.models] == [model["name"] for model in by_http["models"]] == NAMES
    assert (await running.stub.GetModel(ranking_pb2.GetModelRequest(model="other"))).version == OTHER.version
    assert (await running.http.get("/v1/model", params={"model": "other"})).json()["version"] == OTHER.version
    for answer in await rank_both(running, user_id="ann", candidates=[1], model="other"):
        version = answer["model_version"] if isinstance(answer, dict) else answer.model_version
        assert version == OTHER.version
    await running.stub.Prefill(ranking_pb2.PrefillRequest(user_id="ann", model="other"))
    await running.http.post("/v1/users/ann/prefill", params={"model": "other"})
    await running.http.post("/v1/users/ann/prefill")
    assert running.engine.asked_of == ["other"] * 4 + [MODEL.name]
    refused = await running.http.post("/v1/users/ann/prefill", params={"model": "din"})
    assert refused.status_code == 404
    assert refused.json()["error"]["message"] == f"model: got 'din', must be {MODEL.name!r}, 'other' or empty"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await running.stub.GetModel(ranking_pb2.GetModelRequest(model="din"))
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_an_ensemble_of_which_nobody_was_reached_refuses_nobody_for_what_he_asks(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = replace(OTHER, tasks=(), actions=(), task_infos=(), context_features=(), dense_features=())
    monkeypatch.setattr(type(running.engine), "models", property(lambda _: (MODEL, unknown)))
    asked = ranking_pb2.RankRequest(user_id="ann", candidates=[1], model=OTHER.name, context={"hour": 3})
    with pytest.raises(grpc.aio.AioRpcError, match="no member of other has been reached yet") as refused:
        await running.stub.Rank(asked)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    asked_by_http = {"user_id": "ann", "candidates": [1], "model": OTHER.name, "context": {"hour": 3}}
    answer = await running.http.post("/v1/rank", json=asked_by_http)
    assert answer.status_code == 503 and answer.headers["x-rank-retry"] == "elsewhere"
