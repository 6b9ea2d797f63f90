"""What the event loop does ahead of a request, on a real Redis: a fetch that fails is a miss, whatever the cause."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from loadtest.faults.redis_server import RedisServer
from mfalcon.engine.redis_parts import RedisOptions, RedisParts
from mfalcon.errors import Overloaded
from mfalcon.history.history import Retention
from mfalcon.history.log import EventLog
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import KVCache, RemoteTier
from mfalcon.kvcache.cost import NOTHING, Estimate
from mfalcon.kvcache.decision import Decision
from mfalcon.kvcache.fetch import Fetched, Fetcher
from mfalcon.kvcache.offload_queue import Offer
from mfalcon.kvcache.planner import Predictor, Situation
from mfalcon.kvcache.state import KVPool, PlainLayout
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisSettings
from mfalcon.types import Append
from mfalcon.window import WindowRule
from tests.small import random_events, small_checkpoint

CHECKPOINT = small_checkpoint()
EVENTS = random_events(20)
PATIENCE_S = 2.0


class AlwaysFetch(Predictor):
    """On tiny models encoding wins; here the way through Redis is what is tested."""

    def decide(self, at: Situation) -> Decision:
        return Decision("fetch", "cheaper", Estimate(0.5, 0.5), Estimate(1.0, 1.0))


class BrokenLayout(PlainLayout):
    """Pages that cannot be written to."""

    error: type[Exception] = OSError

    def write(self, pages: Sequence[Tensor], layer: int, first: int, k: Tensor, v: Tensor) -> None:
        raise self.error("not to be written")


@dataclass(frozen=True, slots=True)
class Replica:
    """As much of an engine as reads and writes states in Redis."""

    tier: RemoteTier
    log: EventLog
    fetcher: Fetcher
    metrics: StateMetrics
    pool: KVPool

    def rejected(self) -> float:
        return self.metrics.registry.get_sample_value("mfalcon_chunks_rejected_total", {"reason": "decode"}) or 0.0

    async def open(self) -> Fetched:
        return await self.fetcher.open("ann", time.monotonic() + PATIENCE_S, NOTHING)


async def replica(server: RedisServer, stack: AsyncExitStack, layout: PlainLayout) -> Replica:
    model, metrics, tombstones = CHECKPOINT.prefix_model, StateMetrics(), Tombstones()
    settings = RedisSettings(server.url, PATIENCE_S, PATIENCE_S)
    options = RedisOptions(settings, prefix="t")
    parts = RedisParts(options, Retention(24, 8), metrics, lambda _: None)
    tier = parts.attach(model, "f", 1 << 20, tombstones)
    stack.push_async_callback(parts.close)
    stack.push_async_callback(parts.detach, tier)
    await parts.start()
    pool, log = KVPool(layout), parts.log
    assert log is not None
    cache = KVCache("f", pool, 1 << 20, tombstones, remote=tier)
    fetcher = Fetcher(log, cache, AlwaysFetch(), WindowRule(24, 8), metrics, PATIENCE_S, is_shared=False)
    return Replica(tier, log, fetcher, metrics, pool)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "mfalcon.kvcache.fetch"]


async def test_what_cannot_be_decoded_is_a_miss_that_is_counted_and_logged_once(
    redis_server: RedisServer,
    stack: AsyncExitStack,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = CHECKPOINT.prefix_model.kv_shape()
    good, broken = [await replica(redis_server, stack, layout(shape)) for layout in (PlainLayout, BrokenLayout)]
    await good.log.append("ann", Append(EVENTS, 0), None)
    history = (await good.open()).history
    state = good.pool.empty()
    with_times = state.extend(torch.from_numpy(EVENTS["time_ms"].copy()))
    for layer in range(shape.num_layers):
        k, v = state.pool.layout.read([], layer, 0, 0)
        with_times.write(layer, *(x.new_zeros(x.shape[0], len(EVENTS), x.shape[2]) for x in (k, v)))
    good.tier.writes.offer(Offer(history, 0, with_times))
    await asyncio.sleep(0)
    await good.tier.writes.idle()
    fetched = await good.open()
    assert fetched.fetched is not None and fetched.fetched.key.stop == len(EVENTS)
    for num_recent, fetches in ((4, True), (5, False)):  # beyond 24 events the window moves
        moved = await good.fetcher.open("ann", time.monotonic() + PATIENCE_S, NOTHING, num_recent)
        assert (moved.fetched is not None) is (moved.decision is not None) is fetches

    with caplog.at_level(logging.ERROR):
        for times in (1, 2):
            opened = await broken.open()
            assert len(opened.history) == len(EVENTS) and opened.fetched is None
            assert broken.rejected() == times
        assert len(logged(caplog)) == 1
        free = broken.pool.accounts.num_free
        assert (await broken.open()).fetched is None
        assert broken.pool.accounts.num_free == free  # what was begun holds nothing; pytest keeps a record's frames
        monkeypatch.setattr(BrokenLayout, "error", Overloaded)
        assert (await broken.open()).fetched is None
        assert broken.metrics.registry.get_sample_value("mfalcon_fetches_without_room_total") == 1
        monkeypatch.setattr(BrokenLayout, "error", ValueError)
        assert (await broken.open()).fetched is None
    assert len(logged(caplog)) == 2 and "ValueError" in logged(caplog)[1]
