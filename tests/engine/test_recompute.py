"""A rank may ask to be computed without any KV state that is kept: the same scores, and the states as they were."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.ranker import RankerOptions
from mfalcon.history.chain import user_hash
from mfalcon.kvcache.tier import StateKey
from mfalcon.types import Append, CacheInfo, CacheSource
from tests.small import random_events, rank_request, small_checkpoint, small_config

CHECKPOINT = small_checkpoint(dtype=torch.float32, config=small_config(max_history=100, window_chunk=32))
ITEMS = np.tile(CHECKPOINT.items.item_id, 2)
EVENTS = random_events(70)
ASKED = rank_request("ann", ITEMS.tolist(), top_k=9)
ROUNDING = 1e-5  # of float32 where torch computes; the fused kernel has none


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    engine.wait_ready(60)
    yield engine
    await asyncio.wait_for(engine.close(), 60)


def kept(engine: Engine, user: str = "ann") -> list[tuple[CacheSource, StateKey, int, int]]:
    engine.catalog.default.cache.idle()
    return engine.catalog.default.cache.sizes(user_hash(user))


def lookups(engine: Engine) -> float | None:
    labels = {"model": engine.model.name, "source": "none"}
    return engine.metrics.registry.get_sample_value("mfalcon_state_lookups_total", labels)


async def test_scores_are_the_same_and_no_state_is_touched(engine: Engine) -> None:
    per_event = CHECKPOINT.prefix_model.tokens_per_event
    for start, stop in ((0, 37), (37, 38), (38, 70)):
        await engine.append_events("ann", Append(EVENTS[start:stop]))
        cached = await engine.rank(ASKED, None)
    await engine.append_events("bob", Append(EVENTS[:40]))
    await engine.rank(replace(ASKED, user_id="bob"), None)  # from now on the state used last
    cached = await engine.rank(ASKED, None)
    await engine.rank(replace(ASKED, user_id="bob"), None)
    cache, before = engine.catalog.default.cache, kept(engine)
    order = [key.user for key in cache.host.hottest()]
    counted = lookups(engine)
    anew = await engine.rank(replace(ASKED, recompute=True), None)

    assert cached.cache == CacheInfo(CacheSource.HOST, 70 * per_event, 0)
    assert anew.cache == CacheInfo(CacheSource.NONE, 0, 70 * per_event)
    if "avx" in engine.model.backend or "portable" in engine.model.backend:
        assert np.array_equal(anew.task_scores, cached.task_scores) and np.array_equal(anew.scores, cached.scores)
    else:
        assert np.abs(anew.task_scores - cached.task_scores).max() <= ROUNDING
    assert anew.history_version == cached.history_version
    assert kept(engine) == before and [key.user for key in cache.host.hottest()] == order
    assert lookups(engine) == counted


async def test_no_state_is_left_of_it(engine: Engine) -> None:
    await engine.append_events("ann", Append(EVENTS))
    for _ in range(2):
        anew = await engine.rank(replace(ASKED, recompute=True), None)
        assert (anew.cache.source, anew.cache.reused_tokens) == (CacheSource.NONE, 0)
    assert kept(engine) == []


async def test_it_shares_nothing_with_those_beside_it(engine: Engine) -> None:
    """One user's requests that come at once share one prefill; these do not."""
    await engine.append_events("ann", Append(EVENTS[:50]))
    results = await asyncio.gather(*(engine.rank(replace(ASKED, recompute=at % 2 == 1), None) for at in range(8)))
    plain, anew = results[::2], results[1::2]
    num_tokens = 50 * CHECKPOINT.prefix_model.tokens_per_event
    assert {result.cache.encoded_tokens for result in anew} == {num_tokens}
    assert sorted(result.cache.encoded_tokens for result in plain) == [0, 0, 0, num_tokens]
    for result in results:
        assert np.abs(result.task_scores - plain[0].task_scores).max() <= ROUNDING
