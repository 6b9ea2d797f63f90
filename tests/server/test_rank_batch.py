"""Several ranks in one call, each by itself, over both transports and by both clients."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import grpc.aio
import numpy as np
import pytest

from mfalcon.errors import DeadlineExceeded, NotReady, ShuttingDown
from mfalcon.types import ModelRank, RankRequest, RankResult, no_events
from mfalcon_client import AsyncClient, InvalidArgument, NotFound, Rank, Ranking
from proto import ranking_pb2 as pb
from server.batches import RANKED_AT_ONCE, rank_each
from server.handler import Handler
from server.limits import Limits
from tests.server.fake_engine import OTHER, FakeEngine
from tests.server.harness import Running, serving

GOOD = [Rank("ann", [5, 1, 3], top_k=2), Rank("bob", [7], model=OTHER.name), Rank("ann", [2, 4], 1, returns="top")]
BAD = [
    Rank("", [1]),
    Rank("cay", []),
    Rank("dan", [1], model="nowhere"),
    Rank("eve", [1], context={"mood": 1}),
]
WAITS = ModelRank(RankRequest("ann", np.arange(2), 0, 0, no_events(), {}), "")


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with serving(max_ranks_per_batch=8, max_candidates=1_000) as served:
        yield served


async def test_each_has_the_answer_of_a_call_of_its_own(running: Running) -> None:
    async with AsyncClient(running.addresses.grpc) as client:
        outcomes = await client.rank_batch([*GOOD[:1], *BAD, *GOOD[1:]])
        singly = [await client.rank(r.user_id, r.candidates, top_k=r.top_k, model=r.model) for r in GOOD]
    told = [outcome for outcome in outcomes if isinstance(outcome, Ranking)]
    assert [len(each.scores) for each in told] == [3, 1, 1]
    for one, other in zip(told[:2], singly[:2], strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
        assert (one.top.tolist(), one.model_version) == (other.top.tolist(), other.model_version)
    failed = outcomes[1:5]
    assert [type(outcome) for outcome in failed] == [InvalidArgument, InvalidArgument, NotFound, InvalidArgument]
    assert "context: got 'mood'" in str(failed[3])

    bodies = [
        {"user_id": r.user_id, "candidates": list(r.candidates), "model": r.model, "context": dict(r.context)}
        for r in (*GOOD[:1], *BAD)
    ]
    more = [7, {"user_id": "ann", "candidates": [1, None]}, {"user_id": "ann", "candidates": ["a", "b"], "surprise": 1}]
    answer = (await running.http.post("/v1/rank/batch", json={"requests": [*bodies, *more]})).json()["outcomes"]
    assert answer[0]["ranked"]["scores"] == pytest.approx(singly[0].scores.tolist())
    codes = [outcome["failure"]["code"] for outcome in answer[1:]]
    assert codes == ["INVALID_ARGUMENT"] * 2 + ["NOT_FOUND"] + ["INVALID_ARGUMENT"] * 4
    assert [outcome["failure"]["field"] for outcome in answer[5:]] == ["body", "candidates[1]", "surprise"]
    counted = (await running.http.get("/metrics")).text
    for transport, code, num in (
        ("grpc", "OK", 3),
        ("grpc", "INVALID_ARGUMENT", 3),
        ("grpc", "NOT_FOUND", 1),
        ("http", "OK", 1),
        ("http", "INVALID_ARGUMENT", 6),
    ):
        labels = f'{{code="{code}",transport="{transport}",verb="rank_batch"}}'
        assert f"mfalcon_batch_parts_total{labels} {num}.0" in counted


async def test_a_batch_is_bounded(running: Running) -> None:
    async with AsyncClient(running.addresses.grpc) as client:
        for ranks, says in (
            ([], "requests: got 0, must be 1 to 8 ranks"),
            ([Rank("ann", [1])] * 9, "requests: got more than 8, must be 1 to 8 ranks"),
            ([Rank("ann", np.arange(1_000))] * 5, "candidates: got more than 4000, must be 1 to 4000 candidates"),
        ):
            with pytest.raises(InvalidArgument, match=says):
                await client.rank_batch(ranks)
        for bodies, field in (
            ([], "requests"),
            ([{}] * 9, "requests"),
            ([{"candidates": [1] * 1_000}] * 5, "candidates"),
        ):
            answer = await running.http.post("/v1/rank/batch", json={"requests": bodies})
            assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert not running.engine.requests
    hostile = pb.RankBatchRequest(requests=[pb.RankRequest()] * 8).SerializeToString() + b"\x0a\x00" * 100_000
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = running.channel.unary_unary("/mfalcon.v1.Ranking/RankBatch")
    assert (await call(hostile).details()) == "requests: got more than 8, must be 1 to 8 ranks"


async def test_one_that_is_late_holds_back_no_other_answer(running: Running) -> None:
    running.engine.gate.clear()
    ranks = asyncio.ensure_future(
        running.stub.RankBatch(
            pb.RankBatchRequest(requests=[pb.RankRequest(user_id="ann", candidates=[1])] * 2), timeout=60
        )
    )
    running.engine.gate.set()
    answer = await ranks
    assert [outcome.WhichOneof("outcome") for outcome in answer.outcomes] == ["ranked", "ranked"]


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that nobody tells."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_large_batch_leaves_room_in_the_queue() -> None:
    """Hundreds of promises to one caller would have the schedule refuse all others."""
    async with serving() as running:
        running.engine.gate.clear()
        many = [pb.RankRequest(user_id=f"user {number}", candidates=[1]) for number in range(RANKED_AT_ONCE + 20)]
        ranks = asyncio.ensure_future(running.stub.RankBatch(pb.RankBatchRequest(requests=many), timeout=60))
        await until(lambda: running.engine.num_entered == RANKED_AT_ONCE)
        one = asyncio.ensure_future(running.stub.Rank(pb.RankRequest(user_id="ann", candidates=[1]), timeout=60))
        await until(lambda: running.engine.num_entered == RANKED_AT_ONCE + 1)
        running.engine.gate.set()
        assert len((await one).scores) == 1
        answer = await ranks
    assert [outcome.WhichOneof("outcome") for outcome in answer.outcomes] == ["ranked"] * len(many)


async def test_what_waits_past_the_deadline_is_late() -> None:
    async def rank(each: ModelRank, left: float) -> RankResult:
        raise AssertionError(f"{each.model} was ranked with {left} s left")

    (outcome,) = await rank_each([WAITS], rank, time.monotonic() - 1)
    assert isinstance(outcome, DeadlineExceeded)


def handler_of(engine: FakeEngine | None) -> Handler:
    """A handler, with an engine if given."""
    handler = Handler(Limits(99, 9, 9, 9, 9, 256, request_timeout_ms=60_000))
    if engine is not None:
        handler.serve(engine)
    return handler


async def test_a_batch_goes_on_while_the_server_drains_and_another_is_refused_whole() -> None:
    engine = FakeEngine()
    handler = handler_of(engine)
    engine.gate.clear()
    batch = asyncio.ensure_future(handler.rank_batch([WAITS] * (RANKED_AT_ONCE + 8), None))
    await until(lambda: engine.num_entered == RANKED_AT_ONCE)
    handler.drain()
    idle = asyncio.ensure_future(handler.wait_idle())
    with pytest.raises(ShuttingDown):
        await handler.rank_batch([WAITS], None)
    engine.gate.set()
    done, _ = await asyncio.wait({batch, idle}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
    assert batch in done, "the server would have ended before its last answer"
    assert all(isinstance(outcome, RankResult) for outcome in batch.result())
    await asyncio.wait_for(idle, 60)


async def test_each_rank_of_a_batch_that_is_cut_off_says_so() -> None:
    engine = FakeEngine()
    handler = handler_of(engine)
    engine.gate.clear()
    batch = asyncio.ensure_future(handler.rank_batch([WAITS] * (RANKED_AT_ONCE + 8), None))
    await until(lambda: engine.num_entered == RANKED_AT_ONCE)
    handler.drain()
    handler.abort()
    assert {type(outcome) for outcome in await asyncio.wait_for(batch, 60)} == {ShuttingDown}
    await asyncio.wait_for(handler.wait_idle(), 60)


async def test_a_batch_before_there_is_an_engine_is_refused_whole() -> None:
    with pytest.raises(NotReady):
        await handler_of(None).rank_batch([WAITS], None)
