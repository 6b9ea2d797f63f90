"""Logs in one real Redis as replicas have them, each with a client and copies of its own."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Protocol

import pytest

from loadtest.faults.redis_server import RedisServer
from mfalcon.history.history import History, Retention
from mfalcon.history.redis_log import LogOptions, RedisLog
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, RedisSettings
from mfalcon.redis.keys import Keys

RETENTION = Retention(max_events=200, slack=64)
KEYS = Keys("t")
PATIENCE_S = 2.0  # a busy test machine is no frozen Redis


class Replica(Protocol):
    """Makes a log. url: None for the server of all tests. timeout_s: of a write."""

    def __call__(
        self,
        options: LogOptions | None = None,
        metrics: StateMetrics | None = None,
        *,
        url: str | None = None,
        timeout_s: float = PATIENCE_S,
        retention: Retention = RETENTION,
    ) -> RedisLog: ...


@pytest.fixture
async def replica(redis_server: RedisServer) -> AsyncIterator[Replica]:
    """Its clients are closed with the test."""
    async with AsyncExitStack() as stack:

        def make(
            options: LogOptions | None = None,
            metrics: StateMetrics | None = None,
            *,
            url: str | None = None,
            timeout_s: float = PATIENCE_S,
            retention: Retention = RETENTION,
        ) -> RedisLog:
            metrics = metrics or StateMetrics()
            client = RedisClient(RedisSettings(url or redis_server.url, PATIENCE_S, timeout_s), metrics)
            stack.push_async_callback(client.close)
            return RedisLog(client, KEYS, retention, metrics, options)

        yield make


async def read(log: RedisLog, user_id: str = "ann") -> History:
    """A user's history, which Redis itself has told."""
    reading = await log.read(user_id, PATIENCE_S)
    assert not reading.stale
    return reading.history
