"""Appends of several users in one call: what is wrong with one is told of it alone, over both transports."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.json_format import ParseDict

from mfalcon.errors import Overloaded, StorageUnavailable
from mfalcon.types import Append, Appended
from proto import ranking_pb2
from server.grpc.codec import varint
from server.http import replies
from tests.server.fake_engine import FakeEngine
from tests.server.harness import Running, Served, serving, serving_engine

EVENT: dict[str, Any] = {"item_id": 7, "actions": 17, "value": 3.5, "time_ms": 1_000_000}


def append(user_id: str, *events: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"user_id": user_id, "events": list(events), **options}


async def by_grpc(running: Served[Any], appends: Sequence[dict[str, Any]]) -> list[ranking_pb2.AppendOutcome]:
    request = ParseDict({"appends": appends}, ranking_pb2.AppendBatchRequest())
    return list((await running.stub.AppendBatch(request)).outcomes)


async def by_http(running: Served[Any], appends: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    answer = await running.http.post("/v1/events", json={"appends": appends})
    assert answer.status_code == 200, answer.text
    replies.AppendBatchReply.model_validate_json(answer.content)
    outcomes: list[dict[str, Any]] = answer.json()["outcomes"]
    return outcomes


async def test_each_append_has_its_own_outcome(running: Running) -> None:
    mixed = [
        append("ann", EVENT, EVENT, append_id="a"),
        append("", EVENT),
        append("bob", EVENT, expected_len=4),
        append("cyd", EVENT | {"time_ms": 0}),
        append("dan"),
        append("eve", EVENT, EVENT | {"time_ms": 999_999}, late_events="insert"),
    ]
    told, same = await by_grpc(running, mixed), await by_http(running, mixed)
    assert [outcome.WhichOneof("outcome") for outcome in told] == [next(iter(outcome)) for outcome in same]
    assert told[0].appended.history_len == same[0]["appended"]["history_len"] == 2
    assert not told[0].appended.was_written and same[0]["appended"]["was_written"]
    failed = [(1, "INVALID_ARGUMENT", "user_id: got ''"), (2, "FAILED_PRECONDITION", "expected_len: got 4")]
    failed += [(3, "INVALID_ARGUMENT", "events[0].time_ms: got 0"), (4, "INVALID_ARGUMENT", "events: got 0")]
    for at, code, text in failed:
        failure, as_json = told[at].failure, same[at]["failure"]
        assert (failure.code, failure.message) == (as_json["code"], as_json["message"])
        assert failure.code == code and failure.message.startswith(text)
        assert not failure.outcome_unknown and as_json["outcome"] == "nothing-written"
    assert len(told[2].failure.history_version) == 16 and same[2]["failure"]["history_len"] == 0
    assert same[3]["failure"]["field"] == "events[0].time_ms"
    assert list(told[5].appended.inserted) == [1]
    assert set(running.engine.histories) == {"ann", "eve"}


async def test_what_cannot_be_read_is_one_appends_own_fault(running: Running) -> None:
    """JSON alone can hold it; a message of protobuf that holds it is no message."""
    bad: list[Any] = [
        append("bob", EVENT | {"item_id": "x" * 257}),
        append("cyd", EVENT, nonsense=1),
        7,
        append("dan") | {"events": 3},
    ]
    outcomes = await by_http(running, [append("ann", EVENT), *bad])
    assert outcomes[0]["appended"]["history_len"] == 1
    fields = [outcome["failure"]["field"] for outcome in outcomes[1:]]
    assert fields[:2] == ["events[0].item_id", "nonsense"] and fields[3] == "events"
    assert set(running.engine.histories) == {"ann"}


@pytest.mark.parametrize(
    ("appends", "says"),
    [
        ([], "appends: got 0, must be 1 to 1000 appends"),
        ([append(str(user), EVENT) for user in range(1_001)], "appends: got"),
        ([append(str(user), *[EVENT] * 11) for user in range(1_000)], "events: got"),
        ([append("ann", EVENT), append("bob", EVENT), append("ann", EVENT)], "user_id: got 'ann'"),
    ],
)
async def test_a_batch_that_is_no_batch_is_refused_whole(
    running: Running, appends: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await by_grpc(running, appends)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.value.details() or "").startswith(says)
    assert ("mfalcon-outcome", "nothing-written") in tuple(refused.value.trailing_metadata() or ())
    answer = await running.http.post("/v1/events", json={"appends": appends})
    assert answer.status_code == 422 and answer.json()["error"]["message"].startswith(says)
    assert answer.json()["error"]["outcome"] == "nothing-written"
    assert not running.engine.histories


async def test_counts_are_checked_before_the_message_is_parsed(running: Running) -> None:
    """Four megabytes of empty events in one append, in many, and of empty appends."""
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = running.channel.unary_unary(
        "/mfalcon.v1.Ranking/AppendBatch"
    )
    empty_events = b"\x12\0" * 2_000_000
    some_events = b"\x12\0" * 63
    for message, says in (
        (b"\x0a" + varint(len(empty_events)) + empty_events, "events: got more than 10000"),
        ((b"\x0a" + varint(len(some_events)) + some_events) * 900, "events: got more than 10000"),
        (b"\x0a\0" * 2_000_000, "appends: got more than 1000"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(message)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (refused.value.details() or "").startswith(says)


class Failing(FakeEngine):
    """Its log fails for some users, each in his own way."""

    async def append_events(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """See FakeEngine."""
        if user_id == "full":
            raise Overloaded("the log is full", retry_after_s=1.5)
        if user_id == "away":
            raise StorageUnavailable("no answer", may_be_done=True)
        if user_id == "defect":
            raise ZeroDivisionError
        return await super().append_events(user_id, append, deadline)


async def test_a_log_that_fails_for_one_user_fails_no_other() -> None:
    async with serving_engine(Failing()) as running:
        appends = [append(user, EVENT) for user in ("full", "ann", "away", "defect", "bob")]
        told, same = await by_grpc(running, appends), await by_http(running, appends)
        full, ann, away, defect, bob = told
        assert (full.failure.code, full.failure.retry_after_ms) == ("RESOURCE_EXHAUSTED", 1_500)
        assert (away.failure.code, away.failure.outcome_unknown) == ("UNAVAILABLE", True)
        assert (defect.failure.code, defect.failure.outcome_unknown) == ("INTERNAL", True)
        assert "Zero" not in defect.failure.message
        assert ann.appended.history_len == bob.appended.history_len == 1
        assert same[0]["failure"]["retry_after_ms"] == 1_500 and same[2]["failure"]["outcome"] == "unknown"


async def test_a_batch_of_the_most_is_done_while_others_are_answered() -> None:
    async with serving() as running:
        events = [EVENT] * 10
        batch = asyncio.create_task(by_grpc(running, [append(f"u{n}", *events) for n in range(1_000)]))
        while not batch.done():
            await running.stub.GetModel(ranking_pb2.GetModelRequest())
        assert [outcome.appended.history_len for outcome in await batch] == [10] * 1_000
