"""Deltas of item rows for an engine: beside requests, other replicas, reloads and deletions."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from loadtest.faults.redis_server import RedisServer
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.engine.reload import ReloadOptions
from mfalcon.errors import CheckpointError, InvalidInput, ShuttingDown, UnknownModel
from mfalcon.items.delta import Delta
from mfalcon.items.live import LiveOptions
from mfalcon.kvcache.item_rows import RowPolicy
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.redis.client import RedisSettings
from mfalcon.types import Append, CacheSource, ItemsPolicy, ItemsRequest, RankResult, Rerank
from tests.engine.replicas import settle, value
from tests.items.oracle import delta_of, numbered, patched
from tests.small import cold_scores, random_events, rank_request, small_checkpoint

BOUND = 2e-6  # answers are float32
WAIT_S = 60.0
FIRST = dataclasses.replace(small_checkpoint(), fingerprint="1" * 64)
SECOND = dataclasses.replace(small_checkpoint(seed=7), fingerprint="7" * 64)
ITEMS = FIRST.items.item_id
NEW = np.array([77, 10**15])
CANDIDATES = [*ITEMS[:9].tolist(), *NEW.tolist()]
HISTORY = random_events(20)


async def started(policy: ItemsPolicy = "exact", redis: RedisOptions | None = None) -> Engine:
    live = LiveOptions(RowPolicy(policy), max_new_items=100)
    options = RankerOptions(name="main", microbatch=16, live=live)
    config = EngineConfig(
        threads=1, ranker=options, reload=ReloadOptions(8, 0.5), histories=HistoryOptions(redis=redis)
    )
    engine = compose(FIRST, config)
    await asyncio.to_thread(engine.wait_ready, WAIT_S)
    await engine.start()
    return engine


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = await started()
    yield engine
    await asyncio.wait_for(engine.close(), WAIT_S)


def assert_right(result: RankResult, table: Checkpoint, user: str = "ann", num_events: int = 20) -> None:
    truth = cold_scores(table, HISTORY[:num_events], rank_request(user, CANDIDATES)).numpy()
    assert np.abs(result.task_scores - truth).max() <= BOUND


async def test_what_reranks_and_lists_reads_the_table_of_now(engine: Engine) -> None:
    """As a server of a checkpoint with these rows: new items are like others, changed ones like what they became."""
    deltas = [delta_of(FIRST, np.concatenate([ITEMS[4:], NEW]), 3), delta_of(FIRST, ITEMS[:2], 4)]
    for delta in deltas:
        await engine.update_items("main", delta)
    other = compose(patched(FIRST, deltas), EngineConfig(threads=1, ranker=RankerOptions(name="main", microbatch=16)))
    plain = rank_request("ann", CANDIDATES, top_k=len(CANDIDATES))
    stale = compose(FIRST, EngineConfig(threads=1, ranker=RankerOptions(name="main", microbatch=16)))
    for method in ("mmr", "dpp", "msd"):
        request = dataclasses.replace(plain, rerank=Rerank(method, 0.9, depth=20))
        tops = [(await one.rank(request, None)).top.tolist() for one in (engine, other, stale)]
        assert tops[0] == tops[1] != tops[2]
    listed = await engine.items(ItemsRequest("", NEW[:1], 1_000, 0))
    assert listed.num_items == len(ITEMS) + 2
    assert set(NEW.tolist()) <= set(listed.item_ids.tolist())
    await other.close()
    await stale.close()


async def test_every_answer_beside_a_stream_of_deltas_is_one_tables(engine: Engine) -> None:
    """Deltas as fast as they go, users who append, and requests of all sizes: each equals the version that it names."""
    deltas, tables, done = list[Delta](), {"": 0}, asyncio.Event()

    async def patch() -> None:
        for seed in range(40):
            ids = np.random.default_rng(seed).permutation(np.concatenate([ITEMS, NEW]))[: 3 + seed % 20]
            deltas.append(delta_of(FIRST, ids, seed, replaces=seed % 11 == 10))
            updated = await engine.update_items("main", deltas[-1])
            tables[updated.items_version] = len(deltas)
            assert engine.model.items_version == updated.items_version
        done.set()

    answers = list[tuple[str, int, RankResult]]()

    async def ask(user: str) -> None:
        length = 0
        while not done.is_set():
            if length < 20:
                await engine.append_events(user, Append(HISTORY[length : length + 2]))
                length += 2
            answers.append((user, length, await engine.rank(rank_request(user, CANDIDATES), None)))

    await asyncio.wait_for(asyncio.gather(patch(), *(ask(user) for user in ("ann", "bob", "cat"))), 120)
    named = {result.items_version for *_, result in answers}
    assert len(named) > 5
    oracle = {name: patched(FIRST, deltas[: tables[name]]) for name in named}
    for user, length, result in answers[:: max(1, len(answers) // 150)]:
        assert_right(result, oracle[result.items_version], user, length)
    assert value(engine.metrics, "mfalcon_item_deltas_total", model="main", result="applied") == 40
    assert value(engine.metrics, "mfalcon_item_rows_total", model="main") == sum(delta.num_rows for delta in deltas)


async def test_bad_deltas_are_counted_and_change_nothing(engine: Engine) -> None:
    await engine.append_events("ann", Append(HISTORY))
    before = await engine.rank(rank_request("ann", CANDIDATES), None)
    narrow = np.zeros((3, 3), np.float32)
    with pytest.raises(InvalidInput, match="vector: got"):
        await engine.update_items("main", dataclasses.replace(delta_of(FIRST, ITEMS), vector=narrow))
    with pytest.raises(CheckpointError, match="checkpoint: got rows of"):
        await engine.update_items("main", delta_of(SECOND, ITEMS))
    with pytest.raises(UnknownModel):
        await engine.update_items("other", delta_of(FIRST, ITEMS))
    after = await engine.rank(rank_request("ann", CANDIDATES), None)
    assert np.array_equal(after.scores, before.scores) and after.items_version == ""
    for result in ("malformed", "foreign"):
        assert value(engine.metrics, "mfalcon_item_deltas_total", model="main", result=result) == 1


async def test_a_reload_of_the_same_checkpoint_keeps_the_table(engine: Engine) -> None:
    await engine.append_events("ann", Append(HISTORY))
    deltas = [delta_of(FIRST, np.concatenate([ITEMS[:5], NEW])), delta_of(FIRST, ITEMS[3:], 1)]
    await engine.update_items("main", deltas[0])

    def load() -> Checkpoint:
        time.sleep(0.2)
        return FIRST

    reload = asyncio.create_task(engine.reload("main", load))
    await asyncio.sleep(0.05)
    updated = await engine.update_items("", deltas[1])  # while the reload is under way
    info = await reload
    assert info.items_version == updated.items_version == engine.model.items_version
    result = await engine.rank(rank_request("ann", CANDIDATES), None)
    assert result.items_version == updated.items_version
    assert_right(result, patched(FIRST, deltas))
    more = [*deltas, delta_of(FIRST, ITEMS, 2)]
    assert (await engine.update_items("main", more[-1])).number == 3
    assert_right(await engine.rank(rank_request("ann", CANDIDATES), None), patched(FIRST, more))


async def test_another_checkpoint_begins_with_its_own_rows(engine: Engine) -> None:
    await engine.append_events("ann", Append(HISTORY))
    await engine.update_items("main", delta_of(FIRST, ITEMS))
    info = await engine.reload("main", lambda: SECOND)
    assert info.items_version == ""
    with pytest.raises(CheckpointError, match="must be of 777"):
        await engine.update_items("main", delta_of(FIRST, ITEMS, 1))
    result = await engine.rank(rank_request("ann", CANDIDATES), None)
    assert result.items_version == ""
    assert_right(result, SECOND)
    delta = delta_of(SECOND, ITEMS, 2)
    await engine.update_items("main", delta)
    assert_right(await engine.rank(rank_request("ann", CANDIDATES), None), patched(SECOND, [delta]))


async def test_a_server_that_shuts_down_answers_those_who_wait() -> None:
    engine = await started()
    waiting = [asyncio.create_task(engine.update_items("main", delta_of(FIRST, ITEMS, seed))) for seed in range(3)]
    await asyncio.sleep(0)
    await asyncio.wait_for(engine.close(), WAIT_S)
    for answer in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(answer, ShuttingDown) or not isinstance(answer, BaseException)


@pytest.mark.usefixtures("always_fetch")
async def test_states_of_other_rows_in_redis_are_not_taken(redis_server: RedisServer) -> None:
    """What a replica wrote before a delta is for one that has not got it, and the reverse; equal rows are equal states,
    whichever deltas they came by.
    """
    redis = RedisOptions(RedisSettings(redis_server.url, 2.0, 2.0), prefix="items")
    one, other = await started(redis=redis), await started(redis=redis)
    try:
        delta = delta_of(FIRST, np.concatenate([ITEMS[:20], NEW]))
        await one.append_events("ann", Append(HISTORY))
        await one.update_items("main", delta)
        request = rank_request("ann", CANDIDATES)
        assert_right(await one.rank(request, None), patched(FIRST, [delta]))
        await settle(one)
        result = await other.rank(request, None)
        assert result.cache.source is not CacheSource.REDIS
        assert_right(result, FIRST)
        await settle(other)
        # The same rows by two deltas, the second of which undoes a mistake of the first.
        wrong = delta_of(FIRST, delta.item_id, 99)
        for change in (wrong, delta):
            await other.update_items("main", numbered(change, 0))
        assert_right(await other.rank(request, None), patched(FIRST, [delta]))
        await settle(other)
        third = await started(redis=redis)
        try:
            await third.update_items("main", delta)
            result = await third.rank(request, None)
            assert result.cache.source is CacheSource.REDIS
            assert_right(result, patched(FIRST, [delta]))
        finally:
            await third.close()
    finally:
        await one.close()
        await other.close()
