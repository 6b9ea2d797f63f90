"""The engine above the logs of one machine: a restart finds everything, and nothing is kept of who was evicted."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.features.counters import LikeRule
from mfalcon.history.budget import LogBudget
from mfalcon.history.file_log import FileLogOptions
from mfalcon.types import Append, CacheSource, Ids
from mfalcon.window import WindowRule
from tests.small import random_events, rank_request, small_checkpoint, small_config

CONFIG = small_config(with_counters=True)
CHECKPOINT = small_checkpoint(config=CONFIG)
ITEMS = CHECKPOINT.items.item_id
LIKE = LikeRule.of(CONFIG)


@asynccontextmanager
async def engine_of(histories: HistoryOptions) -> AsyncIterator[Engine]:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16), histories=histories))
    await asyncio.to_thread(engine.wait_ready)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def counted(engine: Engine) -> Ids:
    return engine.histories.counters.read(ITEMS).numbers[LIKE]


async def test_a_restart_finds_histories_and_counts_them_again(tmp_path: Path) -> None:
    options = HistoryOptions(file=FileLogOptions(tmp_path))
    async with engine_of(options) as engine:
        for number in range(70):
            await engine.append_events(f"user-{number}", Append(random_events(number + 1, number)))
        before = await engine.rank(rank_request("user-40", ITEMS[:9].tolist()), None)
        counts = counted(engine)
    async with engine_of(options) as engine:
        await until(lambda: np.array_equal(counted(engine), counts))
        after = await engine.rank(rank_request("user-40", ITEMS[:9].tolist()), None)
        assert np.array_equal(after.scores, before.scores)
        assert (after.history_len, after.history_version) == (41, before.history_version)
        assert not after.counters_stale
        await engine.delete_user("user-40")
        assert (await engine.rank(rank_request("user-40", [1]), None)).history_len == 0
    async with engine_of(options) as engine:
        assert (await engine.rank(rank_request("user-40", [1]), None)).history_len == 0
        assert (await engine.rank(rank_request("user-41", [1]), None)).history_len == 42


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_nothing_is_kept_of_who_was_evicted(kind: str, tmp_path: Path) -> None:
    file = FileLogOptions(tmp_path, "memory", step_s=0) if kind == "file" else None
    budget = LogBudget(max_users=1, when_full="evict")
    async with engine_of(HistoryOptions(file=file, budget=budget)) as engine:
        await engine.append_events("ann", Append(random_events(30)))
        await engine.rank(rank_request("ann", [1]), None)
        again = await engine.rank(rank_request("ann", [1]), None)
        assert again.cache.source is CacheSource.HOST
        history = (await engine.histories.log.read("ann", 5)).history
        cache = engine.catalog.default.cache
        window = WindowRule(CONFIG.max_history, CONFIG.window_chunk).start(len(history))
        assert cache is not None and cache.peek(history, window) > 0
        if kind == "file":
            await asyncio.sleep(1.1)  # it counts seconds
        await engine.append_events("bob", Append(random_events(20, 1)))
        await until(
            lambda: engine.metrics.registry.get_sample_value("mfalcon_deleted_users_total", {"by": "bounds"}) == 1
        )
        await until(lambda: cache.peek(history, window) == 0)
        assert history.generation in engine.histories.tombstones
        alone = counted(engine)
        assert (await engine.rank(rank_request("ann", [1]), None)).history_len == 0
        await engine.delete_user("bob")
        assert alone.any() and not counted(engine).any()


async def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
