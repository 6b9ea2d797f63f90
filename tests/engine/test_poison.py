"""A user whose events carry the largest values that are legal has finite scores for ever, and harms no neighbour."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
import torch

from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.ranker import RankerOptions
from mfalcon.types import Append
from tests.small import random_events, rank_request, small_checkpoint, small_config

SECONDS = 60
LARGEST = float(np.finfo(np.float32).max)
SMALL_SCALE = small_config().model_copy(update={"value_scale": 1e-30})


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16, torch.float16])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    checkpoint = small_checkpoint(dtype=request.param, config=SMALL_SCALE)
    engine = compose(checkpoint, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    engine.wait_ready(SECONDS)
    yield engine
    await asyncio.wait_for(engine.close(), SECONDS)


async def test_no_value_costs_a_user_more_than_one_token(engine: Engine) -> None:
    items = small_checkpoint().items.item_id[:9].tolist()
    events, of_neighbour = random_events(24), random_events(20, seed=1)
    await engine.append_events("neighbour", Append(of_neighbour, 0))
    before = await engine.rank(rank_request("neighbour", items), None)
    spoilt = events.copy()
    spoilt["value"][[3, 7, 12]] = LARGEST, -LARGEST, 1e6
    await engine.append_events("ann", Append(spoilt[:8], 0))
    for length in range(8, 24, 3):
        asked = rank_request("ann", items, recent=spoilt[length : length + 2])
        result = await engine.rank(asked, None)
        assert np.isfinite(result.scores).all()
        assert result.cache.reused_tokens == max(0, length - 3) * (length > 8)  # the state was kept
        await engine.append_events("ann", Append(spoilt[length : length + 3], length))
    await engine.prefill("ann", None)
    after = await engine.rank(rank_request("neighbour", items), None)
    assert np.array_equal(after.scores, before.scores)
