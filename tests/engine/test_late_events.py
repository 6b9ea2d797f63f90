"""A stream that is out of order, through a whole engine: scores after inserts are those of a cold one, and only what
lies behind the first inserted event is encoded again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest
import torch

from loadtest.faults.redis_server import RedisServer
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.errors import InvalidInput
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.redis.client import RedisSettings
from mfalcon.types import Append, CacheSource, Events, LateEvents, RankResult
from tests.engine.replicas import value
from tests.small import random_events, rank_request, small_checkpoint, small_config

CHECKPOINTS = {
    architecture: small_checkpoint(
        dtype=torch.float32, config=small_config(architecture=architecture, max_history=192, window_chunk=32)
    )
    for architecture in ("dfgr", "hstu")
}
SECONDS = 60
Start = Callable[..., Awaitable[Engine]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            checkpoint: Checkpoint, url: str | None = None, *, late_events: LateEvents = "reject"
        ) -> Engine:
            redis = None if url is None else RedisOptions(RedisSettings(url, 2.0, 2.0), prefix="late")
            histories = HistoryOptions(log_max_events=256, log_slack=32, redis=redis, late_events=late_events)
            options = EngineConfig(threads=1, ranker=RankerOptions(microbatch=16), histories=histories)
            engine = compose(checkpoint, options)
            await asyncio.to_thread(engine.wait_ready, SECONDS)
            await engine.start()
            stack.push_async_callback(engine.close)
            return engine

        yield start


def distinct(length: int, seed: int = 0) -> Events:
    """Events of which no two are of one moment."""
    events = random_events(length, seed)
    events["time_ms"] += np.arange(length)
    return events


async def insert(engine: Engine, events: Events, user_id: str = "ann") -> tuple[int, ...]:
    return (await engine.append_events(user_id, Append(events, late_events="insert"))).inserted


async def ranked(engine: Engine, user_id: str = "ann") -> RankResult:
    items = engine.catalog.default.checkpoint.items.item_id[:20]
    return await engine.rank(rank_request(user_id, items.tolist()), None)


async def assert_cold(start: Start, checkpoint: Checkpoint, warm: RankResult, events: Events) -> None:
    """To the bit: of one backend, and a history that the other engine is given at once."""
    cold = await start(checkpoint)
    await cold.append_events("ann", Append(events))
    truth = await ranked(cold)
    assert truth.history_version == warm.history_version
    assert truth.cache.source is CacheSource.NONE
    np.testing.assert_array_equal(warm.task_scores, truth.task_scores)


@pytest.mark.parametrize("architecture", CHECKPOINTS)
async def test_scores_after_inserts_are_a_cold_engines_and_only_the_rest_is_encoded(
    start: Start, architecture: str
) -> None:
    checkpoint = CHECKPOINTS[architecture]
    engine, events = await start(checkpoint), distinct(140, seed=2)
    per_event = 2 if architecture == "hstu" else 1
    late = [130, 101, 99, 70, 33, 32, 5]
    await insert(engine, np.delete(events, late))
    assert (await ranked(engine)).cache.encoded_tokens == per_event * (140 - len(late))
    length = 140 - len(late)
    for number, at in enumerate(late):
        present = np.delete(events, late[number + 1 :])
        position = at - sum(later < at for later in late[number + 1 :])
        assert await insert(engine, events[at : at + 1]) == ((0,) if position < length else ())
        length += 1
        result = await ranked(engine)
        kept = position // 32 * 32
        assert result.cache.encoded_tokens == per_event * (length - kept)
        assert result.cache.reused_tokens == per_event * kept
        if at in (101, 33, 5):
            await assert_cold(start, checkpoint, result, present)
    await assert_cold(start, checkpoint, await ranked(engine), events)


async def test_an_insert_before_the_window_moves_the_window_as_any_event_does(start: Start) -> None:
    """The window does not begin at the first event: one that is inserted before it is not seen, but moves the rest."""
    checkpoint = CHECKPOINTS["dfgr"]
    engine, events = await start(checkpoint), distinct(251, seed=3)
    late = [3, 100]
    await insert(engine, np.delete(events, late))
    await ranked(engine)
    for number, at in enumerate(late):
        await insert(engine, events[at : at + 1])
        await assert_cold(start, checkpoint, await ranked(engine), np.delete(events, late[number + 1 :]))


async def test_a_shuffled_stream_in_two_replicas_is_the_sorted_one(start: Start, redis_server: RedisServer) -> None:
    """With a log and states in Redis: an insert at one replica makes nothing stale at the other."""
    checkpoint = CHECKPOINTS["dfgr"]
    replicas = [await start(checkpoint, redis_server.url) for _ in range(2)]
    events = distinct(180, seed=4)
    random = np.random.default_rng(5)
    stream = events[np.argsort(np.arange(180) + np.where(random.random(180) < 0.1, random.uniform(0, 40, 180), 0))]
    encoded = 0
    for first in range(0, 180, 6):
        await insert(replicas[first // 6 % 2], stream[first : first + 6])
        for engine in replicas:
            result = await ranked(engine)
            encoded += result.cache.encoded_tokens
        if first in (60, 120):
            seen = stream[: first + 6]
            await assert_cold(start, checkpoint, result, seen[np.argsort(seen["time_ms"], kind="stable")])
    for engine in replicas:
        await assert_cold(start, checkpoint, await ranked(engine), events)
    assert encoded < 2 * 180 * 30 / 4  # of what whole histories each time would be


@pytest.mark.parametrize(("late_events", "told"), [("clamp", "clamped"), ("insert", "inserted")])
async def test_what_a_policy_says_is_what_the_log_holds(start: Start, late_events: str, told: str) -> None:
    engine, events = await start(CHECKPOINTS["dfgr"]), distinct(50, seed=6)
    await engine.append_events("ann", Append(events[10:]))
    answer = await engine.append_events("ann", Append(events[:10], late_events=late_events))
    assert getattr(answer, told) == tuple(range(10))
    counted = {
        fate: value(engine.metrics, "mfalcon_late_events_total", fate=fate)
        for fate in ("inserted", "clamped", "discarded")
    }
    assert counted == {"inserted": 0, "clamped": 0, "discarded": 0} | {told: 10}
    expected = events if late_events == "insert" else np.concatenate([events[10:], events[:10]])
    if late_events == "clamp":
        expected["time_ms"][40:] = events["time_ms"][49]
    history = (await engine.histories.log.read("ann", 1)).history
    assert history.events.tobytes() == expected.tobytes()


async def test_recent_events_that_another_producer_has_overtaken_are_seen_as_of_the_newest(start: Start) -> None:
    """And change nothing for anybody else: the next request is scored by the log alone."""
    checkpoint, events = CHECKPOINTS["dfgr"], distinct(60, seed=7)
    items = checkpoint.items.item_id[:20].tolist()
    taking, refusing = await start(checkpoint, late_events="insert"), await start(checkpoint)
    late = events[[40, 45]]
    behind = late.copy()
    behind["time_ms"] = events["time_ms"][-1]
    for engine in (taking, refusing):
        await engine.append_events("ann", Append(np.delete(events, [40, 45])))
    before = await ranked(taking)
    found = await taking.rank(rank_request("ann", items, recent=late), None)
    truth = await refusing.rank(rank_request("ann", items, recent=behind), None)
    np.testing.assert_array_equal(found.task_scores, truth.task_scores)
    np.testing.assert_array_equal((await ranked(taking)).task_scores, before.task_scores)
    with pytest.raises(InvalidInput, match=r"recent_events\[0\]\.time_ms"):
        await refusing.rank(rank_request("ann", items, recent=late), None)
