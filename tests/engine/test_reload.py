"""Another checkpoint under the same name: no request is lost, each answer is that of the version that it names, and a
checkpoint that is bad changes nothing.
"""

import asyncio
import dataclasses
import gc
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from loadtest.faults.redis_server import RedisServer
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.engine.reload import ReloadOptions
from mfalcon.errors import CheckpointError, ConfigError, Overloaded, ShuttingDown, UnknownModel
from mfalcon.history.chain import user_hash
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.redis.client import RedisSettings
from mfalcon.types import Append, CacheSource, Events, RankResult, no_events
from tests.small import cold_scores, random_events, rank_request, small_checkpoint, small_config

BOUND = 2e-6  # answers are float32, ratings up to 10: half a unit in the last place is 5e-7


def versioned(seed: int) -> Checkpoint:
    return dataclasses.replace(small_checkpoint(seed=seed), fingerprint=f"{seed:064d}"[::-1])


FIRST, SECOND = versioned(1), versioned(7)
ITEMS = FIRST.items.item_id[:9].tolist()
HISTORY = random_events(20)
WAIT_S = 60.0


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
        await engine.append_events(f"user-{number}", Append(HISTORY, 0))
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
                await engine.append_events(user_id, Append(histories[user_id][length : length + 1], length))
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
    assert answered > 20 and len(versions) == 2


async def test_what_was_served_before_is_let_go_without_a_garbage_collection(engine: Engine) -> None:
    """A server freezes what lives at its start, so no collection would ever look at its first model."""
    await engine.append_events("ann", Append(HISTORY, 0))
    await engine.rank(rank_request("ann", ITEMS), None)
    ranker = engine.catalog.default
    dead: list[weakref.ref[object]] = [weakref.ref(ranker), weakref.ref(ranker.prefix.stack)]
    del ranker
    gc.collect()
    gc.disable()
    try:
        await engine.reload("main", lambda: SECOND)
        for _ in range(200):  # the thread that closed it may be about to let go
            if not any(one() for one in dead):
                break
            await asyncio.sleep(0.01)
        assert [one() for one in dead] == [None] * 2
    finally:
        gc.enable()


async def test_with_redis_states_go_on_being_written_and_fetched(redis_server: RedisServer) -> None:
    redis = RedisOptions(RedisSettings(redis_server.url, 2.0, 2.0), prefix="reload")
    config = EngineConfig(
        threads=1, ranker=RankerOptions(name="main", microbatch=16), histories=HistoryOptions(redis=redis)
    )
    engine = compose(FIRST, config)
    await asyncio.to_thread(engine.wait_ready, WAIT_S)
    await engine.start()
    try:
        await engine.append_events("ann", Append(HISTORY, 0))
        await engine.rank(rank_request("ann", ITEMS), None)
        for served in (SECOND, FIRST, SECOND):
            await engine.reload("main", lambda served=served: served)  # type: ignore[misc]
            remote = engine.catalog.default.remote
            assert remote is not None
            await asyncio.sleep(0)
            await asyncio.wait_for(remote.writes.idle(), WAIT_S)
            stored = await remote.states.fetch(user_hash("ann"), 1, 2.0)
            assert stored[0] is not None, "the warmed state was written"
            assert_right(await engine.rank(rank_request("ann", ITEMS), None), HISTORY)
        await engine.delete_user("ann")
        last = engine.catalog.default.remote
        assert last is not None and await last.states.fetch(user_hash("ann"), 1, 2.0) == [None]
    finally:
        await asyncio.wait_for(engine.close(), WAIT_S)


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.02, 0.05, 0.1])
async def test_a_caller_that_leaves_stops_no_reload(engine: Engine, after_s: float) -> None:
    await engine.append_events("ann", Append(HISTORY, 0))
    await engine.rank(rank_request("ann", ITEMS), None)
    calling = asyncio.create_task(engine.reload("main", lambda: SECOND))
    await asyncio.sleep(after_s)
    calling.cancel()
    async with asyncio.timeout(WAIT_S):
        while engine.model.version != SECOND.fingerprint[:12]:  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0.01)
    result = await engine.rank(rank_request("ann", ITEMS), None)
    assert result.model_version == engine.model.version
    assert_right(result, HISTORY)
    assert list(engine.device.runners) == ["main"]


async def test_closing_does_not_wait_for_what_is_being_loaded() -> None:
    engine = compose(FIRST, EngineConfig(threads=1, ranker=RankerOptions(name="main", microbatch=16)))
    await asyncio.to_thread(engine.wait_ready, WAIT_S)
    release = threading.Event()

    def slow() -> Checkpoint:
        release.wait(WAIT_S)
        return SECOND

    reloading = asyncio.create_task(engine.reload("main", slow))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await engine.close()
    assert time.monotonic() - began < WAIT_S / 2
    release.set()
    with pytest.raises(ShuttingDown):
        await reloading
    with pytest.raises(ShuttingDown):
        await engine.reload("main", lambda: SECOND)


def test_a_process_ends_although_a_reload_still_reads() -> None:
    """Of storage that hangs, say: no executor's threads are waited for at exit."""
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def slow() -> Checkpoint:
        begun.set()
        release.wait(WAIT_S)
        ended.set()
        return SECOND

    async def reload_and_close() -> None:
        engine = compose(FIRST, EngineConfig(threads=1, ranker=RankerOptions(name="main", microbatch=16)))
        await asyncio.to_thread(engine.wait_ready, WAIT_S)
        reloading = asyncio.create_task(engine.reload("main", slow))
        await asyncio.to_thread(begun.wait, WAIT_S)
        await engine.close()
        with pytest.raises(ShuttingDown):
            await reloading

    try:
        asyncio.run(reload_and_close())
        assert begun.is_set() and not ended.is_set()
    finally:
        release.set()


async def test_users_are_remembered_in_order_over_reloads(engine: Engine) -> None:
    for number in range(12):
        await engine.rank(rank_request(f"user-{number}", ITEMS), None)
    expected = [f"user-{number}" for number in reversed(range(12))]
    for served in (SECOND, FIRST):
        assert engine.catalog.default.recent_users == expected
        await engine.reload("main", lambda served=served: served)  # type: ignore[misc]
    assert engine.catalog.default.recent_users == expected


async def test_a_deletion_during_a_reload_reaches_the_next_model_too(engine: Engine) -> None:
    await engine.append_events("ann", Append(HISTORY, 0))
    await engine.rank(rank_request("ann", ITEMS), None)
    reloading = asyncio.create_task(engine.reload("main", lambda: SECOND))
    await asyncio.sleep(0.01)
    await engine.delete_user("ann")
    await reloading
    assert engine.catalog.default.cache.num_bytes == 0
    assert (await engine.rank(rank_request("ann", ITEMS), None)).history_len == 0


def broken() -> Checkpoint:
    raise CheckpointError("model.safetensors: sha256 differs from manifest.json (truncated or modified)")


def poisoned() -> Checkpoint:
    made = small_checkpoint(seed=3)
    with torch.no_grad():
        for weight in made.prefix_model.stack.parameters():
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
    await engine.append_events("ann", Append(HISTORY, 0))
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


@pytest.mark.thorough
async def test_a_hundred_reloads_under_load_lose_nothing_and_give_the_memory_back(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 clients rank and append; minutes, so `make thorough` runs it. Prints what a swap cost."""
    truth = {f"user-{number}": no_events() for number in range(40)}
    stop, waits, swaps = asyncio.Event(), list[tuple[float, float]](), list[float]()

    async def client(number: int) -> None:
        rng = np.random.default_rng(number)
        while not stop.is_set():
            user_id = f"user-{number + 8 * int(rng.integers(5))}"  # each client has users of its own
            known = truth[user_id]
            if rng.random() < 0.2:
                new = random_events(1, int(rng.integers(2**31)), int(known["time_ms"][-1]) if len(known) else 10**12)
                truth[user_id] = np.concatenate([known, new])
                assert (await engine.append_events(user_id, Append(new, len(known)))).history_len == len(known) + 1
                continue
            began = time.monotonic()
            result = await engine.rank(rank_request(user_id, ITEMS), began + WAIT_S)
            waits.append((began, time.monotonic() - began))
            assert result.history_len == len(known)
            if rng.random() < 0.02:
                assert_right(result, known)
            await asyncio.sleep(0.005)

    clients = [asyncio.create_task(client(number)) for number in range(8)]
    sizes = []
    for number in range(100):
        await engine.reload("main", (lambda: FIRST) if number % 2 else (lambda: SECOND))
        swaps.append(time.monotonic())
        await asyncio.sleep(0.1)
        if number >= 9:
            gc.collect()
            sizes.append(resident_bytes())
    stop.set()
    await asyncio.gather(*clients)
    near = [wait for began, wait in waits if any(-0.05 <= began - swap <= 0.05 for swap in swaps)]
    far = [wait for began, wait in waits if all(abs(began - swap) > 0.05 for swap in swaps)]
    with capsys.disabled():
        print(
            f"\n100 reloads, {len(waits)} ranks; p99 {np.quantile(near, 0.99):.4f} s within 50 ms of a swap, "
            f"{np.quantile(far, 0.99):.4f} s elsewhere; resident {sizes[0] >> 20} MiB, at the end {sizes[-1] >> 20} MiB"
        )
    assert sizes[-1] < 1.05 * sizes[0]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
