"""A log that went back is noticed by whoever knew more of it, counted, and told to the next writer."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.faults.redis_server import RedisServer
from mfalcon.history.history import History, Reading, no_history
from mfalcon.history.redis_header import HEADER_BYTES
from mfalcon.history.redis_log import LogOptions, RedisLog
from mfalcon.history.rollbacks import num_lost
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, RedisSettings, Reply
from mfalcon.redis.command import Command
from mfalcon.types import EVENT_DTYPE, Append, Events
from tests.history.replicas import KEYS, PATIENCE_S, RETENTION, Replica
from tests.small import random_events

KEY = KEYS.log(no_history("ann").user)
EVENTS = random_events(40)
LATER = random_events(30, 1, 10**13)


def rollbacks(metrics: StateMetrics) -> float:
    return metrics.registry.get_sample_value("mfalcon_log_rollbacks_total") or 0.0


async def write(log: RedisLog, events: Events) -> int:
    """What the writer is told to be lost."""
    return (await log.append("ann", Append(events), None)).lost_events


@pytest.mark.parametrize("signed", [LogOptions(), LogOptions(secret=b"s" * 32)])
@pytest.mark.parametrize("cached", [True, False])
async def test_a_log_that_is_put_back_is_noticed(
    replica: Replica, redis_server: RedisServer, signed: LogOptions, cached: bool
) -> None:
    """As after a failover to a replica of Redis that lagged: rightly signed, and shorter."""
    metrics = StateMetrics()
    options = signed if cached else replace(signed, cache_bytes=0)
    log, stranger = replica(options, metrics), replica(options=options)
    assert await write(log, EVENTS) == 0
    old = redis_server.command("GET", KEY)
    assert isinstance(old, bytes)
    assert await write(log, LATER[:20]) == 0
    redis_server.command("SET", KEY, old)
    assert len((await stranger.read("ann", PATIENCE_S)).history) == 40
    assert len((await log.read("ann", PATIENCE_S)).history) == 40
    assert rollbacks(metrics) == 1
    assert await write(log, LATER[20:25]) == 20, "the next writer is told"
    assert await write(log, LATER[25:]) == 0, "once"
    assert rollbacks(metrics) == 1
    assert await write(stranger, LATER[29:]) == 0


async def test_a_log_that_went_back_and_grew_again_is_noticed(replica: Replica, redis_server: RedisServer) -> None:
    """Another writer has filled the gap: as long as before, later by the clock, and yet without what was known."""
    metrics = StateMetrics()
    log, other = replica(metrics=metrics), replica()
    await write(log, EVENTS)
    old = redis_server.command("GET", KEY)
    assert isinstance(old, bytes)
    await write(log, LATER[:20])
    redis_server.command("SET", KEY, old)
    await write(other, LATER[10:])
    assert await write(log, LATER[29:]) == 10, "the first ten of twenty are in nobody's log"
    assert rollbacks(metrics) == 1


async def test_a_log_that_vanished_is_noticed(replica: Replica, redis_server: RedisServer) -> None:
    for options in (LogOptions(), LogOptions(cache_bytes=0)):
        for reads_first in (True, False):
            metrics = StateMetrics()
            log = replica(options, metrics)
            await write(log, EVENTS)
            redis_server.flush()
            if reads_first:
                assert len((await log.read("ann", PATIENCE_S)).history) == 0
            assert await write(log, LATER) == 40
            assert rollbacks(metrics) == 1
            redis_server.flush()


async def test_a_former_life_that_comes_back_is_noticed(replica: Replica, redis_server: RedisServer) -> None:
    """A deletion that Redis has lost: the deleted user's log is there again."""
    metrics = StateMetrics()
    log, other = replica(metrics=metrics), replica()
    await write(log, EVENTS)
    old = redis_server.command("GET", KEY)
    assert isinstance(old, bytes)
    await other.delete("ann", None)
    assert len((await log.read("ann", PATIENCE_S)).history) == 0
    assert rollbacks(metrics) == 0
    redis_server.command("SET", KEY, old)
    assert len((await log.read("ann", PATIENCE_S)).history) == 40
    assert rollbacks(metrics) == 1


async def test_what_was_meant_is_no_rollback(replica: Replica, redis_server: RedisServer) -> None:
    """Deletions here and elsewhere, new lives, cuts, growth elsewhere, a log of the first format written anew."""
    metrics = StateMetrics()
    log, other = replica(metrics=metrics), replica()
    for round_ in range(3):
        assert await write(log, EVENTS) == 0
        assert await write(other, LATER[:5]) == 0
        if round_ == 1:
            await log.delete("ann", None)
        elif round_ == 2:
            await other.delete("ann", None)
            assert await write(other, EVENTS) == 0
        await log.read("ann", PATIENCE_S)
        await other.delete("ann", None)
        await log.read("ann", PATIENCE_S)
        redis_server.command("DEL", KEY)  # as the tombstone expires
        await log.read("ann", PATIENCE_S)
    for start in range(0, 1_000, 50):
        await write(other, random_events(50, start, 10**12 + start * 10**9))
        if start % 300 == 0:
            await log.read("ann", PATIENCE_S)
    assert (await log.read("ann", PATIENCE_S)).history.base > 0
    assert rollbacks(metrics) == 0


async def test_a_former_format_that_is_put_back_is_noticed(replica: Replica, redis_server: RedisServer) -> None:
    metrics = StateMetrics()
    log = replica(metrics=metrics)
    await write(log, EVENTS)
    value = redis_server.command("GET", KEY)
    assert isinstance(value, bytes)
    first_format = value[:4] + b"\1\0\0\0" + value[8:80] + value[HEADER_BYTES:]
    redis_server.command("SET", KEY, first_format)
    await log.read("ann", PATIENCE_S)
    assert rollbacks(metrics) == 1 and await write(log, LATER) == 0, "no event is gone, but the log went back"


def life(events: Events, base: int = 0) -> History:
    history = no_history("ann", b"12345678").extended(events)
    return history.trimmed(base) if base else history


@settings(deadline=None, max_examples=200)
@given(
    known=st.lists(st.integers(0, 5), max_size=80),
    gone=st.sets(st.integers(0, 79)),
    added=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 5)), max_size=10),
)
def test_what_is_lost_is_what_is_in_one_and_not_in_the_other(
    known: list[int], gone: set[int], added: list[tuple[int, int]]
) -> None:
    now = [item for at, item in enumerate(known) if at not in gone]
    for at, item in added:
        now.insert(at, item)
    expected = Counter(known) - Counter(now)
    assert num_lost(life(of(known)), life(of(now))) == expected.total()


def of(items: list[int]) -> Events:
    events = np.zeros(len(items), dtype=EVENT_DTYPE)
    events["item_id"] = items
    return events


def test_what_is_no_longer_kept_is_not_lost() -> None:
    events = random_events(200, 3)
    events["time_ms"] = np.arange(200)
    for base in (32, 64, 128):
        assert num_lost(life(events), life(events, base)) == 0
        late = np.insert(events, 150, events[0])
        late["time_ms"][150] = late["time_ms"][149]
        assert num_lost(life(events), life(late, base)) == 0
        assert num_lost(life(events), life(np.delete(events, [150, 151]), base)) == 2


class LateReplies(RedisClient):
    """Whose replies to reads wait at the gate: what they tell is old when they come."""

    def __init__(self, settings: RedisSettings, metrics: StateMetrics) -> None:
        super().__init__(settings, metrics)
        self.gate, self.asked = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def call(self, op: str, key: str, commands: Sequence[Command], timeout_s: float) -> list[Reply]:
        """As ever; a read may wait."""
        replies = await super().call(op, key, commands, timeout_s)
        if op == "log_read":
            self.asked.set()
            await self.gate.wait()
        return replies


@pytest.fixture
async def late(redis_server: RedisServer) -> AsyncIterator[tuple[RedisLog, LateReplies, StateMetrics]]:
    metrics = StateMetrics()
    client = LateReplies(RedisSettings(redis_server.url, PATIENCE_S, PATIENCE_S), metrics)
    yield RedisLog(client, KEYS, RETENTION, metrics, LogOptions(cache_bytes=1 << 20)), client, metrics
    client.gate.set()
    await client.close()


async def begin_to_read(log: RedisLog, client: LateReplies) -> "asyncio.Task[Reading]":
    """A read whose reply has left Redis and waits."""
    client.asked.clear()
    client.gate.clear()
    reading = asyncio.create_task(log.read("ann", PATIENCE_S))
    await client.asked.wait()
    return reading


@pytest.mark.parametrize("known", [0, 2])
async def test_a_reply_that_comes_late_is_no_loss_and_replaces_nothing(
    replica: Replica, late: tuple[RedisLog, LateReplies, StateMetrics], known: int
) -> None:
    """A read of 3 events is overtaken by an append that makes 5."""
    (log, client, metrics), other, events = late, replica(), random_events(6)
    if known:
        await other.append("ann", Append(events[:known]), None)
        await log.read("ann", PATIENCE_S)
    await other.append("ann", Append(events[known:3]), None)
    reading = await begin_to_read(log, client)
    appending = asyncio.create_task(log.append("ann", Append(events[3:5]), None))
    assert (await appending).history_len == 5
    client.gate.set()
    assert len((await reading).history) == 3
    copy = log.copy(no_history("ann").user)
    assert copy is not None and len(copy) == 5
    assert (await log.append("ann", Append(events[5:]), None)).lost_events == 0
    assert not metrics.registry.get_sample_value("mfalcon_log_rollbacks_total")


@pytest.mark.parametrize("deletes", [True, False])
async def test_a_reply_of_another_life_that_comes_late_is_no_loss(
    late: tuple[RedisLog, LateReplies, StateMetrics], deletes: bool
) -> None:
    """A read of no events, or of a life that is deleted meanwhile, is overtaken by the first append of a new life."""
    (log, client, metrics), events = late, random_events(6)
    if deletes:
        await log.append("ann", Append(events[:2]), None)
        log.drop(no_history("ann").user)
    reading = await begin_to_read(log, client)
    if deletes:
        await log.delete("ann", None)
    await log.append("ann", Append(events[2:3]), None)
    client.gate.set()
    assert len((await reading).history) == (2 if deletes else 0)
    assert (await log.append("ann", Append(events[3:]), None)).lost_events == 0
    assert not metrics.registry.get_sample_value("mfalcon_log_rollbacks_total")
