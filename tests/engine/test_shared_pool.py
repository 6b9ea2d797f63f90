"""A checkpoint that is reloaded shares the pool of the one before, where their pages lie alike: no second pool, the
states of both beside each other, the older ones giving way.
"""

import asyncio
import contextlib
import dataclasses
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Iterable

import numpy as np
import pytest
import torch

from mfalcon.backends.choice import AUTO, TRITON
from mfalcon.backends.select import serve
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.job import prefill_job
from mfalcon.engine.ranker import LoadedRanker, RankerOptions
from mfalcon.engine.reload import ReloadOptions
from mfalcon.errors import CheckpointError
from mfalcon.kvcache.fetch import Fetched
from mfalcon.kvcache.state import KVPool
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import Append, CacheInfo, CacheSource, Events
from tests.device import needs_interpreter
from tests.small import cold_scores, random_events, rank_request, small_checkpoint, small_config

KEPT = 8
"""States that the first tier holds."""
HISTORY = random_events(20)
LONG = random_events(100)
"""More than small pages are for: a state takes a page, and few fill a pool."""
WAIT_S = 60.0


def versioned(seed: int, num_layers: int = 2) -> Checkpoint:
    made = small_checkpoint("dfgr", torch.float32, seed, small_config(max_history=128, num_layers=num_layers))
    return dataclasses.replace(made, fingerprint=f"{seed:064d}"[::-1])


sampled = pytest.mark.parametrize(
    "here", ["cpu", pytest.param("triton", marks=[needs_interpreter, pytest.mark.thorough])], indirect=True
)
"""What the other tests show of Triton's interpreter too, at a quarter of a minute each."""
FIRST, SECOND, LARGER = versioned(1), versioned(7), versioned(9, num_layers=3)
ITEMS = FIRST.items.item_id[:9].tolist()


@contextlib.asynccontextmanager
async def running(here: CacheSource, warm_users: int = 100, warm_s: float = WAIT_S) -> AsyncIterator[Engine]:
    """A pool of few pages, a long state being one of them."""
    page = serve(FIRST.model, TRITON if here is CacheSource.GPU else AUTO).pool.layout.page_bytes
    options = RankerOptions(
        name="main", microbatch=16, kv_budget_bytes=KEPT * page, device_budget_bytes=(KEPT + 6) * page
    )
    engine = compose(FIRST, EngineConfig(threads=1, ranker=options, reload=ReloadOptions(warm_users, warm_s)))
    try:
        await asyncio.to_thread(engine.wait_ready, WAIT_S)
        yield engine
    finally:
        await asyncio.wait_for(engine.close(), WAIT_S)


async def rank(engine: Engine, number: int, history: Events = HISTORY) -> CacheSource:
    """Where the state was found; the answer is that of the version that it names."""
    result = await engine.rank(rank_request(f"user-{number}", ITEMS), None)
    named = next(one for one in (FIRST, SECOND, LARGER) if one.fingerprint.startswith(result.model_version))
    expected = cold_scores(named, history, rank_request("anyone", ITEMS)).numpy()
    assert np.abs(result.task_scores - expected).max() <= 1e-4  # float32, ratings up to 10
    return result.cache.source


async def fill(engine: Engine, users: Iterable[int], history: Events = HISTORY) -> None:
    for number in users:
        await engine.append_events(f"user-{number}", Append(history, 0))
        await rank(engine, number, history)


def pools(ranker: LoadedRanker) -> list[KVPool]:
    return [pool for pool in (ranker.prefix.pool, ranker.prefix.host) if pool is not None]


async def until(holds: Callable[[], bool]) -> None:
    """What a thread has just copied is let go of a moment later."""
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def staged(engine: Engine, checkpoint: Checkpoint) -> AsyncIterator[LoadedRanker]:
    """A next version that warms, as a reload has it before the swap."""
    device, new = engine.device, engine.catalog.default.successor(checkpoint)
    runner = await asyncio.wrap_future(device.call(new.warm))
    await asyncio.wrap_future(device.call(lambda: device.serve(device.runners | {"next": runner})))
    try:
        yield new
    finally:
        alone = {name: one for name, one in device.runners.items() if name != "next"}
        await asyncio.wrap_future(device.call(lambda: device.serve(alone)))
        await new.close()


async def encode(engine: Engine, number: int) -> CacheInfo:
    """By the next version."""
    reading = await engine.histories.log.read(f"user-{number}", 1.0)
    job = prefill_job(Fetched(reading.history), None, "next")
    engine.device.submit(job)
    return (await asyncio.wrap_future(job.future)).cache


async def test_a_reload_of_the_same_sizes_allocates_no_second_pool(here: CacheSource) -> None:
    async with running(here) as engine:
        await fill(engine, range(3))
        before = pools(engine.catalog.default)
        pages = [pool.accounts.num_pages for pool in before]
        first = engine.catalog.default
        gone: list[weakref.ref[object]] = [weakref.ref(first.cache.host), weakref.ref(first.prefix.stack)]
        del first
        for checkpoint in (SECOND, FIRST, SECOND):
            await engine.reload("main", lambda checkpoint=checkpoint: checkpoint)  # type: ignore[misc]
            assert all(one is other for one, other in zip(pools(engine.catalog.default), before, strict=True))
            assert [await rank(engine, number) for number in range(3)] == [here] * 3, "all were warmed"
        assert [pool.accounts.num_pages for pool in before] == pages
        gc.collect()
        assert [one() for one in gone] == [None] * 2, "the pool neither asks who is gone nor keeps weights"


async def test_other_sizes_have_a_pool_of_their_own(here: CacheSource) -> None:
    async with running(here) as engine:
        await fill(engine, range(3))
        before = [weakref.ref(pool) for pool in pools(engine.catalog.default)]
        gc.collect()
        gc.disable()
        try:
            await engine.reload("main", lambda: LARGER)
            await until(lambda: not any(pool() for pool in before))
        finally:
            gc.enable()
        assert await rank(engine, 2) is here


async def test_states_of_both_versions_live_beside_each_other(here: CacheSource) -> None:
    async with running(here) as engine:
        await fill(engine, range(2))
        async with staged(engine, SECOND):
            assert [(await encode(engine, number)).source for number in range(2)] == [CacheSource.NONE] * 2
            assert [await rank(engine, number) for number in range(2)] == [here] * 2
            assert [(await encode(engine, number)).source for number in range(2)] == [here] * 2
            await engine.delete_user("user-0")
            assert (await encode(engine, 1)).source is here and await rank(engine, 1) is here


@sampled
async def test_on_a_full_pool_the_next_version_takes_a_quarter_of_it_from_the_coldest(here: CacheSource) -> None:
    async with running(here) as engine:
        await fill(engine, range(KEPT + 4), LONG)
        async with staged(engine, SECOND) as new:
            users = iter(range(KEPT + 3, 0, -1))
            warmed = []
            while new.may_warm:
                warmed.append(next(users))
                await encode(engine, warmed[-1])
            accounts = new.prefix.pool.accounts
            assert accounts.num_pages / 4 <= len(warmed) <= accounts.num_pages / 4 + 1
            hot = range(KEPT + 3, 3 + len(warmed), -1)
            assert len(hot) == KEPT - len(warmed) >= KEPT // 3
            assert [await rank(engine, number, LONG) for number in hot] == [here] * len(hot)
            assert [(await encode(engine, number)).source for number in warmed] == [here] * len(warmed)
            for number in (100, 101, 102):  # the serving one makes room among its own
                await fill(engine, [number], LONG)
            assert [(await encode(engine, number)).source for number in warmed] == [here] * len(warmed)


@sampled
async def test_after_a_reload_on_a_full_pool_nothing_of_the_old_version_answers_or_stays(here: CacheSource) -> None:
    """The users seen last are warm; the others' old states serve nobody."""
    async with running(here, warm_users=2) as engine:
        await fill(engine, range(KEPT + 4), LONG)
        await engine.reload("main", lambda: SECOND)
        assert [await rank(engine, KEPT + 3, LONG), await rank(engine, KEPT + 2, LONG)] == [here] * 2
        cold = [await rank(engine, number, LONG) for number in range(KEPT + 2)]
        assert cold == [CacheSource.NONE] * len(cold)
        for number in range(KEPT + 4):
            await engine.delete_user(f"user-{number}")
        await until(
            lambda: all(one.accounts.num_free == one.accounts.num_pages for one in pools(engine.catalog.default))
        )


@sampled
async def test_the_user_seen_last_is_warm_however_many_there_are(here: CacheSource) -> None:
    async with running(here) as engine:
        await fill(engine, range(3 * KEPT))
        for checkpoint in (SECOND, LARGER):
            await engine.reload("main", lambda checkpoint=checkpoint: checkpoint)  # type: ignore[misc]
            assert await rank(engine, 3 * KEPT - 1) is here


async def test_a_refused_version_leaves_the_pool_as_it_was(here: CacheSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: LoadedRanker) -> None:
        raise CheckpointError("its scores are wrong")

    async with running(here) as engine:
        await fill(engine, range(KEPT))
        free = [pool.accounts.num_free for pool in pools(engine.catalog.default)]
        with monkeypatch.context() as patched:
            patched.setattr(LoadedRanker, "prove", refused)
            with pytest.raises(CheckpointError):
                await engine.reload("main", lambda: SECOND)
        assert [pool.accounts.num_free for pool in pools(engine.catalog.default)] == free
        await fill(engine, range(100, 100 + KEPT))
        assert await rank(engine, 100 + KEPT - 1) is here


@sampled
async def test_no_request_fails_while_versions_follow_each_other_on_a_full_pool(here: CacheSource) -> None:
    async with running(here, warm_s=0.1) as engine:
        users = range(3 * KEPT)
        for number in users:
            await engine.append_events(f"user-{number}", Append(HISTORY, 0))
        stop, asked = asyncio.Event(), 0

        async def client(seed: int) -> None:
            nonlocal asked
            rng = np.random.default_rng(seed)
            while not stop.is_set():
                result = await engine.rank(rank_request(f"user-{rng.choice(users)}", ITEMS), None)
                named = FIRST if FIRST.fingerprint.startswith(result.model_version) else SECOND
                assert np.abs(result.task_scores - expected[named.fingerprint]).max() <= 1e-4
                asked += 1

        request = rank_request("anyone", ITEMS)
        expected = {one.fingerprint: cold_scores(one, HISTORY, request).numpy() for one in (FIRST, SECOND)}
        clients = [asyncio.create_task(client(seed)) for seed in range(4)]
        for number in range(8):
            await engine.reload("main", (lambda: FIRST) if number % 2 else (lambda: SECOND))
        stop.set()
        await asyncio.gather(*clients)
        assert asked > 2 * KEPT
        for number in users:
            await engine.delete_user(f"user-{number}")
        await until(
            lambda: all(one.accounts.num_free == one.accounts.num_pages for one in pools(engine.catalog.default))
        )
