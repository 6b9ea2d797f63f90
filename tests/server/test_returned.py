"""What of an answer is returned, over both transports and to the client."""

from collections.abc import AsyncIterator

import numpy as np
import pytest

from mfalcon_client import AsyncClient, InvalidArgument
from proto import ranking_pb2 as pb
from tests.server.fake_engine import FAILING_ITEM, OTHER
from tests.server.harness import Running, serving

CANDIDATES = [5, 9_999, 1, FAILING_ITEM, 3, 10_000]


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with serving() as served:
        yield served


@pytest.mark.parametrize("model", ["", OTHER.name])
async def test_the_top_alone_is_the_whole_answer_of_these(running: Running, model: str) -> None:
    async with AsyncClient(running.addresses.grpc) as client:
        whole = await client.rank("ann", CANDIDATES, top_k=3, model=model)
        best = await client.rank("ann", CANDIDATES, top_k=3, model=model, returns="top")
        scores = await client.rank("ann", CANDIDATES, top_k=3, model=model, returns="scores")
    top = whole.top
    assert best.top.tolist() == top.tolist() and best.num_scored == whole.num_scored == 6
    np.testing.assert_array_equal(best.scores, whole.scores[top])
    np.testing.assert_array_equal(best.task_scores, whole.task_scores[:, top])
    for some, of in ((best.unknown, whole.unknown), (best.failed, whole.failed)):
        assert some.tolist() == [at for at in of.tolist() if at in top]
    for some_member, member in zip(best.members, whole.members, strict=True):
        assert some_member.unknown.tolist() == [at for at in member.unknown.tolist() if at in top]
    np.testing.assert_array_equal(scores.scores, whole.scores)
    assert not len(scores.top)
    body = {"user_id": "ann", "candidates": CANDIDATES, "top_k": 3, "model": model, "return": "top"}
    told = (await running.http.post("/v1/rank", json=body)).json()
    assert told["top"] == top.tolist() and told["num_scored"] == 6
    assert np.array_equal(np.float32(told["scores"]), best.scores)
    assert np.array_equal(np.float32(told["task_scores"]), best.task_scores.ravel())
    assert (told["unknown"], told["failed"]) == (best.unknown.tolist(), best.failed.tolist())


async def test_wishes_that_cannot_be(running: Running) -> None:
    async with AsyncClient(running.addresses.grpc) as client:
        with pytest.raises(InvalidArgument, match="top_k: got 0, must be at least 1 where the top alone is returned"):
            await client.rank("ann", [1], returns="top")
        with pytest.raises(InvalidArgument, match="return: got 'some', must be both, scores, top or empty"):
            await client.rank("ann", [1], returns="some")  # type: ignore[arg-type]
    for field, value in (("return", "some"), ("return", 1), ("returns", "top"), ("exclude_seen", "yes")):
        answer = await running.http.post("/v1/rank", json={"user_id": "ann", "candidates": [1], field: value})
        assert answer.status_code == 422 and answer.json()["error"]["field"] == field
    assert not running.engine.requests


async def test_wishes_reach_the_engine(running: Running) -> None:
    asked = pb.RankRequest(user_id="ann", candidates=[1], exclude_seen=True)
    await running.stub.Rank(asked)
    await running.http.post("/v1/rank", json={"user_id": "ann", "candidates": [1], "exclude_unknown": True})
    assert [(r.exclude_unknown, r.exclude_seen) for r in running.engine.requests] == [(False, True), (True, False)]


async def test_actions_go_by_their_names_over_http(running: Running) -> None:
    event = {"item_id": 1, "time_ms": 1_700_000_000_000}
    events: list[dict[str, object]] = [
        {**event, "actions": names} for names in (["rating_1", "rating_4", "rating_1"], [], 3)
    ]
    assert (await running.http.post("/v1/users/ann/events", json={"events": events})).status_code == 200
    assert running.engine.histories["ann"]["actions"].tolist() == [9, 0, 3]
    for names in (["rating_9"], [1], [None], "rating_1", ["rating_1", "x" * 1_000]):
        body = {"user_id": "ann", "candidates": [1], "recent_events": [{**event, "actions": names}]}
        answer = (await running.http.post("/v1/rank", json=body)).json()["error"]
        assert answer["field"] == "recent_events[0].actions" and len(answer["message"]) < 700
        wrong = names if isinstance(names, str) else names[-1]
        assert (str(wrong)[:100]) in answer["message"]
    assert not running.engine.requests
