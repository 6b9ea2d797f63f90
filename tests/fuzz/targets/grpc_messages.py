"""Any bytes as the message of any method: edge, codec, limits, handler. The first byte is the method."""

import grpc
from google.protobuf.message import Message

from loadtest.faults.internals import internals
from proto import ranking_pb2
from tests.fuzz.loop import run
from tests.fuzz.served import Defect, call, complaints

EVENT = ranking_pb2.Event(item_id=7, actions=1, value=3.0, time_ms=4)
METHODS: tuple[tuple[str, Message, type[Message]], ...] = (
    (
        "Rank",
        ranking_pb2.RankRequest(
            user_id="eve",
            candidates=[1, 2, 13, -1],
            top_k=2,
            request_time_ms=5,
            recent_events=[EVENT] * 2,
            context={"hour": 3},
            model="fake",
            allow_partial=True,
            rerank=ranking_pb2.Rerank(method="mmr", strength=0.5, depth=3, tail_weight=0.1),
            features=ranking_pb2.DenseFeatures(names=["price"], values=[1, 2, 3, 4]),
        ),
        ranking_pb2.RankResponse,
    ),
    (
        "AppendEvents",
        ranking_pb2.AppendEventsRequest(
            user_id="eve",
            events=[EVENT] * 3,
            expected_len=0,
            expected_version=bytes(16),
            append_id="once",
            late_events="clamp",
        ),
        ranking_pb2.AppendEventsResponse,
    ),
    (
        "GetHistory",
        ranking_pb2.GetHistoryRequest(user_id="eve", first=1, limit=9, expected_version=bytes(16), with_states=True),
        ranking_pb2.GetHistoryResponse,
    ),
    ("Prefill", ranking_pb2.PrefillRequest(user_id="eve", model="fake"), ranking_pb2.CacheInfo),
    ("DeleteUser", ranking_pb2.DeleteUserRequest(user_id="eve"), ranking_pb2.DeleteUserResponse),
    ("GetModel", ranking_pb2.GetModelRequest(model="fake"), ranking_pb2.GetModelResponse),
    ("ListModels", ranking_pb2.ListModelsRequest(), ranking_pb2.ListModelsResponse),
)
CODES = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


def seeds() -> list[bytes]:
    """A good message of each method, and one without its optional fields."""
    good = [bytes((number,)) + message.SerializeToString() for number, (_, message, _) in enumerate(METHODS)]
    append = ranking_pb2.AppendEventsRequest(user_id="eve", events=[EVENT])
    rank = ranking_pb2.RankRequest(user_id="eve", candidates=[1])
    history = ranking_pb2.GetHistoryRequest(user_id="eve")
    return [
        *good,
        b"\0" + rank.SerializeToString(),
        b"\1" + append.SerializeToString(),
        b"\2" + history.SerializeToString(),
    ]


def target(data: bytes) -> None:
    """Ends in a documented status with a reason that tells nothing of us, or in an answer that is one."""
    if not data:
        return
    method, _, answer_type = METHODS[data[0] % len(METHODS)]
    check(*run(call(method, data[1:])), answer_type, data)


def check(code: grpc.StatusCode, details: str, answer: bytes, answer_type: type[Message], data: bytes) -> None:
    """Raise Defect for what no caller may get."""
    complaints().raise_any()
    if code not in CODES:
        raise Defect(f"{code.name}: {details}")
    if code is grpc.StatusCode.OK:
        answer_type.FromString(answer)
        return
    if not details:
        raise Defect(f"{code.name} without a reason")
    if said := internals(details, data):
        raise Defect(f"{said!r} in {details!r}")
