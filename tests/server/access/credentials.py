"""Callers of a test, their file, and how each transport ends a call with a header."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import grpc.aio
import httpx
from google.protobuf.message import Message

from proto import ranking_pb2
from server.access.access import Access
from server.settings.access import AccessSettings
from tests.server.harness import Clients

RANK = ranking_pb2.RankRequest(user_id="ann", candidates=[1, 2])
EVENT = ranking_pb2.Event(item_id=7, actions=1, value=3.0, time_ms=1_000_000)


@dataclass(frozen=True, slots=True)
class Call:
    """A method by both transports, and the right that it needs. code: how it ends for who has that."""

    right: str
    method: str
    message: Message
    verb: str
    path: str
    body: Mapping[str, object] | None = None
    code: str = "OK"


CALLS: Mapping[str, Call] = {
    "rank": Call("rank", "Rank", RANK, "POST", "/v1/rank", {"user_id": "ann", "candidates": [1, 2]}),
    "batch": Call(
        "rank",
        "RankBatch",
        ranking_pb2.RankBatchRequest(requests=[RANK]),
        "POST",
        "/v1/rank/batch",
        {"requests": [{"user_id": "ann", "candidates": [1, 2]}]},
    ),
    "stream": Call("rank", "RankStream", RANK, "POST", "/v1/rank/stream", {"user_id": "ann", "candidates": [1, 2]}),
    "interests": Call(
        "rank",
        "Interests",
        ranking_pb2.InterestsRequest(user_id="ann"),
        "POST",
        "/v1/interests",
        {"user_id": "ann"},
        code="INVALID_ARGUMENT",  # the model ranks
    ),
    "prefill": Call("rank", "Prefill", ranking_pb2.PrefillRequest(user_id="ann"), "POST", "/v1/users/ann/prefill"),
    "model": Call("rank", "GetModel", ranking_pb2.GetModelRequest(), "GET", "/v1/model"),
    "models": Call("rank", "ListModels", ranking_pb2.ListModelsRequest(), "GET", "/v1/models"),
    "append": Call(
        "append",
        "AppendEvents",
        ranking_pb2.AppendEventsRequest(user_id="ann", events=[EVENT]),
        "POST",
        "/v1/users/ann/events",
        {"events": [{"item_id": 7, "actions": 1, "value": 3.0, "time_ms": 1_000_000}]},
    ),
    "appends": Call(
        "append",
        "AppendBatch",
        ranking_pb2.AppendBatchRequest(appends=[ranking_pb2.AppendEventsRequest(user_id="ann", events=[EVENT])]),
        "POST",
        "/v1/events",
        {"appends": [{"user_id": "ann", "events": [{"item_id": 7, "actions": 1, "value": 3.0, "time_ms": 1_000_000}]}]},
    ),
    "history": Call("read", "GetHistory", ranking_pb2.GetHistoryRequest(user_id="ann"), "GET", "/v1/users/ann/history"),
    "delete": Call("delete", "DeleteUser", ranking_pb2.DeleteUserRequest(user_id="ann"), "DELETE", "/v1/users/ann"),
}
RIGHTS = ("rank", "append", "read", "delete", "metrics", "admin")


def token(name: str) -> str:
    """The token of a caller of these tests."""
    return f"mfk_{name}-0123456789abcdefghijklmnopqrstuvwxyz"


def table(
    name: str,
    rights: Sequence[str],
    tokens: Sequence[tuple[str, datetime | None]] = (),
    certificates: Sequence[str] = (),
    more: str = "",
) -> str:
    """A caller of a file. certificates: lines as `uri = "..."`. more: lines of the caller's own."""
    lines = ["[[callers]]", f'name = "{name}"', f"rights = {json.dumps(list(rights))}", more]
    for text, expires in tokens:
        lines += ["[[callers.tokens]]", f'sha256 = "{sha256(text.encode()).hexdigest()}"']
        lines += [] if expires is None else [f"expires = {expires.isoformat()}"]
    for certificate in certificates:
        lines += ["[[callers.certificates]]", certificate]
    return "\n".join(lines) + "\n"


def written(path: Path, *tables: str) -> Path:
    """A file of these callers."""
    path.write_text("\n".join(tables))
    return path


def access_of(path: Path, **settings: object) -> Access:
    """The door of a server with this file of callers."""
    return Access(AccessSettings.model_validate({"tokens_file": path, **settings}))


def in_days(days: float) -> datetime:
    """A time from now."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


def one_of_each(path: Path) -> Path:
    """A caller for each right, who has that one alone and bears its name."""
    return written(path, *(table(right, [right], [(token(right), None)]) for right in RIGHTS))


async def by_grpc(clients: Clients, call: Call, *headers: str, body: bytes | None = None) -> tuple[str, str]:
    """The code and the text of a call with these values of `authorization`."""
    method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = clients.channel.unary_stream(
        f"/mfalcon.v1.Ranking/{call.method}"
    )
    message = call.message.SerializeToString() if body is None else body
    try:
        async for _ in method(message, timeout=60, metadata=tuple(("authorization", header) for header in headers)):
            pass  # one answer, or the parts of a stream
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


async def answer_of(clients: Clients, call: Call, *headers: str) -> httpx.Response:
    """The answer of HTTP to a call with these headers."""
    pairs = [("authorization", header) for header in headers]
    return await clients.http.request(call.verb, call.path, json=call.body, headers=pairs)


async def by_http(clients: Clients, call: Call, *headers: str) -> tuple[str, str]:
    """The code and the text of a call, as over gRPC."""
    answer = await answer_of(clients, call, *headers)
    if answer.status_code == 200:
        return "OK", ""
    error = answer.json()["error"]
    return error["code"], error["message"]


def bearer(text: str) -> str:
    """The header."""
    return f"Bearer {text}"
