"""Inputs by both transports: a good request but for one thing."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote, urlencode

import numpy as np
import orjson
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from mfalcon.types import EVENT_DTYPE, Events
from proto import ranking_pb2
from tests.server.bad_input.cases import INVALID, Case, Fields, GrpcCase, HttpCase

USER = "ann"
LAST_TIME_MS = 1_000_000
EVENT: Fields = {"item_id": 7, "actions": 1, "value": 3.0, "time_ms": LAST_TIME_MS + 1}
BODIES = {
    "Rank": "/v1/rank",
    "RankStream": "/v1/rank/stream",
    "RankBatch": "/v1/rank/batch",
    "AppendBatch": "/v1/events",
}
"""Methods whose requests are bodies as they are."""


def stored_history() -> Events:
    """What the user of the table has stored."""
    return np.array([(3, 2, 4.0, LAST_TIME_MS)], dtype=EVENT_DTYPE)


def rank_with(**fields: object) -> Fields:
    """A good rank request but for these fields."""
    return {"user_id": USER, "candidates": [1, 2]} | fields


def append_with(*events: Fields, user_id: str = USER) -> Fields:
    """An append of good events but for these fields."""
    return {"user_id": user_id, "events": [EVENT | event for event in events]}


def message_of(method: str, fields: Fields) -> Message:
    """The request message of a method."""
    kinds: Mapping[str, type[Message]] = {
        "Rank": ranking_pb2.RankRequest,
        "RankStream": ranking_pb2.RankRequest,
        "RankBatch": ranking_pb2.RankBatchRequest,
        "AppendBatch": ranking_pb2.AppendBatchRequest,
        "AppendEvents": ranking_pb2.AppendEventsRequest,
        "GetHistory": ranking_pb2.GetHistoryRequest,
        "Prefill": ranking_pb2.PrefillRequest,
        "DeleteUser": ranking_pb2.DeleteUserRequest,
    }
    return ParseDict(fields, kinds[method]())


def over_grpc(method: str, shown: str, fields: Fields, code: str, says: str) -> GrpcCase:
    """A well-formed message with a bad value."""
    return GrpcCase(method, shown, message_of(method, fields).SerializeToString(), code, says)


def over_http(method: str, shown: str, fields: Fields, status: int, code: str, says: str) -> HttpCase:
    """The same as JSON."""
    body = dict(fields)
    if method in BODIES:
        return HttpCase("POST", BODIES[method], shown, orjson.dumps(body), status, code, says)
    user = quote(str(body.pop("user_id")), safe="")
    match method:
        case "AppendEvents":
            return HttpCase("POST", f"/v1/users/{user}/events", shown, orjson.dumps(body), status, code, says)
        case "GetHistory":
            query = f"?{urlencode(body)}" if body else ""
            return HttpCase("GET", f"/v1/users/{user}/history{query}", shown, b"", status, code, says)
        case "Prefill":
            return HttpCase("POST", f"/v1/users/{user}/prefill", shown, b"", status, code, says)
    return HttpCase("DELETE", f"/v1/users/{user}", shown, b"", status, code, says)


def over_both(
    method: str, shown: str, fields: Fields, says: str, status: int = 422, code: str = INVALID
) -> Sequence[Case]:
    """The same bad value by both ways."""
    return over_grpc(method, shown, fields, code, says), over_http(method, shown, fields, status, code, says)


def rank_json(shown: str, body: bytes, says: str) -> HttpCase:
    """A body that is no RankBody."""
    return HttpCase("POST", "/v1/rank", shown, body, 422, INVALID, says)


def good_rank_json(replace: bytes, by: bytes) -> bytes:
    """A good body with one text replaced."""
    good = b'{"user_id": "ann", "candidates": [1, 2], "top_k": 0, "recent_events": [], "context": {}}'
    assert replace in good
    return good.replace(replace, by)


def event_json(value: bytes) -> bytes:
    """A rank body whose recent event has this value."""
    event = b'[{"item_id": 7, "actions": 1, "value": %s, "time_ms": 1000001}]' % value
    return good_rank_json(b"[]", event)
