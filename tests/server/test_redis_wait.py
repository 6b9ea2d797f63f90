"""A server that was told of a Redis is not ready before it has met it."""

import asyncio
import logging

import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2

from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.errors import ConfigError
from mfalcon.redis.client import RedisSettings
from proto import ranking_pb2, ranking_pb2_grpc
from server.config import load_config
from server.service import Service
from tests.redis_fixtures import OwnRedis
from tests.server.harness import FREE_PORTS, health_of
from tests.small import small_checkpoint

NOT_SERVING, SERVING = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING
RANK = ranking_pb2.RankRequest(user_id="ann", candidates=[1])


def engine_with(url: str, *, holds_log: bool = True) -> Engine:
    histories = HistoryOptions(redis=RedisOptions(RedisSettings(url), holds_log=holds_log))
    config = EngineConfig(threads=1, ranker=RankerOptions(microbatch=8), histories=histories)
    engine = compose(small_checkpoint(), config)
    engine.wait_ready()
    return engine


def service(**settings: object) -> Service:
    return Service(load_config(None, FREE_PORTS | {"drain_seconds": 1} | settings))


@pytest.mark.parametrize("holds_log", [True, False])
async def test_it_is_ready_once_redis_has_answered(
    own_redis: OwnRedis, holds_log: bool, caplog: pytest.LogCaptureFixture
) -> None:
    redis = own_redis()
    redis.stop()
    server = service()
    addresses = await server.listen()
    with caplog.at_level(logging.WARNING):
        serving = asyncio.create_task(server.serve(engine_with(redis.url, holds_log=holds_log)))
        await asyncio.sleep(1)
    assert "waiting for redis://" in caplog.text
    assert "Connect call failed" in caplog.text
    async with (
        grpc.aio.insecure_channel(addresses.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
        httpx.AsyncClient(base_url=f"http://{addresses.http}", timeout=60) as http,
    ):
        readiness = await http.get("/readyz")
        assert (readiness.status_code, readiness.json()) == (503, {"status": "waiting for Redis"})
        assert await health_of(channel) == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="still waiting for Redis"):
            await ranking_pb2_grpc.RankingStub(channel).Rank(RANK)
        redis.start()
        async with asyncio.timeout(60):
            await serving
        assert (await http.get("/readyz")).status_code == 200
        assert await health_of(channel) == SERVING
        assert (await http.post("/v1/rank", json={"user_id": "ann", "candidates": [1]})).status_code == 200
        # Readiness does not follow Redis from here on: stale answers are better than none.
        redis.stop()
        await asyncio.sleep(0.6)
        assert (await http.get("/readyz")).status_code == 200
        await server.stop()


async def test_it_need_not_wait(own_redis: OwnRedis) -> None:
    redis = own_redis()
    redis.stop()
    server = service(ready_without_redis=True)
    addresses = await server.listen()
    async with asyncio.timeout(60), httpx.AsyncClient(base_url=f"http://{addresses.http}", timeout=60) as http:
        await server.serve(engine_with(redis.url))
        assert (await http.get("/readyz")).status_code == 200
        await server.stop()


async def test_a_redis_that_comes_late_and_would_evict_the_log_is_an_error(own_redis: OwnRedis) -> None:
    redis = own_redis(arguments=("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"))
    redis.stop()
    server = service()
    await server.listen()
    serving = asyncio.create_task(server.serve(engine_with(redis.url)))
    await asyncio.sleep(1)
    redis.start()
    with pytest.raises(ConfigError, match="allkeys-lru, which may evict the event log"):
        async with asyncio.timeout(60):
            await serving
    await server.stop()


async def test_a_stop_does_not_wait_for_redis(own_redis: OwnRedis) -> None:
    redis = own_redis()
    redis.stop()
    server = service()
    await server.listen()
    serving = asyncio.create_task(server.serve(engine_with(redis.url)))
    await asyncio.sleep(0.3)
    serving.cancel()
    async with asyncio.timeout(60):
        await server.stop()
