"""Hand-over: before a replica leaves, Redis holds the states that it used last, and is never waited for too long."""

import asyncio

import pytest

from loadtest.faults.redis_server import RedisServer
from mfalcon.engine.engine import Engine
from mfalcon.history.chain import user_hash
from mfalcon.types import Append
from tests.engine.replicas import NONE, REDIS, StartReplica, rank, remote, settle, value
from tests.redis_fixtures import OwnRedis
from tests.small import random_events

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.parametrize("here", ["cpu"], indirect=True)]
USERS = ("ann", "bob", "eve")
EVENTS = random_events(20)
ENOUGH = 2**30
NOT_HUNG_S = 60.0


async def with_states(engine: Engine) -> None:
    """The users have states here, and eve's was used last."""
    for user in USERS:
        await engine.append_events(user, Append(EVENTS, 0))
        await rank(engine, EVENTS, user)
    await settle(engine)


def evict(engine: Engine, redis: RedisServer) -> None:
    """Redis loses every state, as when it is full."""
    names = [remote(engine).states.chunk_key(user_hash(user), 0) for user in USERS]
    assert redis.command("DEL", *names) == len(USERS)


@pytest.mark.usefixtures("always_fetch")
async def test_a_successor_finds_what_redis_had_lost(replica: StartReplica, redis_server: RedisServer) -> None:
    leaving = await replica()
    await with_states(leaving)
    evict(leaving, redis_server)
    await leaving.hand_over(NOT_HUNG_S, ENOUGH)
    successor = await replica()
    for user in USERS:
        assert (await rank(successor, EVENTS, user)).cache.source is REDIS


async def test_nothing_is_written_twice(replica: StartReplica) -> None:
    engine = await replica()
    await with_states(engine)
    written = value(engine.metrics, "mfalcon_chunks_total", direction="written")
    await engine.hand_over(NOT_HUNG_S, ENOUGH)
    assert value(engine.metrics, "mfalcon_chunks_total", direction="written") == written


@pytest.mark.usefixtures("always_fetch")
async def test_what_was_used_last_goes_first_and_bytes_are_bounded(
    replica: StartReplica, redis_server: RedisServer
) -> None:
    leaving = await replica()
    await with_states(leaving)
    evict(leaving, redis_server)
    await leaving.hand_over(NOT_HUNG_S, 1)
    successor = await replica()
    assert (await rank(successor, EVENTS, "eve")).cache.source is REDIS
    assert (await rank(successor, EVENTS, "ann")).cache.source is NONE


@pytest.mark.usefixtures("always_fetch")
async def test_a_state_that_newer_events_are_missing_from_is_handed_over_too(
    replica: StartReplica, redis_server: RedisServer
) -> None:
    leaving = await replica()
    await with_states(leaving)
    longer = random_events(24)
    longer[:20] = EVENTS
    longer["time_ms"][20:] = EVENTS["time_ms"][-1]
    await leaving.append_events("eve", Append(longer[20:], 20))
    evict(leaving, redis_server)
    await leaving.hand_over(NOT_HUNG_S, ENOUGH)
    result = await rank(await replica(), longer, "eve")
    assert result.cache.source is REDIS and result.cache.encoded_tokens > 0


async def test_a_deleted_user_is_not_handed_over(replica: StartReplica, redis_server: RedisServer) -> None:
    engine = await replica()
    await with_states(engine)
    await engine.delete_user("eve")
    await engine.hand_over(NOT_HUNG_S, ENOUGH)
    states = remote(engine).states
    found = [redis_server.command("EXISTS", states.chunk_key(user_hash(user), 0)) for user in USERS]
    assert found == [1, 1, 0]


@pytest.mark.parametrize("how", ["frozen", "dead"])
async def test_a_redis_that_does_not_answer_holds_nobody_up(
    own_redis: OwnRedis, replica: StartReplica, how: str
) -> None:
    server = own_redis()
    engine = await replica(url=server.url)
    await with_states(engine)
    if how == "frozen":
        server.freeze()
    else:
        server.kill()
    try:
        async with asyncio.timeout(NOT_HUNG_S):
            await engine.hand_over(0.3, ENOUGH)
    finally:
        if how == "frozen":
            server.thaw()
