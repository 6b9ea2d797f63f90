"""A history in Redis is read back by any replica, with what Redis holds of its KV state."""

import numpy as np
import pytest

from loadtest.faults.redis_server import RedisServer
from mfalcon.errors import StorageUnavailable
from mfalcon.history.chain import user_hash
from mfalcon.history.redis_log import LogOptions
from mfalcon.types import Append, CacheSource, HistoryRequest
from tests.engine.replicas import REDIS, StartReplica, rank, remote, settle
from tests.small import random_events

EVENTS = random_events(20)
ASKED = HistoryRequest("ann", with_states=True)


async def test_a_replica_tells_what_another_wrote(replica: StartReplica) -> None:
    one, two = await replica(), await replica()
    version = (await one.append_events("ann", Append(EVENTS))).version
    await rank(one, EVENTS)
    await settle(one)
    page = await two.get_history(ASKED)
    assert np.array_equal(page.events, EVENTS) and page.version == version and not page.stale
    (state,) = page.states
    layout = remote(one).states.layout
    assert (state.tier, state.first_event, state.num_events, state.fits) == (REDIS, 0, 20, True)
    assert state.num_tokens == 20 * layout.tokens_per_event
    assert state.num_bytes > layout.payload_bytes(20)
    assert {state.tier for state in (await one.get_history(ASKED)).states} == {CacheSource.HOST, REDIS}
    assert not (await two.get_history(HistoryRequest("ann"))).states


async def test_chunks_of_another_history_or_no_chunks_do_not_count(
    replica: StartReplica, redis_server: RedisServer
) -> None:
    one, two = await replica(), await replica()
    await one.append_events("ann", Append(EVENTS))
    await rank(one, EVENTS)
    await settle(one)
    name = remote(one).states.chunk_key(user_hash("ann"), 0)
    chunk = redis_server.command("GET", name)
    assert isinstance(chunk, bytes)
    for spoilt in (chunk[:100], chunk[:-1], b"", b"x" * len(chunk), chunk[:64] + b"\xff" + chunk[65:]):
        redis_server.command("SET", name, spoilt)
        assert not (await two.get_history(ASKED)).states
    redis_server.command("SET", name, chunk)
    before = redis_server.command("PTTL", name)
    assert len((await two.get_history(ASKED)).states) == 1
    assert redis_server.command("PTTL", name) == before == -1, "looking prolongs nothing"
    await two.delete_user("ann")
    await two.append_events("ann", Append(EVENTS[1:]))
    redis_server.command("SET", name, chunk)
    assert not (await two.get_history(ASKED)).states


async def test_a_redis_that_is_away(replica: StartReplica, redis_server: RedisServer) -> None:
    one = await replica()
    stale = await replica(log=LogOptions(serve_stale=True))
    await one.append_events("ann", Append(EVENTS))
    assert len((await stale.get_history(ASKED)).events) == 20
    redis_server.kill()
    with pytest.raises(StorageUnavailable):
        await one.get_history(ASKED)
    page = await stale.get_history(HistoryRequest("ann"))
    assert page.stale and np.array_equal(page.events, EVENTS)
