"""Whatever the bytes, the answer is a result or a refusal, never UNKNOWN, INTERNAL or a broken connection."""

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from proto import ranking_pb2
from tests.server.harness import Running, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS = st.sampled_from(["Rank", "AppendEvents", "GetHistory", "Prefill", "DeleteUser", "GetModel"])
CODES = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
STATUSES = {200, 404, 405, 422}

GOOD = ranking_pb2.RankRequest(
    user_id="ann",
    candidates=[1, 2, 3],
    top_k=2,
    request_time_ms=5,
    recent_events=[ranking_pb2.Event(item_id=1, actions=1, value=1.0, time_ms=4)],
    context={"hour": 3},
    model="fake",
).SerializeToString()
GOOD_JSON = (
    b'{"user_id":"ann","candidates":[1,2,3],"top_k":2,"request_time_ms":5,"context":{"hour":3},'
    b'"recent_events":[{"item_id":1,"actions":1,"value":1.0,"time_ms":4}],"model":"fake"}'
)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[Running]:
    async with serving() as running:
        yield running


def mutated(good: bytes) -> st.SearchStrategy[bytes]:
    """A good message with some bytes replaced, removed or added."""

    def mutate(edits: list[tuple[int, int, bytes]]) -> bytes:
        message = bytearray(good)
        for start, num_removed, added in edits:
            message[start : start + num_removed] = added
        return bytes(message)

    edit = st.tuples(st.integers(0, len(good)), st.integers(0, 4), st.binary(max_size=4))
    return st.lists(edit, min_size=1, max_size=4).map(mutate)


async def call(running: Running, method: str, message: bytes) -> grpc.StatusCode:
    try:
        send: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = running.channel.unary_unary(
            f"/mfalcon.v1.Ranking/{method}"
        )
        await send(message, timeout=60)
    except grpc.aio.AioRpcError as error:
        assert error.details()
        return error.code()
    return grpc.StatusCode.OK


@settings(max_examples=200, deadline=None)
@given(method=METHODS, message=st.binary(max_size=64))
async def test_any_bytes_over_grpc(shared: Running, method: str, message: bytes) -> None:
    assert await call(shared, method, message) in CODES


@settings(max_examples=200, deadline=None)
@given(message=mutated(GOOD))
async def test_nearly_good_messages(shared: Running, message: bytes) -> None:
    assert await call(shared, "Rank", message) in CODES


@settings(max_examples=200, deadline=None)
@given(body=st.one_of(st.binary(max_size=64), mutated(GOOD_JSON)))
async def test_nearly_good_bodies(shared: Running, body: bytes) -> None:
    answer = await shared.http.post("/v1/rank", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in STATUSES
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


@settings(max_examples=100, deadline=None)
@given(user=st.binary(min_size=1, max_size=16))
async def test_any_user_id_in_a_path(shared: Running, user: bytes) -> None:
    path = "".join(f"%{byte:02X}" for byte in user)
    answer = await shared.http.delete(f"/v1/users/{path}")
    assert answer.status_code in STATUSES


async def test_good_messages_are_good(shared: Running) -> None:
    assert await call(shared, "Rank", GOOD) is grpc.StatusCode.OK
    answer = await shared.http.post("/v1/rank", content=GOOD_JSON, headers={"content-type": "application/json"})
    assert answer.status_code == 200
