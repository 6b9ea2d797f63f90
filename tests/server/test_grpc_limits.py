"""What one caller takes of a gRPC server is bounded, and no other caller's calls suffer."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from loadtest.faults import raw_http2
from proto import ranking_pb2
from server.logs import is_news
from tests.server.callers import GOOD, code_of, ranking
from tests.server.harness import Clients, health_of, next_status, serving, watch_health

RANK = "/mfalcon.v1.Ranking/Rank"
WATCH = "/grpc.health.v1.Health/Watch"
LONG = 60


async def until(true: Callable[[], bool]) -> None:
    """Return once it holds. Raises TimeoutError after a while."""
    async with asyncio.timeout(LONG):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_ok(call: Callable[[], Awaitable[object]]) -> None:
    """Return once a call is: a place is free a little after its last holder has the answer."""
    async with asyncio.timeout(LONG):
        while await code_of(call()) != "OK":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def send(clients: Clients, method: str, message: bytes) -> grpc.aio.AioRpcError | None:
    """The error with which bytes are answered."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = clients.channel.unary_unary(method)
    try:
        await call(message, timeout=30)
    except grpc.aio.AioRpcError as error:
        return error
    return None


@pytest.mark.parametrize("method", [RANK, WATCH])
async def test_calls_that_bring_no_message_take_nobody_elses_place(method: str) -> None:
    """From many connections, each within its streams: those that have waited longest are ended."""
    async with serving(grpc_max_calls=40, request_timeout_ms=60_000) as running, AsyncExitStack() as stack:
        others = [await stack.enter_async_context(raw_http2.connected(running.addresses.grpc)) for _ in range(4)]
        for other in others:
            await other.open_calls(method, 15)
            await other.round_trip()
        for _ in range(20):
            await until_ok(lambda: running.stub.Rank(GOOD, timeout=30))
        assert sum(other.heard[raw_http2.HEADERS] for other in others) >= 60 - 10


async def test_counts_are_checked_before_the_message_is_parsed() -> None:
    """What no protobuf is, is refused for its counts: so it was not parsed, let alone converted."""
    async with serving() as running:
        for method, events, says in (
            ("AppendEvents", b"\x12\0" * 2_000_000, "events: got more than 10000, must be 1 to 10000 events"),
            ("Rank", b"\x2a\0" * 2_000_000, "recent_events: got more than 1024, must be 0 to 1024 events"),
        ):
            refused = await send(running, f"/mfalcon.v1.Ranking/{method}", events + b"\xff\xff")
            assert refused is not None
            assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert refused.details() == says


async def test_the_largest_append_is_whole() -> None:
    """It is converted beside the loop."""
    events = [ranking_pb2.Event(item_id=number, actions=1, value=0.5, time_ms=number + 1) for number in range(10_000)]
    async with serving() as running:
        request = ranking_pb2.AppendEventsRequest(user_id="ann", events=events)
        assert (await running.stub.AppendEvents(request)).history_len == 10_000
        assert running.engine.histories["ann"].tolist() == [(n, 1, 0.5, n + 1) for n in range(10_000)]


@pytest.mark.parametrize("reset", [False, True], ids=["open", "reset"])
async def test_thousands_of_streams_on_a_connection_cancel_no_call_of_another(reset: bool) -> None:
    async with serving(request_timeout_ms=60_000) as running, raw_http2.connected(running.addresses.grpc) as flood:
        await running.stub.Rank(GOOD)
        async with ranking(running, at_least=20) as codes:
            await flood.open_calls(RANK, 10_000, reset=reset)
            await flood.round_trip()
        assert set(codes) == {"OK"}
        assert flood.num_refused > 5_000


async def test_one_connection_has_few_calls_in_front_of_everybody_elses() -> None:
    """gRPC hands calls over in the order in which they came, so those of a flood are what other callers wait for."""
    async with serving(request_timeout_ms=60_000) as running, raw_http2.connected(running.addresses.grpc) as flood:
        await flood.open_calls(RANK, 500)
        await flood.round_trip()
        assert flood.num_refused >= 400


async def test_a_caller_may_use_all_streams_of_its_connection() -> None:
    """More calls wait in the client. The ones answered are still being cleared away when it opens the next."""
    async with serving(grpc_max_streams=10) as running:
        await running.stub.Rank(GOOD)
        codes = await asyncio.gather(*[code_of(running.stub.Rank(GOOD)) for _ in range(300)])
        assert set(codes) == {"OK"}


async def test_more_calls_than_in_all_are_refused() -> None:
    async with serving(grpc_max_calls=2) as running:
        running.engine.gate.clear()
        kept = list[asyncio.Task[str]]()
        for number in (1, 2):  # one by one: of two calls one may wait for its message
            kept.append(asyncio.create_task(code_of(running.stub.Rank(GOOD))))
            await until(lambda: running.engine.num_entered == number)  # noqa: B023
        assert await code_of(running.stub.Rank(GOOD)) == "RESOURCE_EXHAUSTED"
        running.engine.gate.set()
        assert await asyncio.gather(*kept) == ["OK"] * 2
        await until_ok(lambda: running.stub.Rank(GOOD))


async def test_more_connections_than_are_welcome_are_closed() -> None:
    async with serving(grpc_max_connections=3) as running, AsyncExitStack() as stack:
        await running.stub.Rank(GOOD)
        first, second = [await stack.enter_async_context(raw_http2.connected(running.addresses.grpc)) for _ in range(2)]
        await first.round_trip()
        await second.round_trip()
        third = await stack.enter_async_context(raw_http2.connected(running.addresses.grpc))
        await asyncio.wait_for(third.closed.wait(), LONG)
        assert not first.closed.is_set()
        assert await code_of(running.stub.Rank(GOOD)) == "OK"


Watch = grpc.aio.UnaryStreamCall[bytes, health_pb2.HealthCheckResponse]


def watch(clients: Clients) -> Watch:
    """A health watch."""
    call: grpc.aio.UnaryStreamMultiCallable[bytes, health_pb2.HealthCheckResponse] = clients.channel.unary_stream(
        WATCH, response_deserializer=health_pb2.HealthCheckResponse.FromString
    )
    return call(b"")


async def first_status(watching: Watch) -> int:
    """What a watch says at once."""
    answer = await watching.read()
    assert isinstance(answer, health_pb2.HealthCheckResponse)
    return answer.status


async def test_more_watches_than_in_all_are_refused() -> None:
    serves = health_pb2.HealthCheckResponse.SERVING
    async with serving(grpc_max_watches=2) as running:
        first, second = watch(running), watch(running)
        assert [await first_status(first), await first_status(second)] == [serves, serves]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await first_status(watch(running))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.value.details() == "health watches: got 3, must be at most 2"
        assert await health_of(running.channel) == serves

        first.cancel()
        await until_ok(lambda: first_status(watch(running)))


async def test_a_message_that_does_not_come_ends_its_call() -> None:
    async with serving(request_timeout_ms=100) as running, raw_http2.connected(running.addresses.grpc) as connection:
        await connection.open_calls(RANK, 3)
        await until(lambda: connection.heard[raw_http2.HEADERS] == 3)


async def test_a_connection_of_an_age_is_asked_to_end_and_calls_go_on() -> None:
    async with serving(grpc_connection_age_s=0.2) as running, raw_http2.connected(running.addresses.grpc) as connection:
        async with ranking(running, at_least=20) as codes:
            await until(lambda: connection.heard[raw_http2.GOAWAY] > 0)
        assert set(codes) == {"OK"}


@pytest.mark.parametrize("method", ["Check", "Watch"])
async def test_health_is_asked_in_few_bytes(method: str) -> None:
    async with serving() as running:
        for message, says in (
            (b"\x0a\x80\x40" + b"a" * 2**13, "got 8195, must be at most 4096 bytes"),
            (b"\xff", "got 1 bytes that are no such message"),
        ):
            refused = await send(running, f"/grpc.health.v1.Health/{method}", message)
            assert refused is not None
            assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert refused.details() == f"grpc.health.v1.HealthCheckRequest: {says}"


async def test_reflection_is_asked_in_few_bytes() -> None:
    async with serving() as running:
        info: grpc.aio.StreamStreamMultiCallable[bytes, reflection_pb2.ServerReflectionResponse] = (
            running.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in info(iter([b"\x78\1" * 4_000])):
                pass
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details() == (
            "grpc.reflection.v1alpha.ServerReflectionRequest: got 8000, must be at most 4096 bytes"
        )


async def test_more_calls_of_reflection_than_tools_make_are_refused() -> None:
    most = 16

    async def question() -> AsyncIterator[bytes]:
        yield b"\x3a\0"
        await asyncio.Event().wait()

    async with serving() as running:
        info: grpc.aio.StreamStreamMultiCallable[bytes, reflection_pb2.ServerReflectionResponse] = (
            running.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        )

        async def asked() -> grpc.aio.StreamStreamCall[bytes, reflection_pb2.ServerReflectionResponse]:
            asking = info(question())  # to write to a call that has ended would be an error of the client's own
            assert await asking.read() != grpc.aio.EOF
            return asking

        open_calls = [await asked() for _ in range(most)]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asked()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.value.details() == "reflection: got 17 calls at once, must be at most 16"
        open_calls[0].cancel()
        await until_ok(asked)


async def test_a_rank_does_not_stand_behind_watches() -> None:
    """Both were sent at once, the rank last, and are here before any of it is taken up."""
    num_watches = 300
    async with (
        serving(grpc_max_streams=2 * num_watches) as running,
        raw_http2.connected(running.addresses.grpc) as connection,
    ):
        await connection.round_trip()
        calls = [(WATCH, b"")] * num_watches + [(RANK, GOOD.SerializeToString())]
        sent = b""
        for number, (method, message) in enumerate(calls):
            body = b"\0" + len(message).to_bytes(4, "big") + message
            stream = 2 * number + 1
            sent += raw_http2.frame(raw_http2.HEADERS, raw_http2.END_HEADERS, stream, raw_http2.call(method))
            sent += raw_http2.frame(raw_http2.DATA, raw_http2.END_STREAM, stream, body)
        await connection.send(sent)
        time.sleep(0.3)  # noqa: ASYNC251 (gRPC's threads read meanwhile)
        await until(lambda: len(connection.headers) == num_watches + 2)
        ended = next(at for at, headers in enumerate(connection.headers) if raw_http2.STATUS.search(headers))
        assert connection.statuses == [0]
        assert ended < num_watches / 2


async def test_a_watch_that_is_not_read_holds_up_no_other_and_no_drain() -> None:
    async with serving() as running, raw_http2.connected(running.addresses.grpc, reads=False) as stuck:
        await stuck.begin(WATCH, b"")
        await until(lambda: stuck.heard[raw_http2.HEADERS] > 0)
        async with asyncio.timeout(LONG):
            watch = watch_health(running.channel)
            assert await next_status(watch) == health_pb2.HealthCheckResponse.SERVING
            stopping = asyncio.create_task(running.service.stop())
            assert await next_status(watch) == health_pb2.HealthCheckResponse.NOT_SERVING
            await stopping


async def test_a_caller_that_leaves_while_it_is_answered_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(grpc_max_watches=1) as running:
        async with raw_http2.connected(running.addresses.grpc, reads=False) as leaving:
            await leaving.begin(WATCH, b"")
            await until(lambda: leaving.heard[raw_http2.HEADERS] > 0)
        async with asyncio.timeout(LONG):
            await until_ok(lambda: next_status(watch_health(running.channel)))  # so the first one has ended
    assert not [record for record in caplog.records if record.exc_info and is_news(record)]


@pytest.mark.parametrize("granted", ["99999999H", "99999999n", "999999999999999999999H"])
async def test_no_timeout_is_too_large(granted: str) -> None:
    """The server's own bounds it."""
    async with serving(request_timeout_ms=60_000) as running, raw_http2.connected(running.addresses.grpc) as connection:
        status = await connection.ask(RANK, GOOD.SerializeToString(), grpc_timeout=granted)
        assert status == grpc.StatusCode.OK.value[0]
        (deadline,) = running.engine.deadlines
        assert deadline is not None
        assert deadline <= time.monotonic() + 60


async def test_a_call_without_memory_is_refused_as_overload() -> None:
    async with serving() as running:
        running.engine.fault = MemoryError()
        refused = await send(running, RANK, GOOD.SerializeToString())
        assert refused is not None
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details() == "the server has no memory left for this request"


PARSE_WITHOUT_MEMORY = """
import resource
from proto import ranking_pb2
from server.grpc.edge import parsed
from server.grpc.wire import MessageLimits

raw = ranking_pb2.RankRequest(user_id="a" * (64 << 20)).SerializeToString()
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 20), resource.RLIM_INFINITY))
try:
    parsed(raw, ranking_pb2.RankRequest, MessageLimits("Rank"))
except MemoryError:
    print("MemoryError")
"""


def test_a_message_for_which_there_is_no_memory_is_still_a_message() -> None:
    """protobuf's error is that of bytes that are no message."""
    done = subprocess.run([sys.executable, "-c", PARSE_WITHOUT_MEMORY], capture_output=True, text=True, check=True)
    assert done.stdout == "MemoryError\n"


async def test_a_message_is_bounded_by_what_it_is_when_it_is_decompressed() -> None:
    bomb = ranking_pb2.RankRequest(user_id="a" * (64 << 20), candidates=[1])  # 64 KiB on the wire
    async with serving(grpc_compression=True) as running:
        small = await running.stub.Rank(GOOD, timeout=LONG, compression=grpc.Compression.Gzip)
        assert small.scores
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await running.stub.Rank(bomb, timeout=LONG, compression=compression)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.value.details() == "Decompressed message larger than max"
        assert (await running.stub.Rank(GOOD, timeout=LONG)).scores


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_nothing_is_unpacked_if_that_is_not_wished(compression: grpc.Compression) -> None:
    """To unpack 4 MiB takes the event loop as long as some ranks do."""
    packed = ranking_pb2.RankRequest(user_id="a" * (64 << 20), candidates=[1])
    async with serving() as running:
        for message in (GOOD, packed):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await running.stub.Rank(message, timeout=LONG, compression=compression)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "is disabled" in (refused.value.details() or "")
        assert (await running.stub.Rank(GOOD, timeout=LONG)).scores


async def test_metadata_is_bounded_by_a_setting() -> None:
    async with serving(max_metadata_bytes=40_000) as running:
        for size, code in ((30_000, "OK"), (45_000, "RESOURCE_EXHAUSTED"), (2**20, "RESOURCE_EXHAUSTED")):
            for _ in range(5):
                call = running.stub.Rank(GOOD, timeout=LONG, metadata=(("x", "a" * size),))
                assert await code_of(call) == code


async def test_reflection_can_be_switched_off() -> None:
    async with serving(reflection=False) as running:
        info: grpc.aio.StreamStreamMultiCallable[bytes, reflection_pb2.ServerReflectionResponse] = (
            running.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in info(iter([b""])):
                pass
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
