"""A body costs what the limits allow, whatever its sender wrote; the first thing that is wrong is the answer."""

import asyncio
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import orjson
import pytest
from fastapi import Request

from mfalcon.errors import InvalidInput
from mfalcon.item_ids import item_ids
from server.http.append_bodies import AppendEventsBody
from server.http.bodies import RankBody
from server.http.fields import Reading, parse
from server.http.reading import BodyReader
from server.limits import Limits
from tests.server.harness import Running

JSON = {"content-type": "application/json"}
LIMITS = Limits(
    max_candidates=16_384,
    max_events_per_append=10_000,
    max_appends_per_batch=1_000,
    max_recent_events=1_024,
    max_events_per_page=1_000,
    max_user_id_bytes=256,
    request_timeout_ms=10_000,
)
MIB = 2**20

UNKNOWN_FIELDS = b'"user_id":"ann","candidates":[1],' + b",".join(b'"f%d":1' % number for number in range(300_000))
LARGE: dict[str, tuple[str, bytes, str]] = {
    "300,000 unknown fields": ("/v1/rank", b"{%s}" % UNKNOWN_FIELDS, "body: got 600005, must be at most"),
    "2 million candidates": (
        "/v1/rank",
        b'{"user_id":"ann","candidates":[%s1]}' % (b"1," * 2_000_000),
        "body: got 2000005, must be at most",
    ),
    "a million empty events": (
        "/v1/users/ann/events",
        b'{"events":[%s{}]}' % (b"{}," * 1_000_000),
        "body: got 2000004, must be at most",
    ),
    "a million lists": ("/v1/rank", b"[%s[]]" % (b"[]," * 1_000_000), "body: got 2000002, must be at most"),
    "an event of 50,000 fields": (
        "/v1/users/ann/events",
        b'{"events":[{"item_id":1,"time_ms":1,%s}]}' % b",".join(b'"f%d":1' % number for number in range(50_000)),
        "events[0].f0: got 1, must be absent: there is no such field",
    ),
    "a context of 10,000 entries": (
        "/v1/rank",
        b'{"user_id":"ann","candidates":[1],"context":{%s}}' % b",".join(b'"f%d":null' % n for n in range(10_000)),
        "context: got 10000, must be 0 to 256 entries",
    ),
    "32,000 candidates that are texts": (
        "/v1/rank",
        b'{"user_id":"ann","candidates":[%s""]}' % (b'"",' * 31_999),
        "candidates: got 32000, must be 1 to 16384 candidates",
    ),
    "a number of 4,000,000 digits": ("/v1/rank", b'{"user_id":%s}' % (b"9" * 4_000_000), "body: got"),
    "an unknown field of 4,000,000 bytes": (
        "/v1/rank",
        b'{"user_id":"ann","candidates":[1],"%s":1}' % (b"x" * 4_000_000),
        f"{'x' * 64}: got 1, must be absent",
    ),
}


@contextmanager
def memory_within(num_bytes: int) -> Iterator[None]:
    """Fails where Python's objects take more at any time in it, client and server together."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < num_bytes


@pytest.mark.parametrize("shown", LARGE)
async def test_a_hostile_body_is_refused_for_what_its_bytes_cost(running: Running, shown: str) -> None:
    path, body, says = LARGE[shown]
    with memory_within(20 * len(body) + 4 * MIB), pytest.raises(InvalidInput):
        parse(AppendEventsBody if path.endswith("events") else RankBody, body, Reading(LIMITS))
    answer = await running.http.post(path, content=body, headers=JSON)
    assert answer.status_code == 422
    assert says in answer.json()["error"]["message"]
    assert not running.engine.requests


async def test_the_largest_legal_bodies_are_answered(running: Running) -> None:
    event = {"item_id": -(2**63), "actions": 31, "value": -3e38, "time_ms": 1_700_000_000_000}
    rank: dict[str, object] = {
        "user_id": "," * 256,
        "candidates": [-(2**63) + number for number in range(16_384)],
        "top_k": 2**32 - 1,
        "request_time_ms": 1_700_000_000_000,
        "recent_events": [event] * 1_024,
        "context": {"gender": 1, "hour": 23},
        "features": {"names": ["price", "age"], "values": [-3e38] * 32_768},
        "rerank": {"method": "dpp", "strength": 1.0, "depth": 1_000},
        "model": "fake",
    }
    answer = await running.http.post("/v1/rank", content=orjson.dumps(rank, option=orjson.OPT_INDENT_2), headers=JSON)
    assert answer.status_code == 200
    assert running.engine.requests[0].candidates.tolist() == rank["candidates"]
    assert running.engine.requests[0].recent_events.shape == (1_024,)

    answer = await running.http.post("/v1/users/ann/events", json={"events": [event] * 10_000, "expected_len": 0})
    assert answer.json()["history_len"] == 10_000


@pytest.mark.parametrize("at", [0, 999, 1_000, 1_001, 2_345])
def test_the_first_wrong_element_is_named(at: int) -> None:
    ids: list[object] = [*range(3_000)]
    ids[at] = True
    ids[-1] = None
    with pytest.raises(InvalidInput, match=rf"^candidates\[{at}\]: got True, must be a valid integer$"):
        parse(RankBody, orjson.dumps({"user_id": "ann", "candidates": ids}), Reading(LIMITS))
    ids[at] = "a\0"
    with pytest.raises(InvalidInput, match=rf"^candidates\[{at}\]: got 'a\\x00', must be 1 to 256 bytes of UTF-8"):
        parse(RankBody, orjson.dumps({"user_id": "ann", "candidates": ids}), Reading(LIMITS))
    names = [f"sku-{number}" for number in range(3_000)]
    names[at] = ""
    with pytest.raises(InvalidInput, match=rf"^candidates\[{at}\]: got '', must be 1 to 256 bytes of UTF-8"):
        parse(RankBody, orjson.dumps({"user_id": "ann", "candidates": names}), Reading(LIMITS))
    ids = [*range(3_000)]
    ids[-1] = None
    with pytest.raises(InvalidInput, match=r"^candidates\[2999\]: got None, must be a valid integer$"):
        parse(RankBody, orjson.dumps({"user_id": "ann", "candidates": ids}), Reading(LIMITS))

    events: list[dict[str, object]] = [{"item_id": 1, "time_ms": 1} for _ in range(3_000)]
    for wrong, says in (
        ({}, "item_id: got None, must be given"),
        ({"item_id": 1, "time_ms": 1, "surprise": 2}, "surprise: got 2, must be absent: there is no such field"),
        ({"item_id": 1, "time_ms": 1, "a": 1, "b": 2, "c": 3}, "a: got 1, must be absent: there is no such field"),
    ):
        events[at] = dict(wrong)
        with pytest.raises(InvalidInput) as refused:
            parse(AppendEventsBody, orjson.dumps({"events": events}), Reading(LIMITS))
        assert str(refused.value) == f"events[{at}].{says}"


def test_ids_may_be_text_and_numbers_beyond_doubles_are_exact() -> None:
    ids = [7, "sku-1", "9007199254740993", 9007199254740993, "-9223372036854775808", "007"]
    for candidates in (ids, ids * 500, ["urn:isbn:0451450523"] * 16_384):
        body = parse(RankBody, orjson.dumps({"user_id": "ann", "candidates": candidates}), Reading(LIMITS))
        assert body.candidates.tolist() == item_ids(map(str, candidates)).tolist()
    events = [{"item_id": item, "time_ms": 1} for item in ids]
    read = parse(AppendEventsBody, orjson.dumps({"events": events}), Reading(LIMITS))
    assert read.events["item_id"].tolist() == item_ids(map(str, ids)).tolist()
    with pytest.raises(InvalidInput, match=r"^events\[1\]\.item_id: got '', must be 1 to 256 bytes of UTF-8"):
        parse(AppendEventsBody, orjson.dumps({"events": [events[0], {"item_id": "", "time_ms": 1}]}), Reading(LIMITS))


@pytest.mark.parametrize("depth", [1, 512, 1_000, 1_024, 2_000])
@pytest.mark.parametrize("opened", [b"[", b'{"a":', b'{"events":['])
def test_depth_is_never_taken_for_a_lack_of_memory(opened: bytes, depth: int) -> None:
    for kind in (RankBody, AppendEventsBody):
        with pytest.raises(InvalidInput, match=r"^body: got '(unexpected end of data|depth limit exceeded)'"):
            parse(kind, opened * depth, Reading(LIMITS))


class Watched(Limits):
    """Limits that know who asked."""

    asked_by: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        Watched.asked_by.add(threading.current_thread().name)
        return super().__getattribute__(name)


@pytest.mark.parametrize(("num_candidates", "beside"), [(1_000, False), (16_384, True)])
async def test_large_bodies_are_read_beside_the_loop(num_candidates: int, beside: bool) -> None:
    body = orjson.dumps({"user_id": "ann", "candidates": [10**9] * num_candidates})

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    Watched.asked_by.clear()
    reader = BodyReader(Watched(16_384, 1, 1, 1, 1, 256, 1_000))
    read = await reader.read(Request({"type": "http", "headers": []}, receive), RankBody)
    assert isinstance(read, RankBody) and len(read.candidates) == num_candidates
    assert (threading.current_thread().name not in Watched.asked_by) is beside


async def test_a_client_that_leaves_within_its_body_is_no_fault(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    host, _, port = running.addresses.http.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/rank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()
    assert (await running.http.get("/livez")).status_code == 200
    assert not caplog.records


@pytest.mark.parametrize("body", [{}, {"features": {"names": [], "values": []}}, {"rerank": {"method": "mmr"}}])
def test_unknown_fields_are_not_described_one_by_one(body: dict[str, dict[str, object]]) -> None:
    """pydantic would: half a second of the interpreter for 170,000 of them, in which nobody else is answered."""
    unknown = {f"k{number}": number for number in range(20)}
    field, known = next(iter(body.items()), ("", {}))
    raw = {"user_id": "ann", "candidates": [1]} | ({field: known | unknown} if field else unknown)
    with pytest.raises(InvalidInput, match=r"k\d+: got \d+, must be absent") as refused:
        parse(RankBody, orjson.dumps(raw), Reading(LIMITS))
    assert refused.value.__cause__ is None  # what pydantic has found is the cause of what it describes
