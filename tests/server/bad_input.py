"""Every bad input that we try, over gRPC and HTTP, as a table.

The tests hold each answer; `python -m tests.server.bad_input > docs/bad-input.md` writes the table for readers.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import grpc
import grpc.aio
import numpy as np
import orjson
import torch
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from mfalcon.engine.catalog import Catalog
from mfalcon.engine.device import Device
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import Histories, HistoryOptions
from mfalcon.engine.ranker import LoadedRanker, RankerOptions
from mfalcon.history.local_log import LocalLog
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.types import EVENT_DTYPE, MAX_TIME_MS, Append, Events, RankRequest, RankResult, TellPart
from proto import ranking_pb2
from tests.server.harness import Clients, Served, serving_engine
from tests.small import small_checkpoint, small_config

SERVICE = "/mfalcon.v1.Ranking/"
JSON = {"content-type": "application/json"}

Fields = dict[str, object]

INVALID = "INVALID_ARGUMENT"
TOO_LARGE = "RESOURCE_EXHAUSTED"

USER = "ann"
LAST_TIME_MS = 1_000_000
EVENT: Fields = {"item_id": 7, "actions": 1, "value": 3.0, "time_ms": LAST_TIME_MS + 1}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the name of a status, the number of an HTTP status (0 over gRPC), a message, a field."""

    code: str
    status: int
    message: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class GrpcCase:
    """Bytes for a gRPC method, and what the answer must hold."""

    method: str
    shown: str
    message: bytes
    code: str
    says: str

    @property
    def call(self) -> str:
        return self.method

    async def send(self, running: Clients) -> Answer:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = running.channel.unary_unary(SERVICE + self.method)
        try:
            await call(self.message, timeout=60)
        except grpc.aio.AioRpcError as error:
            return Answer(error.code().name, 0, error.details() or "")
        return Answer("OK", 0, "")


@dataclass(frozen=True, slots=True)
class HttpCase:
    """An HTTP request, and what the answer must hold."""

    verb: str
    path: str
    shown: str
    body: bytes
    status: int
    code: str
    says: str
    headers: tuple[tuple[str, str], ...] = tuple(JSON.items())
    chunked: bool = False

    @property
    def call(self) -> str:
        return f"{self.verb} {self.path}"

    async def send(self, running: Clients) -> Answer:
        content = in_chunks(self.body) if self.chunked else self.body
        reply = await running.http.request(self.verb, self.path, content=content, headers=list(self.headers))
        if reply.status_code == 200:
            return Answer("OK", 200, "")
        assert reply.headers["content-type"] == "application/json"
        error = reply.json()["error"]
        assert {"code", "message", "field"} <= set(error) <= {"code", "message", "field", "outcome"}
        return Answer(error["code"], reply.status_code, error["message"], error["field"])


Case = GrpcCase | HttpCase


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    """A body without a length."""
    for start in range(0, len(body), 2**16):
        yield body[start : start + 2**16]


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
    if method == "Rank":
        return HttpCase("POST", "/v1/rank", shown, orjson.dumps(body), status, code, says)
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


LONG_ID = "x" * 257
MAX_SAID = f"must be 1 to {MAX_TIME_MS}"

BAD_USER_IDS = (
    ("user_id empty", "", "user_id: got '', must be 1 to 256 bytes"),
    ("user_id of 257 bytes", LONG_ID, "user_id: got 257, must be 1 to 256 bytes"),
    ("user_id of 129 two-byte characters", "é" * 129, "user_id: got 258, must be 1 to 256 bytes"),
    ("user_id with NUL", "a\0b", "must be free of control characters"),
    ("user_id with a line break", "a\nb", "must be free of control characters"),
    ("user_id with a line break at its end", "ann\n", "must be free of control characters"),
)

BAD_EVENTS: Sequence[tuple[str, Sequence[Fields], str]] = (
    ("an event with time_ms 0", [{"time_ms": 0}], "[0].time_ms: got 0, " + MAX_SAID),
    ("an event with time_ms -1", [{"time_ms": -1}], "[0].time_ms: got -1, " + MAX_SAID),
    ("an event after the year 9999", [{"time_ms": MAX_TIME_MS + 1}], "[0].time_ms: got 253402300800000, " + MAX_SAID),
    (
        "events out of time order",
        [{}, {}, {"time_ms": LAST_TIME_MS}],
        "[2].time_ms: got 1000000, must be at least 1000001",
    ),
    (
        "an event whose time is in seconds",
        [{"time_ms": 1_750_000_000}],
        "[0].time_ms: got 1750000000, must be milliseconds since 1970; this would be a time of our days in seconds",
    ),
    (
        "an event whose time is in microseconds",
        [{"time_ms": 1_750_000_000_000_000}],
        f"[0].time_ms: got 1750000000000000, {MAX_SAID}; this would be a time of our days in microseconds",
    ),
    (
        "an event whose time is in nanoseconds",
        [{}, {"time_ms": 1_750_000_000_000_000_000}],
        f"[1].time_ms: got 1750000000000000000, {MAX_SAID}; this would be a time of our days in nanoseconds",
    ),
    (
        "an event of the year 2200",
        [{}, {"time_ms": 7_258_118_400_000}],
        "[1].time_ms: got 7258118400000, must be at most 300 s after the time of the server's clock (max_clock_skew_s)",
    ),
    (
        "an action that the model has not",
        [{}, {"actions": 8}],
        "[1].actions: got 8, must be 0 to 7 (a bitmask over 3 actions)",
    ),
    (
        "an event older than the stored history",
        [{"time_ms": LAST_TIME_MS - 1}],
        "[0].time_ms: got 999999, must be at least 1000000, the time of the last stored event",
    ),
)

BAD_RERANKS: Sequence[tuple[str, Fields, str]] = (
    ("a reranking by no method", {"method": ""}, "rerank.method: got '', must be 'mmr' or 'dpp' or 'msd' or 'llm'"),
    ("a reranking by a method that there is not", {"method": "DPP"}, "rerank.method: got 'DPP', must be 'mmr' or"),
    ("a language model with a strength", {"method": "llm"}, "rerank.strength: got 0.5, must be 0 with method 'llm'"),
    (
        "a language model with a tail weight",
        {"method": "llm", "strength": 0, "tail_weight": 0.5},
        "rerank.tail_weight: got 0.5, must be 0 with method 'llm', which has none",
    ),
    (
        "a language model with 101 candidates to order",
        {"method": "llm", "strength": 0, "depth": 101},
        "rerank.depth: got 101, must be 0 to 100 with method 'llm' (0 is the default)",
    ),
    ("a reranking of strength 1.5", {"strength": 1.5}, "rerank.strength: got 1.5, must be 0 (by score) to 1"),
    ("a reranking of strength -1", {"strength": -1.0}, "rerank.strength: got -1.0, must be 0 (by score) to 1"),
    ("a tail weight of -1", {"tail_weight": -1.0}, "rerank.tail_weight: got -1.0, must be 0 (none) to 1 (as much as"),
    ("a tail weight of 2", {"tail_weight": 2.0}, "rerank.tail_weight: got 2.0, must be 0 (none) to 1 (as much as"),
    (
        "a tail weight for a model that counts no items",
        {"tail_weight": 0.5},
        "rerank.tail_weight: got 0.5, must be 0: the checkpoint of model small does not say how often its items were",
    ),
    ("a reranking of depth 1,001", {"depth": 1_001}, "rerank.depth: got 1001, must be 0 to 1000 (0 is the default)"),
)

CASES: Sequence[Case] = (
    # Rank
    *over_both("Rank", "no candidates", rank_with(candidates=[]), "candidates: got 0, must be 1 to 16384"),
    *over_both(
        "Rank",
        "16,385 candidates",
        rank_with(candidates=[1] * 16_385),
        ", must be 1 to 16384 candidates",
    ),
    *over_both(
        "Rank", "request_time_ms -1", rank_with(request_time_ms=-1), "request_time_ms: got -1, must be 0 to 253402300"
    ),
    *over_both(
        "Rank",
        "request_time_ms after the year 9999",
        rank_with(request_time_ms=MAX_TIME_MS + 1),
        "request_time_ms: got 253402300800000, must be 0 to",
    ),
    *over_both(
        "Rank",
        "request_time_ms in seconds",
        rank_with(request_time_ms=1_750_000_000),
        "request_time_ms: got 1750000000, must be milliseconds since 1970; this would be a time of our days in seconds",
    ),
    *over_both(
        "Rank",
        "request_time_ms in microseconds",
        rank_with(request_time_ms=1_750_000_000_000_000),
        "must be 0 to 253402300799999 (0 is now); this would be a time of our days in microseconds",
    ),
    *over_both(
        "Rank",
        "request_time_ms of the year 2200",
        rank_with(request_time_ms=7_258_118_400_000),
        "request_time_ms: got 7258118400000, must be at most 300 s after the time of the server's clock",
    ),
    *over_both(
        "Rank",
        "a context name that the model has not",
        rank_with(context={"surfase": 1}),
        "context: got 'surfase', must be one of the model's context features (surface, hour)",
    ),
    *over_both("Rank", "a context value of -1", rank_with(context={"hour": -1}), "context.hour: got -1, must be 0 to"),
    *over_both("Rank", "a context value too large", rank_with(context={"hour": 24}), "got 24, must be 0 to 23"),
    *over_both(
        "Rank",
        "a feature that the model has not",
        rank_with(features={"names": ["prize"], "values": [1, 2]}),
        "features.names[0]: got 'prize', must be one of the model's dense features (price, rank_before)",
    ),
    *over_both(
        "Rank",
        "a counter as a feature",
        rank_with(features={"names": ["price", "item_events"], "values": [1, 2, 3, 4]}),
        "features.names[1]: got 'item_events', must be a feature that callers give",
    ),
    *over_both(
        "Rank",
        "a feature twice",
        rank_with(features={"names": ["price", "price"], "values": [1, 2, 3, 4]}),
        "features.names[1]: got 'price', must be a name that is given once",
    ),
    *over_both(
        "Rank",
        "a number too few",
        rank_with(features={"names": ["price", "rank_before"], "values": [1, 2, 3]}),
        "features.values: got 3, must be 4 numbers (2 candidates, 2 features of each)",
    ),
    *over_both(
        "Rank",
        "numbers without names",
        rank_with(features={"names": [], "values": [1, 2]}),
        "features.values: got 2, must be 0 numbers",
    ),
    *over_both(
        "Rank",
        "257 names of features",
        rank_with(features={"names": ["price"] * 257, "values": []}),
        "features.names: got",
    ),
    *over_both(
        "Rank",
        "a model that is not served",
        rank_with(model="other"),
        "model: got 'other', must be 'small' or empty",
        status=404,
        code="NOT_FOUND",
    ),
    *(
        case
        for shown, wish, says in BAD_RERANKS
        for case in over_both("Rank", shown, rank_with(rerank={"method": "dpp", "strength": 0.5} | wish), says)
    ),
    *over_both(
        "Rank",
        "1,025 recent events",
        rank_with(recent_events=[EVENT] * 1_025),
        ", must be 0 to 1024 events",
    ),
    *(
        case
        for shown, events, says in BAD_EVENTS
        for case in over_both("Rank", shown, rank_with(recent_events=[EVENT | event for event in events]), says)
    ),
    *(
        case
        for shown, user_id, says in BAD_USER_IDS
        for case in over_both("Rank", shown, rank_with(user_id=user_id), says)
    ),
    # AppendEvents
    *over_both("AppendEvents", "no events", append_with(), "events: got 0, must be 1 to 10000"),
    *over_both("AppendEvents", "10,001 events", append_with(*[{}] * 10_001), ", must be 1 to 10000 events"),
    *over_both(
        "AppendEvents",
        "expected_len 2 for a history of 1",
        {**append_with({}), "expected_len": 2},
        "expected_len: got 2, the history has 1 events; nothing was written",
        status=409,
        code="FAILED_PRECONDITION",
    ),
    *over_both(
        "AppendEvents",
        "append_id of 65 bytes",
        {**append_with({}), "append_id": "é" * 32 + "x"},
        "append_id: got 65, must be at most 64 bytes of UTF-8 without control characters",
    ),
    *over_both(
        "AppendEvents",
        "append_id with a line break",
        {**append_with({}), "append_id": "a\nb"},
        "append_id: got 'a\\nb', must be at most 64 bytes of UTF-8 without control characters",
    ),
    *over_both(
        "AppendEvents",
        'late_events "drop"',
        {**append_with({}), "late_events": "drop"},
        "late_events: got 'drop', must be reject, clamp, insert or empty",
    ),
    over_grpc(
        "AppendEvents",
        "expected_version of 3 bytes",
        {**append_with({}), "expected_version": "QUJD"},
        INVALID,
        "expected_version: got '3 bytes', must be 16 bytes",
    ),
    over_http(
        "AppendEvents",
        "expected_version that is not 32 hex digits",
        {**append_with({}), "expected_version": "7f"},
        422,
        INVALID,
        "expected_version: got '7f', must be 32 hex digits (0-9, a-f)",
    ),
    *(
        case
        for shown, events, says in BAD_EVENTS
        for case in over_both("AppendEvents", shown, append_with(*events) | {"late_events": "reject"}, says)
    ),
    *(
        case
        for shown, user_id, says in BAD_USER_IDS
        for case in over_both("AppendEvents", shown, append_with({}, user_id=user_id), says)
    ),
    # GetHistory, Prefill and DeleteUser
    *over_both(
        "GetHistory",
        "a page of 1,001 events",
        {"user_id": USER, "limit": 1_001},
        "limit: got 1001, must be 0 to 1000 events (0 is 1000)",
    ),
    over_grpc(
        "GetHistory",
        "expected_version of another history",
        {"user_id": USER, "expected_version": "AAAAAAAAAAAAAAAAAAAAAA=="},
        "FAILED_PRECONDITION",
        "the history has 1 events and version",
    ),
    over_http(
        "GetHistory",
        "expected_version of another history",
        {"user_id": USER, "expected_version": "0" * 32},
        409,
        "FAILED_PRECONDITION",
        "the history has 1 events and version",
    ),
    over_grpc(
        "GetHistory",
        "expected_version of 3 bytes",
        {"user_id": USER, "expected_version": "AAAA"},
        INVALID,
        "expected_version: got '3 bytes', must be 16 bytes",
    ),
    *(
        over_http("GetHistory", f"{name} {value}", {"user_id": USER, name: value}, 422, INVALID, f"{name}: got")
        for name, value in (
            ("first", "-1"),
            ("first", "18446744073709551616"),
            ("limit", "soon"),
            ("limit", "4294967296"),
            ("with_states", "perhaps"),
        )
    ),
    over_http(
        "GetHistory",
        "expected_version that is not 32 hex digits",
        {"user_id": USER, "expected_version": "7f"},
        422,
        INVALID,
        "expected_version: got '7f', must be 32 hex digits (0-9, a-f)",
    ),
    *(
        case
        for method in ("GetHistory", "Prefill", "DeleteUser")
        for shown, user_id, says in BAD_USER_IDS
        for case in over_both(method, shown, {"user_id": user_id}, says)
    ),
    # gRPC alone
    *(
        over_grpc("AppendEvents", f"an event with value {name}", append_with({}, {"value": value}), INVALID, says)
        for name, value, says in (
            ("NaN", "NaN", "events[1].value: got nan, must be a finite 32-bit float"),
            ("infinity", "Infinity", "events[1].value: got inf, must be a finite 32-bit float"),
        )
    ),
    over_grpc(
        "Rank",
        "a reranking of strength NaN",
        rank_with(rerank={"method": "mmr", "strength": "NaN"}),
        INVALID,
        "got nan",
    ),
    over_grpc(
        "Rank",
        "a tail weight of NaN",
        rank_with(rerank={"method": "mmr", "strength": 0.5, "tail_weight": "NaN"}),
        INVALID,
        "rerank.tail_weight: got nan, must be 0 (none) to 1",
    ),
    over_grpc(
        "Rank",
        "a feature of NaN",
        rank_with(features={"names": ["rank_before", "price"], "values": [1, 2, 3, "NaN"]}),
        INVALID,
        "features.values[3]: got nan, must be a finite 32-bit float (price of candidate 1)",
    ),
    GrpcCase(
        "Rank",
        "4 MiB of names of features",
        b"\x4a\xfa\xff\xff\x01" + b"\x0a\0" * (2**21 - 3),
        INVALID,
        "features.names: got more than 256, must be at most 256 names",
    ),
    GrpcCase(
        "Rank",
        "4 MiB of features one by one",
        b"\x4a\xf7\xff\xff\x01" + b"\x15\0\0\0\0" * 838_859,
        INVALID,
        "mfalcon.v1.DenseFeatures: got more than 256, must be at most 256 single or unknown fields",
    ),
    *(
        GrpcCase(method, "bytes that are no protobuf", b"\xff\xff\xff", INVALID, f"mfalcon.v1.{name}: got 3 bytes")
        for method, name in (
            ("Rank", "RankRequest"),
            ("AppendEvents", "AppendEventsRequest"),
            ("GetHistory", "GetHistoryRequest"),
            ("Prefill", "PrefillRequest"),
            ("DeleteUser", "DeleteUserRequest"),
            ("GetModel", "GetModelRequest"),
        )
    ),
    GrpcCase(
        "Rank",
        "a message cut short",
        message_of("Rank", rank_with()).SerializeToString()[:-1],
        INVALID,
        "mfalcon.v1.RankRequest: got 22 bytes that are no such message",
    ),
    GrpcCase("Rank", "user_id that is not UTF-8", b"\x0a\x02\xff\xfe", INVALID, "mfalcon.v1.RankRequest: got 4 bytes"),
    GrpcCase("Rank", "candidates of 7 bytes, packed", b"\x0a\x01a\x12\x07" + b"\1" * 7, INVALID, "no such message"),
    GrpcCase("Rank", "an empty message", b"", INVALID, "user_id: got ''"),
    *(
        GrpcCase(method, f"4 MiB of {shown}", part * (4 * 2**20 // len(part)), INVALID, says)
        for method, shown, part, says in (
            ("Rank", "empty events", b"\x2a\0", "recent_events: got more than 1024, must be 0 to 1024 events"),
            ("Rank", "context without names", b"\x32\0", "context: got more than 256, must be 0 to 256 entries"),
            ("Rank", "candidates one by one", b"\x11" + b"\1" * 8, "candidates: got more than 16384, must be 1 to"),
            ("AppendEvents", "empty events", b"\x12\0", "events: got more than 10000, must be 1 to 10000 events"),
            ("Prefill", "user ids", b"\x0a\0", "got more than 256, must be at most 256 single or unknown fields"),
            ("DeleteUser", "unknown fields", b"\x78\1", "got more than 256, must be at most 256 single or unknown"),
        )
    ),
    GrpcCase("Rank", "more than 4 MiB", b"\0" * (4 * 2**20 + 1), TOO_LARGE, "4194304"),
    GrpcCase("Delete", "a method that there is not", b"", "UNIMPLEMENTED", "Method not found"),
    # HTTP alone
    rank_json("not JSON", b"{", "body: got"),
    rank_json("an empty body", b"", "body: got None, must be given"),
    rank_json("not UTF-8", good_rank_json(b"ann", b"\xff"), "body: got"),
    rank_json("a lone surrogate", good_rank_json(b"ann", b"\\ud800"), "body: got"),
    rank_json("JSON 2,000 lists deep", b"[" * 2_000, "body: got"),
    rank_json("a list", b"[1]", "body: got 'a list', must be a JSON object"),
    rank_json("null", b"null", "body: got None, must be a JSON object"),
    rank_json("no user_id", b'{"candidates": [1]}', "user_id: got None, must be given"),
    rank_json(
        "a reranking without a strength",
        b'{"user_id": "ann", "candidates": [1], "rerank": {"method": "dpp"}}',
        "rerank.strength: got None, must be given",
    ),
    rank_json(
        "a tail weight in words",
        b'{"user_id": "ann", "candidates": [1], "rerank": {"method": "dpp", "strength": 0.5, "tail_weight": "1"}}',
        "rerank.tail_weight: got '1', must be a valid number",
    ),
    rank_json("no candidates at all", b'{"user_id": "ann"}', "candidates: got 0, must be 1 to 16384 candidates"),
    rank_json("an unknown field", good_rank_json(b"top_k", b"topk"), "topk: got 0, must be absent"),
    rank_json("user_id as a number", good_rank_json(b'"ann"', b"7"), "user_id: got 7, must be a valid string"),
    *(
        rank_json(f"candidate {value.decode()}", good_rank_json(b"[1, 2]", b"[1, %s]" % value), says)
        for value, says in (
            (b'""', "candidates[1]: got '', must be 1 to 256 bytes of UTF-8 without control characters"),
            (b'"a\\u0000"', "candidates[1]: got 'a\\x00', must be 1 to 256 bytes of UTF-8 without control characters"),
            (b"true", "candidates[1]: got True, must be a valid integer"),
            (b"1.0", "candidates[1]: got 1.0, must be a valid integer"),
            (b"null", "candidates[1]: got None, must be a valid integer"),
            (b"[1]", "candidates[1]: got 'a list', must be a valid integer"),
            (b"9223372036854775808", "must be less than or equal to 9223372036854775807"),
            (b"-9223372036854775809", "must be a valid integer"),
            (b"1e30", "must be a valid integer"),
        )
    ),
    rank_json("candidates as a text", good_rank_json(b"[1, 2]", b'"12"'), "candidates: got '12', must be a valid list"),
    rank_json(
        "top_k -1", good_rank_json(b'"top_k": 0', b'"top_k": -1'), "top_k: got -1, must be greater than or equal"
    ),
    rank_json("top_k 2^32", good_rank_json(b'"top_k": 0', b'"top_k": 4294967296'), "top_k: got 4294967296, must be"),
    rank_json("context as a list", good_rank_json(b"{}", b"[]"), "context: got 'a list', must be a valid dictionary"),
    rank_json("context value 1.5", good_rank_json(b"{}", b'{"hour": 1.5}'), "context.hour: got 1.5, must be a valid"),
    rank_json("features as a list", good_rank_json(b"{}", b'{}, "features": [1]'), "features: got"),
    rank_json(
        "a feature of 1e39",
        good_rank_json(b"{}", b'{}, "features": {"names": ["price"], "values": [1, 1e39]}'),
        "features.values[1]: got 1e+39, must be less than",
    ),
    rank_json(
        "an unknown field of features",
        good_rank_json(b"{}", b'{}, "features": {"names": [], "values": [], "columns": []}'),
        "features.columns",
    ),
    rank_json(
        "262,145 numbers of features",
        good_rank_json(b"{}", b'{}, "features": {"names": ["price"], "values": [' + b"0," * 262_144 + b"0]}"),
        "features.values: got 262145, must be at most 262144 numbers over HTTP",
    ),
    rank_json("an event value of NaN", event_json(b"NaN"), "body: got"),
    rank_json("an event value of 1e400", event_json(b"1e400"), "body: got"),
    rank_json("an event value of 1e39", event_json(b"1e39"), "recent_events[0].value: got 1e+39, must be less than"),
    rank_json(
        "an event value of true", event_json(b"true"), "recent_events[0].value: got True, must be a valid number"
    ),
    rank_json("an event without time_ms", good_rank_json(b"[]", b'[{"item_id": 1}]'), "recent_events[0].time_ms: got"),
    HttpCase(
        "POST",
        "/v1/users/ann/events",
        "expected_len -1",
        b'{"events": [{"item_id": 1, "time_ms": 1000001}], "expected_len": -1}',
        422,
        INVALID,
        "expected_len: got -1, must be greater than or equal to 0",
    ),
    HttpCase(
        "POST",
        "/v1/users/%FF/prefill",
        "a user_id that is not UTF-8",
        b"",
        422,
        INVALID,
        "must be UTF-8, percent-encoded",
    ),
    HttpCase(
        "POST",
        "/v1/rank",
        "content-type text/plain",
        good_rank_json(b"[1, 2]", b"[1]"),
        422,
        INVALID,
        "body: got 'bytes that are not declared as JSON', must be a JSON object with content-type: application/json",
        headers=(("content-type", "text/plain"),),
    ),
    *(
        HttpCase(
            "POST",
            "/v1/rank",
            f"x-request-timeout-ms: {shown or value}",
            good_rank_json(b"[1, 2]", b"[1]"),
            422,
            INVALID,
            f"x-request-timeout-ms: got '{value[:70]}",
            headers=(*JSON.items(), ("x-request-timeout-ms", value)),
        )
        for value, shown in (
            ("0", ""),
            ("-5", ""),
            ("soon", ""),
            ("3600001", ""),
            ("9" * 321, "a number of 321 digits"),
            ("9" * 5_000, "a number of 5,000 digits"),
        )
    ),
    HttpCase("POST", "/v1/rank", "more than 4 MiB", b" " * (4 * 2**20 + 1), 413, TOO_LARGE, "must be at most 4194304"),
    HttpCase(
        "POST",
        "/v1/rank",
        "more than 4 MiB, chunked",
        b" " * (4 * 2**20 + 1),
        413,
        TOO_LARGE,
        "must be at most 4194304",
        chunked=True,
    ),
    HttpCase("POST", "/v1/score", "a path that there is not", b"", 404, "NOT_FOUND", "Not Found"),
    HttpCase("GET", "/v1/rank", "a verb that there is not", b"", 405, "UNIMPLEMENTED", "Method Not Allowed"),
)


class WatchedEngine(Engine):
    """A real engine on a tiny model that shows how many users it has and how often a request came to be ranked."""

    def __init__(self) -> None:
        metrics, checkpoint = ServerMetrics(), small_checkpoint(config=small_config(with_counters=True))
        device = Device(torch.device("cpu"), 1, 1_024, metrics.device)
        histories = Histories(HistoryOptions(), metrics.states)
        ranker = LoadedRanker(checkpoint, RankerOptions(microbatch=16), device, histories, metrics.states)
        super().__init__(histories, device, Catalog([ranker]), metrics)
        self.num_ranks = 0

    @property
    def num_users(self) -> int:
        assert isinstance(self.histories.log, LocalLog)
        return len(self.histories.log)

    async def rank(
        self, request: RankRequest, deadline: float | None, model: str = "", tell: TellPart | None = None
    ) -> RankResult:
        self.num_ranks += 1
        return await super().rank(request, deadline, model)


@asynccontextmanager
async def serving_the_table() -> AsyncIterator[Served[WatchedEngine]]:
    """A server with the history of the table."""
    engine = WatchedEngine()
    engine.wait_ready()
    await engine.append_events(USER, Append(stored_history(), 0))
    async with serving_engine(engine) as running:
        yield running


async def answers(running: Clients) -> Sequence[tuple[Case, Answer]]:
    """Every case with the answer that a server gave."""
    return [(case, await case.send(running)) for case in CASES]


def as_markdown(rows: Sequence[tuple[Case, Answer]]) -> str:
    """The table for readers."""
    lines = [
        "# Bad input and its answers",
        "",
        "Written by `python -m tests.server.bad_input > docs/bad-input.md` from the answers of a running server with a",
        "tiny model; the same table is a test (`tests/server/test_bad_input.py`). After each of these nothing is",
        f"stored and the next request is answered as if it had not been. The user `{USER}` has one stored event, at",
        f"time {LAST_TIME_MS}; the model, `small`, has three actions, the context features `surface` and `hour`, and",
        "the dense features `price` and `rank_before`; limits are the defaults.",
        "",
        "| Transport | Call | Input | Answer |",
        "|---|---|---|---|",
    ]
    for case, answer in rows:
        transport = "gRPC" if isinstance(case, GrpcCase) else "HTTP"
        code = f"{answer.status} {answer.code}" if answer.status else answer.code
        call = case.call if len(case.call) < 60 else case.call[:24] + "..." + case.call[-10:]
        lines.append(f"| {transport} | `{call}` | {case.shown} | {code}: {cell(answer.message)} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text that a Markdown table leaves alone."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("[", "\\[").replace("_", "\\_").replace("<", "&lt;")


async def main() -> None:
    """Print the table."""
    async with serving_the_table() as running:
        print(as_markdown(await answers(running)), end="")


if __name__ == "__main__":
    asyncio.run(main())
