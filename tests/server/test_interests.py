"""Interests over both transports, and what of a rank or a prefill belongs to them: fields, limits, refusals."""

import dataclasses
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest

from mfalcon.types import ModelInfo, Retrieve
from mfalcon_client import AsyncClient
from mfalcon_client import Retrieve as Wish
from proto import ranking_pb2 as pb
from server.limits import MAX_CONDITIONS, MAX_TOP_ITEMS
from tests.server.fake_engine import MODEL, OTHER, FakeEngine
from tests.server.harness import Running, serving_engine

LUM = dataclasses.replace(
    MODEL,
    name="lum",
    architecture="lum",
    context_features=(),
    dense_features=(),
    counters=(),
    conditions=("like", "like:Comedy", "not_like"),
)
TIME_MS = 1_000_000_000_001


class WithConditions(FakeEngine):
    @property
    def models(self) -> tuple[ModelInfo, ...]:
        return MODEL, OTHER, LUM


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    engine: FakeEngine = WithConditions()
    async with serving_engine(engine) as served:
        yield served


async def refused(call: "grpc.aio.UnaryUnaryCall[object, object]") -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return caught.value.details() or ""


async def test_both_transports_tell_the_same(running: Running) -> None:
    await running.stub.AppendEvents(
        pb.AppendEventsRequest(user_id="ann", events=[pb.Event(item_id=1, time_ms=TIME_MS)])
    )
    event = {"item_id": 5, "actions": 1, "value": 2.0, "time_ms": TIME_MS}
    answer = await running.stub.Interests(
        pb.InterestsRequest(
            user_id="ann",
            conditions=["not_like", "like", "like"],
            recent_events=[pb.Event(item_id=5, actions=1, value=2.0, time_ms=TIME_MS)],
            request_time_ms=TIME_MS,
            top_items=2,
        )
    )
    assert (list(answer.conditions), answer.dim, answer.history_len) == (["not_like", "like", "like"], 4, 1)
    assert list(answer.vectors) == [float(value + 1) for value in range(12)]
    assert [list(each.item_ids) for each in answer.nearest] == [[1, 2]] * 3
    assert answer.stale and not answer.computed_ahead and answer.model_version == "lum-1"
    assert answer.timings.total_us == 10 and answer.cache.source == pb.CacheInfo.HOST
    body = {
        "user_id": "ann",
        "conditions": ["not_like", "like", "like"],
        "recent_events": [event],
        "request_time_ms": TIME_MS,
        "top_items": 2,
    }
    told = (await running.http.post("/v1/interests", json=body)).json()
    assert told["vectors"] == list(answer.vectors) and told["dim"] == 4
    assert told["nearest"] == [{"item_ids": [1, 2], "scores": [0.0, -1.0]}] * 3
    assert told["history_version"] == answer.history_version.hex() and told["stale"]
    assert running.engine.asked_of[-2:] == ["lum", "lum"]  # who named no model means the one that has conditions


async def test_the_client_asks_for_all_of_them(running: Running) -> None:
    async with AsyncClient(running.addresses.grpc) as client:
        found = await client.interests("ann")
        assert found.conditions == LUM.conditions == (await client.get_model("lum")).conditions
        assert found.vectors.shape == (3, 4) and found.nearest == () and found.computed_ahead
        some = await client.interests("ann", ["like"], top_items=3, model="lum")
        assert some.nearest[0].item_ids.tolist() == [1, 2, 3] and some.nearest[0].scores.dtype == np.float32
        await client.prefill("ann", conditions=["like", "not_like"], request_time_ms=TIME_MS)
        assert running.engine.prefilled == [(("like", "not_like"), TIME_MS)]
    models = (await running.http.get("/v1/models")).json()["models"]
    assert [model["conditions"] for model in models] == [[], [], list(LUM.conditions)]
    answer = await running.http.post(
        "/v1/users/ann/prefill", params={"condition": ["like", "like:Comedy"], "request_time_ms": TIME_MS}
    )
    assert answer.status_code == 200 and running.engine.prefilled[-1] == (("like", "like:Comedy"), TIME_MS)


async def test_a_rank_of_what_is_proposed(running: Running) -> None:
    retrieve = pb.Retrieve(conditions=["like", "not_like"], k=7)
    await refused_or_done(running, pb.RankRequest(user_id="ann", retrieve=retrieve))
    body = {"user_id": "ann", "retrieve": {"conditions": ["like"], "k": 7, "model": "lum"}}
    await running.http.post("/v1/rank", json=body)
    wishes = [request.retrieve for request in running.engine.requests]
    assert wishes == [Retrieve("lum", ("like", "not_like"), 7), Retrieve("lum", ("like",), 7)]
    assert all(not len(request.candidates) for request in running.engine.requests)
    assert Wish(["like"], 3).model == ""


async def refused_or_done(running: Running, request: pb.RankRequest) -> None:
    """The fake engine scores the candidates that it is given: none."""
    answer = await running.stub.Rank(request)
    assert answer.num_scored == 0


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (pb.InterestsRequest(user_id="ann", model="fake"), "has conditions"),
        (pb.InterestsRequest(user_id="ann", model="other"), "has conditions"),
        (pb.InterestsRequest(user_id="ann", conditions=["like", "likes"]), "conditions[1]: got 'likes'"),
        (pb.InterestsRequest(user_id="ann", conditions=["like"] * (MAX_CONDITIONS + 1)), "1024 conditions"),
        (pb.InterestsRequest(user_id="ann", top_items=MAX_TOP_ITEMS + 1), "top_items"),
        (pb.InterestsRequest(user_id="ann", conditions=["like"] * MAX_CONDITIONS, top_items=65), "0 to 64"),
        (pb.InterestsRequest(user_id=""), "user_id"),
        (pb.InterestsRequest(user_id="ann", request_time_ms=-1), "request_time_ms"),
        (pb.InterestsRequest(user_id="ann", recent_events=[pb.Event(item_id=1, time_ms=0)]), "recent_events[0]"),
        (pb.InterestsRequest(user_id="ann", recent_events=[pb.Event(time_ms=TIME_MS, value=float("nan"))]), "finite"),
    ],
)
async def test_what_is_wrong_with_interests_is_told(running: Running, request_: pb.InterestsRequest, says: str) -> None:
    assert says in await refused(running.stub.Interests(request_))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "lum", "candidates": [1]}, "ranks items"),
        ({"candidates": [1], "retrieve": pb.Retrieve(conditions=["like"], k=3)}, "none with retrieve"),
        ({"retrieve": pb.Retrieve(k=3)}, "retrieve.conditions"),
        ({"retrieve": pb.Retrieve(conditions=["liked"], k=3)}, "retrieve.conditions[0]"),
        ({"retrieve": pb.Retrieve(conditions=["like"])}, "retrieve.k"),
        ({"retrieve": pb.Retrieve(conditions=["like"], k=MAX_TOP_ITEMS + 1)}, "retrieve.k"),
        ({"retrieve": pb.Retrieve(conditions=["like"] * 2_000, k=3)}, "retrieve.conditions"),
        ({"retrieve": pb.Retrieve(conditions=["like"], k=3, model="fake")}, "has conditions"),
        (
            {"retrieve": pb.Retrieve(conditions=["like"], k=3), "features": pb.DenseFeatures(names=["price"])},
            "absent with retrieve",
        ),
        ({}, "candidates"),
    ],
)
async def test_what_is_wrong_with_a_rank_is_told(running: Running, changes: dict[str, object], says: str) -> None:
    request = pb.RankRequest(user_id="ann", **changes)  # type: ignore[arg-type]
    assert says in await refused(running.stub.Rank(request))


async def test_over_http_too(running: Running) -> None:
    async def told(path: str, body: object) -> tuple[int, str]:
        answer: httpx.Response = await running.http.post(path, json=body)
        return answer.status_code, answer.json()["error"]["message"]

    for body, says in (
        ({"user_id": "ann", "conditions": ["liked"]}, "conditions[0]"),
        ({"user_id": "ann", "conditions": ["like"] * (MAX_CONDITIONS + 1)}, "conditions"),
        ({"user_id": "ann", "conditions": [7]}, "conditions"),
        ({"user_id": "ann", "condition": ["like"]}, "condition"),
        ({"user_id": "ann", "top_items": -1}, "top_items"),
        ({}, "user_id"),
    ):
        status, text = await told("/v1/interests", body)
        assert status == 422 and says in text, text
    status, text = await told("/v1/rank", {"user_id": "ann", "retrieve": {"conditions": ["like"], "k": 0}})
    assert status == 422 and "retrieve.k" in text
    status, text = await told("/v1/users/ann/prefill?condition=liked", None)
    assert status == 422 and "conditions[0]" in text
    everything = b"[" * 4_000_000
    answer = await running.http.post("/v1/interests", content=everything, headers={"content-type": "application/json"})
    assert answer.status_code in (413, 422)
