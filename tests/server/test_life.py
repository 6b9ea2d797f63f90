"""Start and stop: ports, draining, signals."""

import asyncio
import contextlib
import itertools
import os
import re
import signal
import socket
import sys
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2

from loadtest.faults import raw_http2
from mfalcon.errors import ConfigError
from proto import ranking_pb2, ranking_pb2_grpc
from server.addresses import authority
from server.config import load_config
from server.service import Service
from tests.server.fake_engine import KILLER, FakeEngine
from tests.server.harness import FREE_PORTS, health_of, next_status, serving, watch_health

ROOT = Path(__file__).parents[2]
RANK = ranking_pb2.RankRequest(user_id="ann", candidates=[1])
RANK_JSON = {"user_id": "ann", "candidates": [1]}
SOON = {"x-request-timeout-ms": "1000"}


async def started(*options: str, stdout: int = asyncio.subprocess.PIPE) -> asyncio.subprocess.Process:
    """A server of a fake engine, in a process of its own."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.server.serve_fake", *options),
        cwd=ROOT,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("frontends", [0, 2])
async def test_drain_lets_requests_finish_and_takes_no_more(frontends: int) -> None:
    async with serving(drain_seconds=60, frontends=frontends) as running:
        running.engine.gate.clear()
        watch = watch_health(running.channel)
        assert await next_status(watch) == health_pb2.HealthCheckResponse.SERVING
        by_grpc = asyncio.ensure_future(running.stub.Rank(RANK))
        by_http = asyncio.create_task(running.http.post("/v1/rank", json=RANK_JSON))
        async with asyncio.timeout(60):
            while running.engine.num_entered < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        stopping = asyncio.create_task(running.service.stop())
        assert await next_status(watch) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.stub.Rank(RANK, timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert refused.value.details() == "the server is shutting down; ask another one"
        num_held = 0
        async with asyncio.timeout(60):
            while (told := await running.http.post("/v1/rank", json=RANK_JSON, headers=SOON)).status_code != 503:
                assert frontends and told.status_code == 504  # taken by a front-end that hears of it later
                num_held += 1
            while await can_connect(running.addresses.http):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError) as unreachable:
            await running.stub.Rank(RANK, timeout=60)
        assert unreachable.value.code() is grpc.StatusCode.UNAVAILABLE
        async with httpx.AsyncClient(base_url=f"http://{running.addresses.http}", timeout=60) as newcomer:
            with pytest.raises(httpx.ConnectError):
                await newcomer.post("/v1/rank", json=RANK_JSON)
        assert not stopping.done()
        assert not running.engine.closed.is_set()

        running.engine.gate.set()
        assert (await by_grpc).scores
        assert (await by_http).status_code == 200
        async with asyncio.timeout(60):  # although the health watch is still open
            await stopping
        assert running.engine.closed.is_set()
        assert running.engine.num_cancelled <= num_held


async def test_a_lingering_server_answers_but_says_that_it_leaves() -> None:
    """A balancer learns of it later than a health check: what it still sends is answered, on a last connection."""
    async with serving(drain_linger_s=2.0) as running:
        kept = await running.http.post("/v1/rank", json=RANK_JSON)
        assert kept.status_code == 200 and "connection" not in kept.headers
        stopping = asyncio.create_task(running.service.stop())
        async with asyncio.timeout(60):
            while await health_of(running.channel) != health_pb2.HealthCheckResponse.NOT_SERVING:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        ready = await running.http.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
        for _ in range(3):
            answer = await running.http.post("/v1/rank", json=RANK_JSON)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            assert (await running.stub.Rank(RANK)).scores
        while (told := await running.http.post("/v1/rank", json=RANK_JSON)).status_code == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert (told.status_code, told.headers["connection"]) == (503, "close")
        await stopping


async def can_connect(address: str) -> bool:
    """Whether anybody listens there."""
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize("frontends", [0, 2])
async def test_grpc_may_listen_only_while_requests_are_answered(frontends: int) -> None:
    """A balancer that reads no gRPC status meets a closed port, not a refusal that it would hand on as an answer."""
    settings = FREE_PORTS | {"grpc_listen": "ready", "frontends": frontends}
    service = Service(load_config(None, settings))
    addresses = await service.listen()
    try:
        assert not await can_connect(addresses.grpc)
        assert await can_connect(addresses.http)
        with pytest.raises(ConfigError, match="cannot listen"):
            await Service(load_config(None, FREE_PORTS | {"grpc_port": addresses.grpc.rpartition(":")[2]})).listen()
        await service.serve(FakeEngine())
        async with grpc.aio.insecure_channel(addresses.grpc) as channel:
            stub = ranking_pb2_grpc.RankingStub(channel)
            assert (await stub.Rank(RANK)).scores
        await service.stop()
        assert not await can_connect(addresses.grpc)
    finally:
        if service.running:
            await service.stop()


async def test_a_server_that_never_served_stops_with_its_grpc_port_closed() -> None:
    service = Service(load_config(None, FREE_PORTS | {"grpc_listen": "ready"}))
    addresses = await service.listen()
    async with asyncio.timeout(60):
        await service.stop()
    assert not await can_connect(addresses.grpc)
    with socket.create_server(("127.0.0.1", int(addresses.grpc.rpartition(":")[2]))):
        pass


async def test_drain_does_not_wait_for_ever() -> None:
    async with serving(drain_seconds=0.2) as running:
        running.engine.gate.clear()
        by_grpc = asyncio.ensure_future(running.stub.Rank(RANK))
        by_http = asyncio.create_task(running.http.post("/v1/rank", json=RANK_JSON))
        async with asyncio.timeout(60):
            while running.engine.num_entered < 2:  # noqa: ASYNC110 (nobody is told)
                await asyncio.sleep(0.01)
        async with asyncio.timeout(60):
            await running.service.stop()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await by_grpc
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert refused.value.details() == "the server shut down before the answer was ready"
        answer = await by_http
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == refused.value.details()
        assert running.engine.closed.is_set()
        assert running.engine.num_cancelled == 2


@pytest.mark.parametrize("frontends", [0, 2])
async def test_no_http_request_is_lost_by_a_drain(frontends: int) -> None:
    """Each is answered, or its connection is refused before it is sent; so a client may always ask elsewhere.

    A connection that comes while another process closes its socket may be cut, but nobody has seen its request.
    """
    cut = list[str]()

    async def ask_until_refused(name: str) -> set[int]:
        statuses = set()
        async with httpx.AsyncClient(base_url=f"http://{running.addresses.http}", timeout=60) as http:
            for number in itertools.count():
                user_id = f"{name}, {number}"
                try:
                    statuses.add((await http.post("/v1/rank", json=RANK_JSON | {"user_id": user_id})).status_code)
                except httpx.ConnectError:
                    return statuses
                except (httpx.ReadError, httpx.WriteError):
                    assert frontends
                    cut.append(user_id)
        raise AssertionError

    async with serving(drain_seconds=60, frontends=frontends) as running:
        asking = asyncio.gather(*(ask_until_refused(f"user {number}") for number in range(8)))
        async with asyncio.timeout(60):
            while len(running.engine.requests) < 16:  # noqa: ASYNC110 (nobody is told)
                await asyncio.sleep(0.01)
        await running.service.stop()
        async with asyncio.timeout(60):
            assert set().union(*await asking) == {200, 503}
        assert not {request.user_id for request in running.engine.requests} & set(cut)


@pytest.mark.parametrize("frontends", [0, 2])
async def test_every_append_is_acknowledged_or_refused_in_words(frontends: int) -> None:
    async def append_until_refused(user_id: str) -> tuple[int, grpc.aio.AioRpcError]:
        """How many were acknowledged, and the end."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(running.addresses.grpc, options=options) as channel:
            stub = ranking_pb2_grpc.RankingStub(channel)
            for num_acknowledged in itertools.count():
                event = ranking_pb2.Event(item_id=7, time_ms=1 + num_acknowledged)
                request = ranking_pb2.AppendEventsRequest(
                    user_id=user_id, events=[event], expected_len=num_acknowledged
                )
                try:
                    await stub.AppendEvents(request)
                except grpc.aio.AioRpcError as error:
                    return num_acknowledged, error
        raise AssertionError

    async with serving(drain_seconds=60, frontends=frontends) as running:
        users = [f"user {i}" for i in range(16)]
        appending = asyncio.gather(*map(append_until_refused, users))
        async with asyncio.timeout(60):
            while len(running.engine.histories) < len(users):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await running.service.stop()
            ends = await appending
        for user_id, (num_acknowledged, error) in zip(users, ends, strict=True):
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert error.details() == "the server is shutting down; ask another one"
            assert num_acknowledged == len(running.engine.histories[user_id]) > 0


@pytest.mark.parametrize("transport", ["grpc", "http"])
async def test_a_taken_port_is_an_error(transport: str) -> None:
    async with serving() as running:
        port = int(getattr(running.addresses, transport).rpartition(":")[2])
        second = Service(load_config(None, FREE_PORTS | {f"{transport}_port": port}))
        with pytest.raises(
            ConfigError,
            match=rf"{transport}_port: cannot listen on 127.0.0.1:{port}: Address already in use; end what listens "
            rf"there, or give another {transport}_port",
        ):
            await second.listen()
        assert (await running.stub.Rank(RANK)).scores


@pytest.mark.parametrize("transport", ["grpc", "http"])
async def test_a_host_without_an_address_is_an_error(transport: str) -> None:
    service = Service(load_config(None, FREE_PORTS | {f"{transport}_host": "256.0.0.1", "insecure": True}))
    with pytest.raises(ConfigError, match=rf"{transport}_port: cannot listen on 256.0.0.1:0: (?!Address already)"):
        await service.listen()


def test_ipv6_addresses_stand_in_brackets() -> None:
    assert authority("::1", 5000) == "[::1]:5000"
    assert authority("127.0.0.1", 5000) == "127.0.0.1:5000"


@pytest.mark.parametrize(
    ("number", "frontends"), [(signal.SIGTERM, "0"), (signal.SIGINT, "0"), (signal.SIGTERM, "2"), (signal.SIGINT, "1")]
)
async def test_a_signal_drains_and_exits_with_0(number: signal.Signals, frontends: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.server.serve_fake", "quick", "0", frontends),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        ready = (await process.stdout.readline()).decode()
        found = re.fullmatch(r"ready grpc=(127\.0\.0\.1:\d+) http=(127\.0\.0\.1:\d+)\n", ready)
        assert found
        async with grpc.aio.insecure_channel(found[1]) as channel, httpx.AsyncClient(timeout=60) as http:
            assert (await ranking_pb2_grpc.RankingStub(channel).Rank(RANK)).scores
            assert (await http.get(f"http://{found[2]}/readyz")).status_code == 200
        process.send_signal(number)
        assert await process.wait() == 0
    assert (await process.stdout.read()).decode() == "draining\nstopped\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_it_at_once_and_in_silence(number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.server.serve_fake"),
        cwd=ROOT,
        env=os.environ | {"MFALCON_DRAIN_LINGER_S": "600"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert (await process.stdout.readline()).startswith(b"ready ")
        ended = asyncio.create_task(process.communicate())
        while not ended.done():
            # Not process.send_signal: that may reap what asyncio waits for, which then knows no exit code.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
            await asyncio.wait((ended,), timeout=0.2)
        _, complaints = await ended
    assert process.returncode == -number
    assert b"Traceback" not in complaints


async def test_a_timeout_that_is_none_is_refused_and_not_logged() -> None:
    process = await started()
    assert process.stdout is not None
    async with asyncio.timeout(60):
        address = (await process.stdout.readline()).decode().split()[1].removeprefix("grpc=")
        for granted in ("nan", "-1S", "1e300S", "5"):
            async with raw_http2.connected(address) as connection:
                status = await connection.ask(
                    "/mfalcon.v1.Ranking/Rank", RANK.SerializeToString(), grpc_timeout=granted
                )
                assert status == grpc.StatusCode.INTERNAL.value[0]
        process.terminate()
        _, complaints = await process.communicate()
    assert b"grpc-timeout" not in complaints


async def test_a_drain_needs_no_reader() -> None:
    reading, writing = os.pipe()
    process = await started(stdout=writing)
    os.close(writing)
    async with asyncio.timeout(60):
        assert (await asyncio.to_thread(os.read, reading, 200)).startswith(b"ready ")
        os.close(reading)
        process.send_signal(signal.SIGTERM)
        _, said = await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in said and b"BrokenPipe" not in said


async def test_a_hangup_ends_nothing_and_reloads() -> None:
    process = await started()
    assert process.stdout is not None and process.stderr is not None
    async with asyncio.timeout(60):
        http = (await process.stdout.readline()).decode().split("http=")[1].strip()
        process.send_signal(signal.SIGHUP)
        while b"was not reloaded from unused" not in (line := await process.stderr.readline()):
            assert line, "it ended"
        async with httpx.AsyncClient(timeout=60) as client:
            assert (await client.get(f"http://{http}/readyz")).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


@pytest.mark.parametrize("frontends", ["0", "1"])
async def test_a_lost_device_ends_the_process_which_says_why(frontends: str) -> None:
    """Health says so first, requests in flight are answered, and whoever restarts servers sees the exit code."""
    process = await started("quick", "0", frontends)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        addresses = dict(part.split("=", 1) for part in (await process.stdout.readline()).decode().split()[1:])
        async with (
            grpc.aio.insecure_channel(addresses["grpc"]) as channel,
            httpx.AsyncClient(base_url=f"http://{addresses['http']}", timeout=60) as http,
        ):
            stub, watch = ranking_pb2_grpc.RankingStub(channel), watch_health(channel)
            assert await next_status(watch) == health_pb2.HealthCheckResponse.SERVING
            assert (await stub.Rank(ranking_pb2.RankRequest(user_id=KILLER, candidates=[1]))).scores
            assert await next_status(watch) == health_pb2.HealthCheckResponse.NOT_SERVING
            with contextlib.suppress(httpx.TransportError):  # where it has ended by now
                assert (await http.get("/readyz")).status_code == 503
        said, errors = await process.communicate()
    assert process.returncode == 1
    assert b"the device thread ended: a kernel died" in errors and b"Traceback" not in errors
    assert said.decode().split() == ["draining", "stopped"]
