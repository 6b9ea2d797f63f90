"""A history is read back as it was acknowledged, and looking at KV states disturbs none of them."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.errors import DeadlineExceeded, HistoryMismatch
from mfalcon.history.history import no_history
from mfalcon.types import Append, CacheSource, Events, HistoryPage, HistoryRequest
from tests.small import random_events, rank_request, small_checkpoint

CHECKPOINT = small_checkpoint()
ITEMS = CHECKPOINT.items.item_id
PER_EVENT = CHECKPOINT.prefix_model.tokens_per_event
WINDOW = CHECKPOINT.model.config.max_history
CONFIG = EngineConfig(threads=1, ranker=RankerOptions(microbatch=16))
EVENTS = random_events(200)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """Its log keeps 64 events for certain and at most 96."""
    config = dataclasses.replace(CONFIG, histories=HistoryOptions(log_max_events=64, log_slack=32))
    engine = compose(CHECKPOINT, config)
    engine.wait_ready(20)
    yield engine
    await engine.close()


async def append(engine: Engine, events: Events, user: str = "ann") -> bytes:
    return (await engine.append_events(user, Append(events))).version


async def prefill(engine: Engine, user: str = "ann") -> None:
    await engine.prefill(user, time.monotonic() + 20)


async def page(engine: Engine, first: int = 0, limit: int = 1_000, user: str = "ann") -> HistoryPage:
    return await engine.get_history(HistoryRequest(user, first, limit, with_states=True))


async def test_a_user_who_is_not_known(engine: Engine) -> None:
    for first in (0, 7, 2**64 - 1):
        empty = await page(engine, first)
        assert (empty.history_len, empty.base, empty.first, empty.next_first, len(empty.events)) == (0, 0, 0, 0, 0)
        assert empty.version == empty.page_version == no_history("ann").version
        assert not empty.stale and not empty.states


@pytest.mark.parametrize("limit", [1, 7, 32, 1_000])
async def test_pages_make_up_the_history(engine: Engine, limit: int) -> None:
    version = await append(engine, EVENTS[:70])
    whole, first, parts = no_history("ann").extended(EVENTS[:70]), 0, []
    while first < 70:
        read = await engine.get_history(HistoryRequest("ann", first, limit, version))
        assert (read.history_len, read.base, read.first, read.version) == (70, 0, first, version)
        assert read.page_version == whole.link(read.next_first) and len(read.events) <= limit
        parts.append(read.events)
        first = read.next_first
    assert np.array_equal(np.concatenate(parts), EVENTS[:70])
    beyond = await page(engine, 71)
    assert (beyond.first, beyond.next_first, len(beyond.events)) == (70, 70, 0)


async def test_what_is_trimmed_is_told(engine: Engine) -> None:
    version = await append(engine, EVENTS[:130])
    read = await page(engine, 5, 10)
    assert (read.history_len, read.base, read.first, read.version) == (130, 64, 64, version)
    assert np.array_equal(read.events, EVENTS[64:74])


async def test_a_history_that_changed_is_told_between_two_pages(engine: Engine) -> None:
    version = await append(engine, EVENTS[:9])
    await append(engine, EVENTS[9:10])
    with pytest.raises(HistoryMismatch, match=f"got {version.hex()}, the history has 10 events") as grown:
        await engine.get_history(HistoryRequest("ann", 5, 5, version))
    assert grown.value.history_len == 10
    await engine.delete_user("ann")
    with pytest.raises(HistoryMismatch, match="the history has 0 events"):
        await engine.get_history(HistoryRequest("ann", 5, 5, version))
    await append(engine, EVENTS[:9])
    assert len((await engine.get_history(HistoryRequest("ann", 5, 5, version))).events) == 4


async def test_a_deadline_that_has_passed(engine: Engine) -> None:
    with pytest.raises(DeadlineExceeded):
        await engine.get_history(HistoryRequest("ann"), time.monotonic() - 1)


async def test_states_are_told_with_their_tiers(here: CacheSource, engine: Engine) -> None:
    await append(engine, EVENTS[:8])
    assert not (await page(engine)).states
    await prefill(engine)
    states = {state.tier: state for state in (await page(engine)).states}
    state = states[here]
    assert (state.model, state.first_event, state.num_events) == (CHECKPOINT.model.config.name, 0, 8)
    assert state.num_tokens == 8 * PER_EVENT and state.num_bytes > 0 and state.fits
    assert not (await engine.get_history(HistoryRequest("ann"))).states

    await append(engine, EVENTS[8:9])  # still the beginning of the history
    assert all(state.fits and state.num_events == 8 for state in (await page(engine)).states)
    await append(engine, EVENTS[9 : WINDOW + 1])  # the window moves on
    assert not any(state.fits for state in (await page(engine)).states)


async def test_a_state_of_a_deleted_history_is_never_said_to_fit(engine: Engine) -> None:
    await append(engine, EVENTS[:8])
    await prefill(engine)
    await engine.delete_user("ann")
    await append(engine, EVENTS[1:9])
    assert not any(state.fits for state in (await page(engine)).states)


async def test_looking_at_a_state_does_not_make_it_younger() -> None:
    """Of two users the first is the least recently used, however often it is looked at: it goes for the third."""
    engine = compose(CHECKPOINT, CONFIG)
    engine.wait_ready(20)
    try:
        tier = engine.catalog.default.cache.host
        for user in ("ann", "bob", "eve"):
            await append(engine, EVENTS[:8], user)
        for user in ("ann", "bob"):
            await prefill(engine, user)
        before = tier.hottest()
        for _ in range(3):
            assert len((await page(engine, user="ann")).states) == 1
        assert tier.hottest() == before
        await engine.rank(rank_request("ann", ITEMS[:3].tolist()), time.monotonic() + 20)
        assert tier.hottest() == before[::-1]
    finally:
        await engine.close()


async def test_reading_while_others_write_gives_one_history(engine: Engine) -> None:
    """Every page is of some state that the history went through."""
    done = asyncio.Event()

    async def write() -> None:
        for number in range(60):
            await append(engine, EVENTS[number : number + 1])
            await asyncio.sleep(0)
        done.set()

    writing, seen = asyncio.create_task(write()), [0]
    while not done.is_set():
        read = await page(engine)
        assert read.version == no_history("ann").extended(EVENTS[: read.history_len]).version
        assert np.array_equal(read.events, EVENTS[: read.history_len]) and read.history_len >= seen[-1]
        seen.append(read.history_len)
        await asyncio.sleep(0)
    await writing
    assert len(set(seen)) > 5
