"""Before the model is loaded: the ports are ours, the process lives, and nobody is told that it is ready."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2

from loadtest.faults.redis_server import free_port
from mfalcon_client import Client, Unavailable
from proto import ranking_pb2, ranking_pb2_grpc
from server.config import load_config
from server.service import Service
from tests.server.fake_engine import FakeEngine
from tests.server.harness import FREE_PORTS, health_of, serving

ROOT = Path(__file__).parents[2]
RANK = ranking_pb2.RankRequest(user_id="ann", candidates=[1])
STILL_LOADING = "the server is still loading; ask another one"


async def test_it_lives_and_refuses_until_it_has_loaded() -> None:
    service = Service(load_config(None, FREE_PORTS | {"drain_seconds": 1}))
    addresses = await service.listen()
    async with (
        grpc.aio.insecure_channel(addresses.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
        httpx.AsyncClient(base_url=f"http://{addresses.http}", timeout=60) as http,
    ):
        ranking = ranking_pb2_grpc.RankingStub(channel)
        assert (await http.get("/livez")).status_code == 200
        readiness = await http.get("/readyz")
        assert (readiness.status_code, readiness.json()) == (503, {"status": "loading"})
        assert (await http.get("/metrics")).status_code == 200
        assert await health_of(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        for refusal in (ranking.Rank(RANK), ranking.GetModel(ranking_pb2.GetModelRequest())):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await refusal
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert refused.value.details() == STILL_LOADING
        by_http = await http.post("/v1/rank", json={"user_id": "ann", "candidates": [1]})
        assert by_http.status_code == 503
        assert by_http.json()["error"] == {"code": "UNAVAILABLE", "message": STILL_LOADING, "field": None}

        await service.serve(FakeEngine())
        assert (await http.get("/readyz")).json() == {"status": "ready"}
        assert await health_of(channel) == health_pb2.HealthCheckResponse.SERVING
        assert (await ranking.Rank(RANK)).scores
        await service.stop()


async def test_a_client_waits_while_it_loads() -> None:
    service = Service(load_config(None, FREE_PORTS))
    addresses = await service.listen()
    with Client(addresses.grpc) as client:
        with pytest.raises(Unavailable, match=STILL_LOADING):
            await asyncio.to_thread(client.wait_ready, 1)
        waiting = asyncio.create_task(asyncio.to_thread(client.wait_ready, 60))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await service.serve(FakeEngine())
        await waiting
    await service.stop()


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.server.serve_fake", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            yield started
    finally:
        if started.returncode is None:
            started.kill()
            await started.communicate()


async def until_alive(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        while True:
            try:
                assert (await http.get("/livez")).status_code == 200
                return
            except httpx.ConnectError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_while_it_loads_ends_it_at_once(number: signal.Signals) -> None:
    port = free_port()
    async with process("endless", str(port)) as loading:
        await until_alive(port)
        loading.send_signal(number)
        async with asyncio.timeout(60):
            said, complaints = await loading.communicate()
        assert (loading.returncode, said) == (0, b"stopped\n")
        assert b"Traceback" not in complaints


async def test_a_load_that_fails_ends_it_with_the_cause() -> None:
    async with process("broken") as failing:
        said, complaints = await failing.communicate()
        assert failing.returncode == 1
        assert said == b""
        assert complaints.endswith(b"CheckpointError: somewhere: there is no such checkpoint\n")


async def test_a_taken_port_ends_it_before_it_loads() -> None:
    async with serving() as running:
        port = running.addresses.http.rpartition(":")[2]
        async with process("endless", port) as second:
            _, complaints = await second.communicate()
            assert second.returncode == 1
            assert b"Address already in use" in complaints
