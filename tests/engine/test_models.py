"""Several models in one engine: one device, one event log, one way to Redis; each answers as if it were alone."""

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from loadtest.faults.redis_server import RedisServer
from mfalcon.engine.compose import EngineConfig, compose, compose_all
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.errors import ConfigError, UnknownModel
from mfalcon.kvcache.chunk import PayloadDtype
from mfalcon.redis.client import RedisSettings
from mfalcon.types import Append, Events, RankResult, no_events
from tests.redis_fixtures import OwnRedis
from tests.small import random_events, rank_request, small_checkpoint, small_config

MODELS = {"dfgr": small_checkpoint("dfgr"), "hstu": small_checkpoint("hstu")}
ITEMS = MODELS["dfgr"].items.item_id[:9].tolist()
WAIT_S = 60.0


def config(redis_url: str | None, max_connections: int = 32) -> EngineConfig:
    redis = redis_url and RedisOptions(
        RedisSettings(redis_url, 2.0, 2.0, max_connections), prefix="m", state_dtype=PayloadDtype.FLOAT64
    )
    return EngineConfig(threads=1, ranker=RankerOptions(microbatch=16), histories=HistoryOptions(redis=redis or None))


@contextlib.asynccontextmanager
async def running(names: Sequence[str], redis_url: str | None, max_connections: int = 32) -> AsyncIterator[Engine]:
    made = config(redis_url, max_connections)
    models = [(MODELS[name], dataclasses.replace(made.ranker, name=name)) for name in names]
    engine = compose_all(models, made)
    try:
        await asyncio.to_thread(engine.wait_ready, WAIT_S)
        await engine.start()
        yield engine
    finally:
        await engine.close()


async def play(engine: Engine, model: str) -> list[RankResult]:
    """Cold, cached, after an append, with recent events, and of a user without any."""
    events = random_events(20)
    answers = [await engine.rank(rank_request("ann", ITEMS), None, model) for _ in range(2)]
    answers.append(await engine.rank(rank_request("ann", ITEMS, recent=events[15:17]), None, model))
    await engine.prefill("ann", None, model)
    answers.append(await engine.rank(rank_request("nobody", ITEMS), None, model))
    return answers


@pytest.fixture(params=("embedded", "redis"))
def redis_url(request: pytest.FixtureRequest) -> str | None:
    if request.param == "embedded":
        return None
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url


async def test_each_answers_as_its_own_server_does_to_the_bit(redis_url: str | None) -> None:
    async with running(("dfgr", "hstu"), redis_url) as both:
        await both.append_events("ann", Append(random_events(20)[:15], 0))
        together = {name: await play(both, name) for name in MODELS}
        assert (await both.rank(rank_request("ann", ITEMS), None)).model_version == both.models[0].version
    for name, answers in together.items():
        async with running((name,), None) as alone:
            await alone.append_events("ann", Append(random_events(20)[:15], 0))
            for one, other in zip(answers, await play(alone, ""), strict=True):
                assert (one.task_scores == other.task_scores).all() and (one.scores == other.scores).all()
                assert one.model_version == other.model_version and one.history_len == other.history_len


async def test_a_deletion_reaches_every_model(redis_url: str | None) -> None:
    async with running(("dfgr", "hstu"), redis_url) as engine:
        await engine.append_events("ann", Append(random_events(12), 0))
        empty = {name: await engine.rank(rank_request("nobody", ITEMS), None, name) for name in MODELS}
        for name in MODELS:
            await engine.prefill("ann", None, name)
        assert all(ranker.cache.num_bytes > 0 for ranker in engine.catalog)
        await engine.delete_user("ann")
        assert all(ranker.cache.num_bytes == 0 for ranker in engine.catalog)
        for name, nobody in empty.items():
            result = await engine.rank(rank_request("ann", ITEMS), None, name)
            assert result.history_len == 0 and (result.scores == nobody.scores).all()


async def test_concurrent_requests_of_two_models_do_not_meet(redis_url: str | None) -> None:
    histories: dict[str, Events] = {f"user-{n}": random_events(5 + n, seed=n) for n in range(8)} | {"new": no_events()}
    async with running(("dfgr", "hstu"), redis_url) as engine:
        for user_id, events in histories.items():
            if len(events):
                await engine.append_events(user_id, Append(events, 0))
        asked = [(user_id, name) for user_id in histories for name in MODELS]
        apart = {one: await engine.rank(rank_request(one[0], ITEMS), None, one[1]) for one in asked}
        again = await asyncio.gather(*(engine.rank(rank_request(user_id, ITEMS), None, n) for user_id, n in asked))
        for one, result in zip(asked, again, strict=True):
            assert np.array_equal(result.task_scores, apart[one].task_scores)


async def test_two_models_share_one_device_thread_and_one_bound_of_connections(own_redis: OwnRedis) -> None:
    server = own_redis()
    async with running(("dfgr", "hstu"), server.url, max_connections=4) as engine:
        users = [f"user-{number}" for number in range(20)]
        await asyncio.gather(*(engine.append_events(user, Append(random_events(12))) for user in users))
        asked = [engine.rank(rank_request(user, ITEMS), None, name) for user in users for name in MODELS]
        await asyncio.gather(*asked)
        clients = server.command("CLIENT", "LIST", "TYPE", "normal")
        assert isinstance(clients, bytes)
        # 4 for calls and 8 spare ones for probes and their like; a client for each model would have twice as many.
        assert len(clients.splitlines()) <= 4 + 8 + 1
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("mfalcon-device") == 1


async def test_unknown_and_ambiguous_names_are_refused() -> None:
    async with running(("dfgr", "hstu"), None) as engine:
        with pytest.raises(UnknownModel, match="got 'din', must be 'dfgr' or 'hstu'"):
            await engine.rank(rank_request("ann", ITEMS), None, "din")
    with pytest.raises(ConfigError, match="'dfgr' twice"):
        compose_all([(MODELS["dfgr"], RankerOptions(name="dfgr"))] * 2, config(None))


def test_a_window_longer_than_the_log_is_refused() -> None:
    long = small_checkpoint(config=small_config(max_history=200))
    made = EngineConfig(threads=1, histories=HistoryOptions(log_max_events=100))
    with pytest.raises(ConfigError, match="log_max_events: got 100, must be at least 200"):
        compose(long, made)
