"""Item ids that are text, over both transports, on a server with a real engine whose checkpoints know texts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc.aio
import numpy as np
import pytest

from mfalcon.engine.compose import EngineConfig, compose_all
from mfalcon.engine.engine import Engine
from mfalcon.engine.ranker import RankerOptions
from mfalcon.item_ids import item_id
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.texts import Texts
from mfalcon_client import AsyncClient, Event, Retrieve
from proto import ranking_pb2 as pb
from tests.server.harness import Served, serving_engine
from tests.small import NOW_MS, small_checkpoint, small_items

NUM_ITEMS = len(small_items().item_id)
NAMES = sorted([*(f"sku:é-{number}" for number in range(NUM_ITEMS - 1)), "7"], key=item_id)
ASKED = [NAMES[3], NAMES[0], "nobody knows", NAMES[3], "7", "007"]


def named(architecture: str) -> Checkpoint:
    checkpoint = small_checkpoint(architecture)
    ids = np.array([item_id(name) for name in NAMES])
    return replace(checkpoint, items=replace(checkpoint.items, item_id=ids, texts=Texts.of(NAMES)))


@asynccontextmanager
async def serving() -> AsyncIterator[Served[Engine]]:
    options = RankerOptions(microbatch=16)
    models = [(named("dfgr"), replace(options, name="ranker")), (named("lum"), replace(options, name="lum"))]
    engine = compose_all(models, EngineConfig(threads=1, ranker=options))
    await asyncio.to_thread(engine.wait_ready, 60)
    async with serving_engine(engine) as served:
        yield served


async def test_texts_and_their_numbers_are_the_same_items_everywhere() -> None:
    async with serving() as served, AsyncClient(served.addresses.grpc) as client:
        assert (await client.get_model()).item_ids == "text"
        assert (await served.http.get("/v1/model")).json()["item_ids"] == "text"
        ids: list[int | str] = [*ASKED, -5]
        events = [Event(name, time_ms, actions=1) for time_ms, name in enumerate(ids, NOW_MS - 100)]
        told = await client.append_events("ann", events)
        assert told.history_len == 7
        over_http = [{"item_id": event.item_id, "actions": 1, "time_ms": event.time_ms} for event in events]
        await served.http.post("/v1/users/bob/events", json={"events": over_http})
        raw = [pb.Event(text_id=str(e.item_id), item_id=1, actions=1, time_ms=e.time_ms) for e in events]
        append = pb.AppendEventsRequest(user_id="cay", events=raw)
        batch = await served.stub.AppendBatch(pb.AppendBatchRequest(appends=[append]))
        assert batch.outcomes[0].appended.history_len == 7

        numbers = [item_id(name) for name in ASKED]
        for user in ("ann", "bob", "cay"):
            events_of = (await client.get_history(user)).events
            assert events_of["item_id"].tolist() == [*numbers, -5]
        scores = (await client.rank("ann", numbers, request_time_ms=NOW_MS)).scores
        assert (await client.rank("ann", ASKED, request_time_ms=NOW_MS)).scores.tolist() == scores.tolist()
        assert (await client.rank("ann", np.array(ASKED), request_time_ms=NOW_MS)).scores.tolist() == scores.tolist()
        by_text = await served.stub.Rank(pb.RankRequest(user_id="bob", candidate_ids=ASKED, request_time_ms=NOW_MS))
        assert list(by_text.scores) == scores.tolist() and list(by_text.unknown) == [2, 5]
        body = {"user_id": "cay", "candidates": [*ASKED[:4], 7, "007"], "request_time_ms": NOW_MS}
        assert (await served.http.post("/v1/rank", json=body)).json()["unknown"] == [2, 5]

        page = await client.get_history("ann")
        assert page.texts == (NAMES[3], NAMES[0], "", NAMES[3], "7", "", "")
        read = (await served.http.get("/v1/users/ann/history")).json()["events"]
        assert [event["item_id"] for event in read] == [
            NAMES[3],
            NAMES[0],
            str(numbers[2]),
            NAMES[3],
            "7",
            str(numbers[5]),
            "-5",
        ]
        # What was read back and is appended again is the same history, also where nobody knows the text.
        await served.http.post("/v1/users/dan/events", json={"events": read})
        np.testing.assert_array_equal((await client.get_history("dan")).events, page.events)


async def test_what_is_proposed_is_told_by_text() -> None:
    async with serving() as served, AsyncClient(served.addresses.grpc) as client:
        found = await client.interests("ann", top_items=3)
        for each in found.nearest:
            assert [item_id(text) for text in each.texts] == each.item_ids.tolist()
            assert set(each.texts) <= set(NAMES)
        told = (await served.http.post("/v1/interests", json={"user_id": "ann", "top_items": 3})).json()
        assert [each["item_ids"] for each in told["nearest"]] == [list(each.texts) for each in found.nearest]
        condition = found.conditions[0]
        ranking = await client.rank("ann", [], retrieve=Retrieve([condition], 5))
        assert [item_id(text) for text in ranking.candidate_texts] == ranking.candidates.tolist()
        body = {"user_id": "ann", "retrieve": {"conditions": [condition], "k": 5}}
        assert (await served.http.post("/v1/rank", json=body)).json()["candidates"] == list(ranking.candidate_texts)
        listed = await served.http.post("/console/api/items", json={"item_ids": [NAMES[1], 12]})
        assert [name for name, _ in listed.json()["items"]] == [NAMES[1], "12"]


@pytest.mark.parametrize("text", ["", "x" * 257, "x" * 2**20, "a\0b"])
async def test_what_is_no_id_is_refused_and_touches_nobody(text: str) -> None:
    async with serving() as served:
        request = pb.RankRequest(user_id="ann", candidate_ids=["a", text])
        failed = served.stub.Rank(request)
        fine = served.stub.Rank(pb.RankRequest(user_id="bob", candidate_ids=["a"]))
        assert (await failed.code()).name == "INVALID_ARGUMENT"
        assert (await failed.details()).startswith("candidate_ids[1]: got ")
        assert (await fine).num_scored == 1
        answer = await served.http.post("/v1/rank", json={"user_id": "ann", "candidates": ["a", text]})
        assert answer.status_code == 422 and answer.json()["error"]["field"] == "candidates[1]"


async def test_as_many_texts_as_may_be() -> None:
    async with serving() as served:
        names = [f"urn:uuid:{number:032x}" for number in range(16_384)]
        answer = await served.stub.Rank(pb.RankRequest(user_id="ann", candidate_ids=names))
        assert len(answer.scores) == 16_384 and len(set(answer.scores)) == 1
        more = served.stub.Rank(pb.RankRequest(user_id="ann", candidate_ids=[*names, "one more"]))
        assert "candidate_ids: got more than 16384, must be 1 to 16384 candidates" in await more.details()
        both = served.stub.Rank(pb.RankRequest(user_id="ann", candidates=[1], candidate_ids=["a"]))
        assert await both.details() == "candidate_ids: got 1, must be absent where candidates are given"
        rank: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = served.channel.unary_unary("/mfalcon.v1.Ranking/Rank")
        assert (await rank(b"\x0a\x03ann\xb2\x01\x02\xff\xfe").code()).name == "INVALID_ARGUMENT"
