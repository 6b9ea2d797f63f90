"""Two hundred hostile messages of each verb: each gets a documented answer, and nobody else notices."""

import random
from collections.abc import Iterator

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from proto import ranking_pb2
from server.grpc.codec import varint
from tests.server.callers import ranking
from tests.server.harness import serving

MAX_BYTES = 4 * 2**20
EVENT = ranking_pb2.Event(item_id=7, actions=1, value=3.0, time_ms=4)
VALID: dict[str, Message] = {
    "Rank": ranking_pb2.RankRequest(
        user_id="eve",
        candidates=range(50),
        top_k=2,
        request_time_ms=5,
        recent_events=[EVENT] * 9,
        context={"hour": 3},
        model="fake",
    ),
    "AppendEvents": ranking_pb2.AppendEventsRequest(user_id="eve", events=[EVENT] * 20, expected_len=0),
    "GetHistory": ranking_pb2.GetHistoryRequest(
        user_id="eve", first=1, limit=9, expected_version=bytes(16), with_states=True
    ),
    "Prefill": ranking_pb2.PrefillRequest(user_id="eve", model="fake"),
    "DeleteUser": ranking_pb2.DeleteUserRequest(user_id="eve"),
    "GetModel": ranking_pb2.GetModelRequest(model="fake"),
    "ListModels": ranking_pb2.ListModelsRequest(),
}
REPEATED = {
    "zeros": b"\0",
    "unknown numbers": b"\x78\1",
    "unknown groups": b"\x7b\x7c",
    "empty texts": b"\x0a\0",
    "empty field 2": b"\x12\0",
    "empty field 5": b"\x2a\0",
    "empty field 6": b"\x32\0",
    "candidates one by one": b"\x11" + b"\1" * 8,
    "whole events": b"\x12\x1c" + EVENT.SerializeToString(),
}
REFUSED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED}
REACHED = {grpc.StatusCode.OK, grpc.StatusCode.FAILED_PRECONDITION}
"""The engine was asked."""


def hostile(valid: bytes, chance: random.Random) -> Iterator[bytes]:
    """Two hundred of them."""
    for _ in range(40):
        yield chance.randbytes(chance.randrange(1, 200))
        yield valid[: chance.randrange(len(valid) + 1)]
        edited = bytearray(valid or b"\0")
        for _ in range(chance.randrange(1, 4)):
            edited[chance.randrange(len(edited))] = chance.randrange(256)
        yield bytes(edited)
    for tag in (b"\x0a", b"\x12", b"\x2a", b"\x32", b"\x7a"):
        for length in (1, 2**16, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1):
            yield valid + tag + varint(length)
        yield valid + tag + b"\xff" * 40  # a length without an end
        yield valid + tag + varint(4) + b"\xc3\x28\xff\xfe"  # no UTF-8
    for depth in (10, 99, 101, 10_000):
        yield valid + b"\x7b" * depth + b"\x7c" * depth
        nested = b""
        for _ in range(min(depth, 1_000)):
            nested = b"\x2a" + varint(len(nested)) + nested
        yield nested
    for part in REPEATED.values():
        yield valid + part * 300
        yield part * (2**16 // len(part))
        yield part * (MAX_BYTES // len(part))


@pytest.mark.parametrize("verb", VALID)
async def test_hostile_messages(verb: str) -> None:
    async with serving() as running:
        address = running.addresses.grpc
        async with (
            ranking(running, at_least=20) as neighbours,
            grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
        ):
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/mfalcon.v1.Ranking/{verb}")
            codes = []
            for message in hostile(VALID[verb].SerializeToString(), random.Random(verb)):
                try:
                    await call(message, timeout=60)
                    codes.append(grpc.StatusCode.OK)
                except grpc.aio.AioRpcError as error:
                    assert error.details()
                    codes.append(error.code())
        assert len(codes) >= 200
        assert set(codes) <= REFUSED | REACHED
        assert sum(code in REFUSED for code in codes) > 100 or verb == "ListModels"
        assert set(neighbours) == {"OK"}
        if verb not in ("GetModel", "ListModels"):
            num_reached = sum(code in REACHED for code in codes)
            assert running.engine.num_entered in (num_reached + len(neighbours), num_reached + len(neighbours) + 1)
