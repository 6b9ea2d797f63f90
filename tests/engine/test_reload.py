"""Another checkpoint under the same name: no request is lost, each answer is that of the version that it names, and a
checkpoint that is bad changes nothing.
"""

import asyncio
import dataclasses
import gc
import time
import weakref
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
import torch

from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.reload import ReloadOptions
from mfalcon.errors import CheckpointError, ConfigError, Overloaded, UnknownModel
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import CacheSource, Events, RankResult
from tests.small import cold_scores, random_events, rank_request, small_checkpoint, small_config

BOUND = 2e-6  # answers are float32, ratings up to 10: half a unit in the last place is 5e-7


def versioned(seed: int) -> Checkpoint:
    return dataclasses.replace(small_checkpoint(seed=seed), fingerprint=f"{seed:064d}"[::-1])


FIRST, SECOND = versioned(1), versioned(7)
ITEMS = FIRST.items.item_id[:9].tolist()
HISTORY = random_events(20)
WAIT_S = 20.0


def assert_right(result: RankResult, history: Events) -> None:
    """The answer is that of the version that it names."""
    named = next(one for one in (FIRST, SECOND) if one.fingerprint.startswith(result.model_version))
    expected = cold_scores(named, history, rank_request("anyone", ITEMS)).numpy()
    assert np.abs(result.task_scores - expected).max() <= BOUND


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    config = EngineConfig(threads=1, ranker=RankerOptions(name="main", microbatch=16), reload=ReloadOptions(8, 0.5))
    engine = compose(FIRST, config)
    await asyncio.to_thread(engine.wait_ready, WAIT_S)
    yield engine
    await asyncio.wait_for(engine.close(), WAIT_S)


async def test_a_reload_swaps_the_weights_and_warms_recent_users(engine: Engine) -> None:
    for number in range(12):
        await engine.append_events(f"user-{number}", HISTORY, 0)
        await engine.rank(rank_request(f"user-{number}", ITEMS), None)
    old = await engine.rank(rank_request("user-11", ITEMS), None)
    info = await engine.reload("main", lambda: SECOND)
    assert info == engine.model and info.version != old.model_version and info.name == "main"
    for number, source in ((11, CacheSource.HOST), (4, CacheSource.HOST), (3, CacheSource.NONE)):
        result = await engine.rank(rank_request(f"user-{number}", ITEMS), None)
        assert result.model_version == info.version and result.cache.source is source, number
        assert_right(result, HISTORY)


async def test_no_request_is_lost_while_models_are_swapped_again_and_again(engine: Engine) -> None:
    histories = {f"user-{number}": random_events(24, seed=number) for number in range(6)}
    lengths = dict.fromkeys(histories, 0)
    stop, answered, versions = asyncio.Event(), 0, set[str]()

    async def client(user_id: str) -> None:
        nonlocal answered
        rng = np.random.default_rng(len(user_id) + answered)
        while not stop.is_set():
            length = lengths[user_id]
            if length < 24 and rng.random() < 0.05:
                await engine.append_events(user_id, histories[user_id][length : length + 1], length)
                lengths[user_id] = length + 1
                continue
            result = await engine.rank(rank_request(user_id, ITEMS), time.monotonic() + WAIT_S)
            if rng.random() < 0.1:  # a cold forward costs as much as a hundred requests
                assert_right(result, histories[user_id][:length])
            versions.add(result.model_version)
            answered += 1

    clients = [asyncio.create_task(client(user_id)) for user_id in histories]
    for number in range(12):
        await engine.reload("", (lambda: FIRST) if number % 2 else (lambda: SECOND))
        await asyncio.sleep(0.02)
    stop.set()
    await asyncio.gather(*clients)
    assert answered > 100 and len(versions) == 2


async def test_what_was_served_before_is_let_go(engine: Engine) -> None:
    await engine.append_events("ann", HISTORY, 0)
    await engine.reload("main", lambda: versioned(9))
    await engine.rank(rank_request("ann", ITEMS), None)
    ranker = engine.catalog.default
    dead: list[weakref.ref[object]] = [
        weakref.ref(ranker),
        weakref.ref(ranker.served.pool),
        weakref.ref(ranker.checkpoint.model),
    ]
    del ranker
    await engine.reload("main", lambda: SECOND)
    for _ in range(200):  # the thread that closed it may be about to let go
        gc.collect()
        if not any(one() for one in dead):
            break
        await asyncio.sleep(0.01)
    assert [one() for one in dead] == [None] * 3


async def test_a_deletion_during_a_reload_reaches_the_next_model_too(engine: Engine) -> None:
    await engine.append_events("ann", HISTORY, 0)
    await engine.rank(rank_request("ann", ITEMS), None)
    reloading = asyncio.create_task(engine.reload("main", lambda: SECOND))
    await asyncio.sleep(0.01)
    await engine.delete_user("ann")
    await reloading
    assert engine.catalog.default.store.num_bytes == 0
    assert (await engine.rank(rank_request("ann", ITEMS), None)).history_len == 0


def broken() -> Checkpoint:
    raise CheckpointError("model.safetensors: sha256 differs from manifest.json (truncated or modified)")


def poisoned() -> Checkpoint:
    made = small_checkpoint(seed=3)
    with torch.no_grad():
        for weight in made.model.stack.parameters():
            weight.fill_(torch.nan)
    return made


def too_long() -> Checkpoint:
    return small_checkpoint(config=small_config(max_history=100_000))


@pytest.mark.parametrize(
    ("load", "error", "why"),
    [
        (broken, CheckpointError, "sha256 differs"),
        (poisoned, CheckpointError, "not finite"),
        (too_long, ConfigError, "log_max_events: got 16384, must be at least 100000"),
    ],
)
async def test_a_bad_checkpoint_leaves_the_old_one_serving(
    engine: Engine, load: Callable[[], Checkpoint], error: type[Exception], why: str
) -> None:
    await engine.append_events("ann", HISTORY, 0)
    before = await engine.rank(rank_request("ann", ITEMS), None)
    with pytest.raises(error, match=why):
        await engine.reload("main", load)
    after = await engine.rank(rank_request("ann", ITEMS), None)
    assert after.model_version == before.model_version and after.cache.source is CacheSource.HOST
    assert (after.task_scores == before.task_scores).all()
    assert len(engine.device.runners) == 1
    assert engine.metrics.registry.get_sample_value("mfalcon_reloads_total", {"model": "main", "result": "failed"}) == 1
    await engine.reload("main", lambda: SECOND)


async def test_one_reload_of_a_model_at_a_time(engine: Engine) -> None:
    first = asyncio.create_task(engine.reload("main", lambda: SECOND))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="is being reloaded"):
        await engine.reload("", lambda: FIRST)
    await first
    with pytest.raises(UnknownModel):
        await engine.reload("other", lambda: FIRST)
