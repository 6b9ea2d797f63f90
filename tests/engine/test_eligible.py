"""What may not be in a top is not, whatever else orders it, and no score moves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest

from mfalcon.engine.compose import EngineConfig, compose_all
from mfalcon.engine.engine import Engine
from mfalcon.engine.ensemble import EnsembleOptions, MemberOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.types import Append, RankRequest, RankResult, Rerank
from tests.small import random_events, rank_request, small_checkpoint

CHECKPOINT = small_checkpoint()
ITEMS = CHECKPOINT.items.item_id
EVENTS = random_events(30)
UNKNOWN = [5, 6, 7]
CANDIDATES = [*UNKNOWN, *ITEMS.tolist(), *EVENTS["item_id"][:3].tolist(), 5]


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Engine]:
    options = RankerOptions(microbatch=16)
    models = [(CHECKPOINT, replace(options, name=name)) for name in ("one", "two")]
    both = EnsembleOptions("both", (MemberOptions("one", 1.0), MemberOptions("two", 1.0)), budget_s=60, min_members=2)
    engine = compose_all(models, EngineConfig(threads=1, ranker=options), ensembles=[both])
    try:
        await asyncio.to_thread(engine.wait_ready, 60)
        await engine.start()
        await engine.append_events("ann", Append(EVENTS))
        yield engine
    finally:
        await engine.close()


def expected(request: RankRequest, result: RankResult) -> list[int]:
    """By a loop."""
    seen = {*EVENTS["item_id"].tolist(), *request.recent_events["item_id"].tolist()}
    may = [
        at
        for at, item in enumerate(request.candidates.tolist())
        if not (request.exclude_unknown and item not in ITEMS) and not (request.exclude_seen and item in seen)
    ]
    return sorted(may, key=lambda at: (-result.scores[at], at))[: request.top_k]


@pytest.mark.parametrize("rerank", [None, Rerank("mmr", 0.0), Rerank("dpp", 0.0)])
@pytest.mark.parametrize("model", ["one", "both"])
async def test_excluded_items_are_not_in_the_top(model: str, rerank: Rerank | None) -> None:
    async with running() as engine:
        whole = replace(rank_request("ann", CANDIDATES), top_k=1_000, rerank=rerank)
        scores = (await engine.rank(whole, None, model)).scores
        for unknown, seen, top_k in ((True, False, 5), (False, True, 5), (True, True, 1_000), (True, True, 0)):
            asked = replace(whole, exclude_unknown=unknown, exclude_seen=seen, top_k=top_k)
            result = await engine.rank(asked, None, model)
            np.testing.assert_allclose(result.scores, scores, rtol=1e-12)
            assert result.top.tolist() == expected(asked, result)
            assert result.top.dtype == np.uint32 and not result.rerank_skipped
            assert 5 in asked.candidates[result.unknown]


async def test_recent_events_are_seen_and_nothing_may_be_left() -> None:
    async with running() as engine:
        recent = random_events(1)
        recent["item_id"], recent["time_ms"] = ITEMS[0], EVENTS["time_ms"][-1]
        asked = replace(
            rank_request("ann", [int(ITEMS[0]), 5]),
            recent_events=recent,
            exclude_seen=True,
            exclude_unknown=True,
            top_k=2,
        )
        result = await engine.rank(asked, None)
        assert result.top.tolist() == [] and len(result.scores) == 2
        diverse = await engine.rank(replace(asked, rerank=Rerank("mmr", 0.5)), None)
        assert diverse.top.tolist() == [] and len(diverse.scores) == 2
