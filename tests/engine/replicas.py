"""Engines that share a Redis, as replicas do, for the tests of test_redis_*.py."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest

from loadtest.faults.redis_server import RedisServer
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.kvcache.cache import RemoteTier
from mfalcon.kvcache.cost import Estimate
from mfalcon.kvcache.decision import Decision
from mfalcon.kvcache.planner import Predictor, Situation
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.redis.client import RedisSettings
from mfalcon.types import CacheSource, Events, RankRequest, RankResult
from tests.small import cold_scores, rank_request, small_checkpoint

BOUND = 2e-6  # answers are float32, ratings up to 10: half a unit in the last place is 5e-7
PATIENCE_S = 2.0  # a busy test machine is no frozen Redis
CHECKPOINT = small_checkpoint()
ITEMS = CHECKPOINT.items.item_id[:9].tolist()
NONE, REDIS = CacheSource.NONE, CacheSource.REDIS

StartReplica = Callable[..., Awaitable[Engine]]


@pytest.fixture
async def replica(redis_server: RedisServer) -> AsyncIterator[StartReplica]:
    """Starts engines on one Redis; options are those of RedisOptions."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            architecture: str = "dfgr", url: str = redis_server.url, timeout_s: float = PATIENCE_S, **options: object
        ) -> Engine:
            redis = RedisOptions(RedisSettings(url, timeout_s, PATIENCE_S), prefix="t")
            config = EngineConfig(
                threads=1,
                ranker=RankerOptions(microbatch=16),
                histories=HistoryOptions(
                    redis=dataclasses.replace(redis, **options)  # type: ignore[arg-type]
                ),
            )
            checkpoint = CHECKPOINT if architecture == "dfgr" else small_checkpoint(architecture)
            engine = compose(checkpoint, config)
            await asyncio.to_thread(engine.wait_ready, 20)
            await engine.start()
            stack.push_async_callback(engine.close)
            return engine

        yield start


@pytest.fixture
def always_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tiny models encoding wins; here the way through Redis is what is tested."""

    def fetch(self: Predictor, at: Situation) -> Decision:
        recompute = Estimate(1.0, 1.0)
        if at.redis_tokens is None:
            return Decision("recompute", "redis unavailable", None, recompute)
        return Decision("fetch", "cheaper", Estimate(0.5, 0.5), recompute)

    monkeypatch.setattr(Predictor, "decide", fetch)


def request(user_id: str = "ann", recent: Events | None = None) -> RankRequest:
    return rank_request(user_id, ITEMS, recent=recent)


async def rank(engine: Engine, history: Events, user_id: str = "ann", recent: Events | None = None) -> RankResult:
    """A rank, checked against a cold forward over what the log must hold."""
    asked = request(user_id, recent)
    result = await engine.rank(asked, time.monotonic() + 60)
    assert result.history_len == len(history)
    expected = cold_scores(engine.catalog.default.checkpoint, history, asked).numpy()
    assert np.abs(result.task_scores - expected).max() <= BOUND
    return result


def remote(engine: Engine) -> RemoteTier:
    tier = engine.catalog.default.remote
    assert tier is not None
    return tier


async def settle(*engines: Engine) -> None:
    """Wait until everything that was kept has been written or dropped."""
    for engine in engines:
        assert engine.histories.redis is not None
        offload = engine.catalog.default.cache.offload
        if offload is not None:  # from a device states go by way of the host
            await asyncio.to_thread(offload.idle)
        await asyncio.sleep(0)
        await asyncio.wait_for(remote(engine).writes.idle(), 10)


def value(metrics: ServerMetrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def keys(server: RedisServer) -> set[str]:
    reply = server.command("KEYS", "*")
    assert isinstance(reply, list)
    return {key.decode().split("}")[-1] for key in reply if isinstance(key, bytes)}
