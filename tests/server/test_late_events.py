"""Late and future events over both transports: what the server does with them, and what it says."""

import time

import httpx
import pytest
from google.protobuf.json_format import ParseDict

from proto import ranking_pb2
from server.http import replies
from tests.server.harness import Running, serving
from tests.server.test_transports import reply

T0 = 1_700_000_000_000
FATES = ("clamped", "inserted", "discarded")


def events(*seconds: int) -> list[dict[str, object]]:
    return [{"item_id": at, "actions": 1, "value": 1.0, "time_ms": T0 + 1_000 * at} for at in seconds]


async def over_http(running: Running, user_id: str, **fields: object) -> httpx.Response:
    return await running.http.post(f"/v1/users/{user_id}/events", json=fields)


async def over_grpc(running: Running, user_id: str, **fields: object) -> ranking_pb2.AppendEventsResponse:
    request = ParseDict({"user_id": user_id, **fields}, ranking_pb2.AppendEventsRequest())
    told: ranking_pb2.AppendEventsResponse = await running.stub.AppendEvents(request)
    return told


@pytest.mark.parametrize(
    ("setting", "asked", "fates", "stored"),
    [
        ("insert", "", ([], [0, 2], []), [5, 10, 11, 15, 20]),
        ("reject", "insert", ([], [0, 2], []), [5, 10, 11, 15, 20]),
        ("clamp", "", ([0, 2], [], []), [10, 20, 20, 20, 20]),
        ("insert", "clamp", ([0, 2], [], []), [10, 20, 20, 20, 20]),
    ],
)
async def test_a_late_event_goes_where_the_caller_or_else_the_server_says(
    setting: str, asked: str, fates: tuple[list[int], ...], stored: list[int]
) -> None:
    """10 and 20 are stored; 5 comes, then 20, 15 and 11."""
    late = {"events": [*events(5), *events(20), *events(15)], "late_events": asked}
    async with serving(late_events=setting) as running:
        for user_id in ("ann", "bob"):
            await over_grpc(running, user_id, events=events(10))
            await over_grpc(running, user_id, events=events(20))
        by_grpc = await over_grpc(running, "ann", **late)
        by_http = reply(await over_http(running, "bob", **late), replies.AppendEventsReply)
        for told in ({name: list(getattr(by_grpc, name)) for name in FATES}, by_http):
            assert [told[name] for name in FATES] == list(fates)
        assert by_grpc.history_len == by_http["history_len"] == 5
        again = await over_grpc(running, "ann", events=events(11), late_events=asked)
        assert list(again.inserted or again.clamped) == [0]
        seconds = [(int(at) - T0) // 1_000 for at in running.engine.histories["ann"]["time_ms"]]
        assert seconds == (sorted([*stored, 20]) if 5 in stored else [10, 20, 20, 20, 20, 20])


async def test_a_server_that_rejects_writes_nothing_of_a_late_append() -> None:
    async with serving(late_events="reject") as running:
        await over_grpc(running, "ann", events=events(10, 20))
        for late, says in (
            (
                events(19, 30),
                "events[0].time_ms: got 1700000019000, must be at least 1700000020000, the time of the last",
            ),
            (
                events(30, 29),
                "events[1].time_ms: got 1700000029000, must be at least 1700000030000, the time of the event",
            ),
        ):
            refused = await over_http(running, "ann", events=late)
            assert refused.status_code == 422 and says in refused.json()["error"]["message"]
        assert len(running.engine.histories["ann"]) == 2


async def test_the_future_is_refused_beyond_the_clocks_skew_and_locks_nobody_out() -> None:
    async with serving(late_events="reject", max_clock_skew_s=60) as running:
        now = time.time_ns() // 1_000_000
        future = [events(1)[0] | {"time_ms": now + 365 * 86_400_000}]
        for fields in ({"events": future}, {"events": future, "late_events": "clamp"}):
            refused = await over_http(running, "ann", **fields)
            assert refused.status_code == 422
            assert "must be at most 60 s after the time of the server's clock" in refused.json()["error"]["message"]
        assert (await over_http(running, "ann", events=[future[0] | {"time_ms": now}])).status_code == 200
        ranked = await running.http.post(
            "/v1/rank", json={"user_id": "ann", "candidates": [1], "recent_events": future, "request_time_ms": now}
        )
        assert ranked.status_code == 422 and "recent_events[0].time_ms" in ranked.json()["error"]["message"]
    async with serving(max_clock_skew_s=0) as running:  # a replay of what is to come
        assert (await over_http(running, "ann", events=future)).status_code == 200
