"""A user who is deleted on one engine is gone from Redis and from every replica, whatever is in flight."""

import asyncio
import time

import pytest

from loadtest.faults.redis_server import RedisServer
from mfalcon.errors import StorageUnavailable
from mfalcon.history.chain import user_hash
from mfalcon.history.deletions import Deletion, Deletions
from mfalcon.history.redis_log import LogOptions
from mfalcon.types import Append
from tests.engine.replicas import (
    StartReplica,
    keys,
    rank,
    remote,
    settle,
    value,
)
from tests.redis_fixtures import keys_left
from tests.small import random_events

pytestmark = pytest.mark.usefixtures("here")


async def test_deletion_reaches_every_tier_and_replica(replica: StartReplica, redis_server: RedisServer) -> None:
    one, two, events = await replica(), await replica(), random_events(20)
    for user_id in ("ann", "bob"):
        await one.append_events(user_id, Append(events, 0))
        for engine in (one, two):
            await rank(engine, events, user_id)
    await settle(one, two)
    assert len(redis_server.command("KEYS", "*")) == 6  # type: ignore[arg-type]  # log, index and chunk of two
    await asyncio.sleep(0.5)  # both replicas follow the deletions by now
    await one.delete_user("ann")
    assert keys_left(redis_server, f"*{user_hash('ann').hex()}*") == []
    assert one.catalog.default.cache.peek((await one.histories.log.read("ann", 1)).history, 0) == 0
    assert not one.catalog.default.cache.holds(user_hash("ann"))
    for _ in range(100):
        if not two.catalog.default.cache.holds(user_hash("ann")):
            break
        await asyncio.sleep(0.05)
    assert not two.catalog.default.cache.holds(user_hash("ann"))
    assert two.catalog.default.cache.holds(user_hash("bob"))
    for engine in (one, two):
        await rank(engine, events[:0])
        await rank(engine, events, "bob")
    await one.delete_user("nobody")


async def test_a_write_in_flight_undoes_no_deletion(
    replica: StartReplica, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replica has encoded a chunk and not yet sent it when the user is deleted; then he comes back."""
    one, two, events = await replica(), await replica(), random_events(20)
    await one.append_events("ann", Append(events, 0))
    assert two.histories.redis is not None
    sending, go_on = asyncio.Event(), asyncio.Event()
    right = remote(two).states.write

    async def held_up(*arguments: object) -> bool:
        sending.set()
        await go_on.wait()
        return await right(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(remote(two).states, "write", held_up)
    await rank(two, events)
    await asyncio.wait_for(sending.wait(), 5)
    await one.delete_user("ann")
    await one.append_events("ann", Append(events, 0))  # the same events, another life
    go_on.set()
    await settle(two)
    assert value(two.metrics, "mfalcon_write_behind_dropped_total", reason="deleted") == 1
    assert keys(redis_server) - {"t:deletions"} == {":log"}
    await rank(two, events)


async def test_own_write_in_flight_is_waited_for_where_the_log_is_embedded(
    replica: StartReplica, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, events = await replica(holds_log=False), random_events(20)
    await engine.append_events("ann", Append(events, 0))
    assert engine.histories.redis is not None
    sending, go_on, right = asyncio.Event(), asyncio.Event(), remote(engine).states.write

    async def held_up(*arguments: object) -> bool:
        sending.set()
        await go_on.wait()
        return await right(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(remote(engine).states, "write", held_up)
    await rank(engine, events)
    await asyncio.wait_for(sending.wait(), 5)
    deleting = asyncio.create_task(engine.delete_user("ann"))
    await asyncio.sleep(0.05)
    assert not deleting.done()
    go_on.set()
    await deleting
    assert keys(redis_server) == set()


async def test_a_page_of_deletions_that_fails_is_read_again(
    replica: StartReplica, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await replica()
    assert engine.histories.redis is not None and engine.histories.redis.deletions is not None
    client = engine.histories.redis.client
    deletions = Deletions(client, engine.histories.redis.keys)
    monkeypatch.setattr("mfalcon.history.deletions._PAGE", 2)
    assert await deletions.poll() == []
    redis_server.command("XADD", "t:deletions", "*", "something", "else")
    for number in range(3):
        await deletions.publish(Deletion(bytes([number]), b"life"))
    right, calls = client.call, 0

    async def fail_once(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise StorageUnavailable("no answer")
        return await right(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "call", fail_once)
    with pytest.raises(StorageUnavailable):
        await deletions.poll()
    assert [deletion.user for deletion in await deletions.poll() or ()] == [b"\0", b"\1", b"\2"]


async def test_a_log_that_is_too_old_goes_with_all_that_was_made_of_it(
    replica: StartReplica, redis_server: RedisServer
) -> None:
    """From every tier of every replica, as by DeleteUser; who is younger keeps his."""
    options = LogOptions(max_age_s=3_600.0)
    one, two, events = await replica(log=options), await replica(log=options), random_events(20)
    for user_id in ("ann", "bob"):
        await one.append_events(user_id, Append(events, 0))
        for engine in (one, two):
            await rank(engine, events, user_id)
    await settle(one, two)
    old = round(time.time() * 1000) - 2 * 3_600_000
    redis_server.command("SETRANGE", one.histories.redis.keys.log(user_hash("ann")), 80, old.to_bytes(8, "little"))  # type: ignore[union-attr]
    for _ in range(400):
        held = [engine.catalog.default.cache.holds(user_hash("ann")) for engine in (one, two)]
        left = keys_left(redis_server, f"*{user_hash('ann').hex()}*")
        if not (left or any(held)):
            break
        await asyncio.sleep(0.05)
    assert not (left or any(held))
    assert len(keys_left(redis_server, f"*{user_hash('bob').hex()}*")) == 3
    for engine in (one, two):
        assert (await rank(engine, random_events(0), "ann")).history_len == 0
        assert (await rank(engine, events, "bob")).cache.reused_tokens == 20


async def test_a_deletion_that_is_repeated_finishes_what_the_first_began(
    replica: StartReplica, redis_server: RedisServer
) -> None:
    """The first one ended the log, and its server died: states, and other replicas, are left to the second."""
    one, two, events = await replica(), await replica(), random_events(20)
    await one.append_events("ann", Append(events, 0))
    for engine in (one, two):
        await rank(engine, events)
    await settle(one, two)
    generation = (await one.histories.log.read("ann", 1)).history.generation
    await asyncio.sleep(0.5)  # both follow the deletions by now
    assert await one.histories.log.delete("ann", None) == generation
    await one.delete_user("ann")
    assert keys_left(redis_server, f"*{user_hash('ann').hex()}*") == []
    for _ in range(200):
        if generation in two.histories.tombstones and not two.catalog.default.cache.holds(user_hash("ann")):
            break
        await asyncio.sleep(0.02)
    for engine in (one, two):
        assert generation in engine.histories.tombstones
        assert not engine.catalog.default.cache.holds(user_hash("ann"))
