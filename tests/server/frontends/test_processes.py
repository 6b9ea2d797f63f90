"""Front-ends as processes: they share ports, one that dies loses its own calls only, and none outlives the engine."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from mfalcon.errors import ConfigError
from mfalcon.metrics.catalog.process import FRONTEND_RESTARTS
from proto import ranking_pb2, ranking_pb2_grpc
from server.addresses import Addresses
from server.config import load_config
from server.frontends.frontends import Frontends
from server.service import Service
from tests.server.fake_engine import FakeEngine
from tests.server.harness import FREE_PORTS, health_of, next_status, serving, watch_health

ROOT = Path(__file__).parents[3]
RANK = ranking_pb2.RankRequest(user_id="ann", candidates=[1])
RANK_JSON = {"user_id": "ann", "candidates": [1]}


@dataclass(frozen=True, slots=True)
class Fronted:
    """A fake engine with its front-ends."""

    engine: FakeEngine
    frontends: Frontends
    addresses: Addresses
    restarts: Counter


@asynccontextmanager
async def fronted(number: int, **settings: object) -> AsyncIterator[Fronted]:
    """A fake engine behind so many front-ends."""
    config = load_config(None, FREE_PORTS | {"frontends": number, "drain_seconds": 1} | settings)
    restarts = FRONTEND_RESTARTS.made(CollectorRegistry())
    frontends = Frontends(config, CollectorRegistry(), restarts)
    engine = FakeEngine()
    addresses = await frontends.listen()
    await frontends.serve(engine)
    yield Fronted(engine, frontends, addresses, restarts)
    await frontends.stop()


@asynccontextmanager
async def caller(address: str) -> AsyncIterator[tuple[grpc.aio.Channel, ranking_pb2_grpc.RankingStub]]:
    """A client with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield channel, ranking_pb2_grpc.RankingStub(channel)


async def ask_until_served(address: str, user_id: str = "ann") -> None:
    """Ask over new connections until an answer comes."""
    async with asyncio.timeout(60):
        while True:
            async with caller(address) as (_, stub):
                try:
                    await stub.Rank(ranking_pb2.RankRequest(user_id=user_id, candidates=[1]), timeout=0.5)
                    return
                except grpc.aio.AioRpcError as error:
                    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            await asyncio.sleep(0.02)


async def until_gone(*pids: int) -> None:
    """Wait until processes have ended that are not our children."""
    async with asyncio.timeout(60):
        while any(map(psutil.pid_exists, pids)):  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0.01)


async def test_both_transports_answer_by_every_front_end() -> None:
    async with serving(frontends=2) as running:
        for number in range(16):
            async with caller(running.addresses.grpc) as (channel, stub):
                assert (await stub.Rank(RANK)).scores
                assert await health_of(channel) == health_pb2.HealthCheckResponse.SERVING
            async with httpx.AsyncClient(base_url=f"http://{running.addresses.http}", timeout=60) as http:
                answer = await http.post("/v1/rank", json=RANK_JSON | {"user_id": f"user {number}"})
                assert answer.status_code == 200
        models = await running.stub.ListModels(ranking_pb2.ListModelsRequest())
        assert [model.name for model in models.models] == ["fake", "other"]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.stub.Rank(ranking_pb2.RankRequest(user_id="ann", candidates=[]))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("frontends", [0, 1])
@pytest.mark.parametrize("transport", ["grpc", "http"])
async def test_a_port_that_is_shared_is_taken_for_another_server(transport: str, frontends: int) -> None:
    async with fronted(1) as running:
        port = int(getattr(running.addresses, transport).rpartition(":")[2])
        second = Service(load_config(None, FREE_PORTS | {f"{transport}_port": port, "frontends": frontends}))
        with pytest.raises(ConfigError, match=rf"{transport}_port: cannot listen on .*:{port}: Address already in use"):
            await second.listen()
        await ask_until_served(running.addresses.grpc)


async def test_a_front_end_that_is_killed_loses_its_own_calls_and_is_started_again() -> None:
    async with fronted(2) as running:
        engine, address = running.engine, running.addresses.grpc
        engine.gate.clear()
        calls = [asyncio.create_task(ask_once(address, f"user {number}")) for number in range(16)]
        async with asyncio.timeout(60):
            while engine.num_entered < 16:  # noqa: ASYNC110 (nobody is told)
                await asyncio.sleep(0.01)
        victim, other = running.frontends.pids.values()
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(60):
            while not any(call.done() for call in calls):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while engine.num_cancelled < sum(call.done() for call in calls):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        engine.gate.set()
        answers = await asyncio.gather(*calls)
        assert set(answers) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert answers.count(grpc.StatusCode.UNAVAILABLE) == engine.num_cancelled
        async with asyncio.timeout(60):
            while len(running.frontends.pids) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert sum(sample.value for one in running.restarts.collect() for sample in one.samples[::2]) == 1
        assert other in running.frontends.pids.values() and victim not in running.frontends.pids.values()
        os.kill(other, signal.SIGSTOP)  # now the new one alone can answer
        try:
            await ask_until_served(address)
        finally:
            os.kill(other, signal.SIGCONT)


async def test_a_frozen_front_end_holds_up_no_other() -> None:
    async with fronted(2, frontend_stall_s=60) as running:  # it is not killed meanwhile
        frozen, _ = running.frontends.pids.values()
        os.kill(frozen, signal.SIGSTOP)
        try:
            for number in range(8):
                await ask_until_served(running.addresses.grpc, f"user {number}")
        finally:
            os.kill(frozen, signal.SIGCONT)


async def test_a_front_end_that_stays_frozen_is_killed_and_started_again() -> None:
    async with fronted(1, frontend_stall_s=1) as running:
        (frozen,) = running.frontends.pids.values()
        os.kill(frozen, signal.SIGSTOP)
        await until_gone(frozen)
        await ask_until_served(running.addresses.grpc)


async def test_callers_and_probes_are_told_of_an_engine_that_is_frozen() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.server.serve_fake", "quick", "0", "1"), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        addresses = dict(part.split("=", 1) for part in (await process.stdout.readline()).decode().split()[1:])
    async with (
        asyncio.timeout(120),
        caller(addresses["grpc"]) as (channel, stub),
        httpx.AsyncClient(base_url=f"http://{addresses['http']}", timeout=60) as http,
    ):
        watch = watch_health(channel)
        assert await next_status(watch) == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGSTOP)
        try:
            assert await next_status(watch) == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await http.get("/readyz")).status_code == 503
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Rank(RANK)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            process.send_signal(signal.SIGCONT)
        assert await next_status(watch) == health_pb2.HealthCheckResponse.SERVING
        assert (await stub.Rank(RANK)).scores
    process.terminate()
    await process.communicate()
    assert process.returncode == 0


async def test_no_front_end_outlives_an_engine_that_is_killed_and_callers_are_told() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.server.serve_fake", "quick", "0", "2"), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        addresses = dict(part.split("=", 1) for part in (await process.stdout.readline()).decode().split()[1:])
    pids = [child.pid for child in psutil.Process(process.pid).children()]
    assert len(pids) == 2
    async with caller(addresses["grpc"]) as (channel, stub):
        assert (await stub.Rank(RANK)).scores
        watch = watch_health(channel)
        assert await next_status(watch) == health_pb2.HealthCheckResponse.SERVING
        process.kill()
        assert await next_status(watch) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Rank(RANK, timeout=30)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    await process.communicate()
    assert process.returncode == -signal.SIGKILL
    await until_gone(*pids)


async def ask_once(address: str, user_id: str) -> grpc.StatusCode:
    """The code of a call over a connection of its own."""
    async with caller(address) as (_, stub):
        try:
            await stub.Rank(ranking_pb2.RankRequest(user_id=user_id, candidates=[1]), timeout=60)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


async def test_a_front_end_that_is_told_to_end_drains_and_is_started_again() -> None:
    async with fronted(1) as running:
        running.engine.gate.clear()
        call = asyncio.create_task(ask_once(running.addresses.grpc, "ann"))
        async with asyncio.timeout(60):
            await running.engine.entered.wait()
            (first,) = running.frontends.pids.values()
            os.kill(first, signal.SIGTERM)
            running.engine.gate.set()
            assert await call is grpc.StatusCode.OK
            while running.frontends.pids in ({}, {0: first}):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await ask_until_served(running.addresses.grpc)


async def test_metrics_are_of_all_and_do_not_go_back() -> None:
    async def num_ranks() -> float:
        async with httpx.AsyncClient(base_url=f"http://{running.addresses.http}", timeout=60) as http:
            text = (await http.get("/metrics")).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        series = [(one.name, *sorted(one.labels.items())) for one in samples]
        assert len(series) == len(set(series))
        loops = {one.labels["frontend"] for one in samples if one.name == "mfalcon_loop_lag_seconds_count"}
        assert loops == {"0", "1"}
        return sum(
            one.value for one in samples if one.name == "mfalcon_requests_total" and one.labels["verb"] == "rank"
        )

    async def rank_twelve_times() -> None:
        codes = await asyncio.gather(*(ask_once(running.addresses.grpc, f"user {number}") for number in range(12)))
        assert set(codes) == {grpc.StatusCode.OK}

    async def until_counted(number: int) -> None:
        """A call is counted a little behind its answer."""
        async with asyncio.timeout(60):
            while (counted := await num_ranks()) < number:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert counted == number

    async with fronted(2) as running:
        await rank_twelve_times()
        await until_counted(12)
        assert {await num_ranks() for _ in range(8)} == {12}  # whichever front-end it asks
        victim = running.frontends.pids[0]
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(60):
            while running.frontends.pids.get(0, victim) == victim:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await num_ranks() == 12
        await rank_twelve_times()
        await until_counted(24)
