"""Redis that is absent, frozen, slow, full or spoilt: an engine answers rightly without it, or says why it cannot."""

import asyncio
import contextlib
import time

import pytest

from loadtest.faults.redis_cluster import RedisCluster
from loadtest.faults.redis_server import RedisServer
from mfalcon.engine.engine import Engine
from mfalcon.errors import ConfigError, StorageUnavailable
from mfalcon.history.chain import user_hash
from mfalcon.history.redis_log import LogOptions
from mfalcon.kvcache import chunk
from mfalcon.kvcache.cost import NOTHING
from mfalcon.types import Append, CacheSource
from tests.engine.replicas import (
    NONE,
    REDIS,
    StartReplica,
    keys,
    rank,
    remote,
    request,
    settle,
    value,
)
from tests.redis_fixtures import OwnRedis, keys_left
from tests.small import random_events

pytestmark = pytest.mark.usefixtures("here")


async def answers(engine: Engine) -> bool:
    """Whether it reads the log."""
    with contextlib.suppress(StorageUnavailable):
        await engine.rank(request(), None)
        return True
    return False


async def test_redis_absent_at_start_then_there(own_redis: OwnRedis, replica: StartReplica) -> None:
    server = own_redis()
    server.stop()
    lonely = await replica(url=server.url, holds_log=False, timeout_s=0.1)
    sharing = await replica(url=server.url, timeout_s=0.1)
    events = random_events(20)
    await lonely.append_events("ann", Append(events, 0))
    await rank(lonely, events)
    await lonely.append_events("eve", Append(events, 0))
    assert lonely.ready and sharing.ready
    with pytest.raises(StorageUnavailable):
        await sharing.rank(request(), time.monotonic() + 1)
    with pytest.raises(StorageUnavailable, match=r"nothing was written|may have been"):
        await sharing.append_events("ann", Append(events, 0), time.monotonic() + 1)
    with pytest.raises(StorageUnavailable):
        await sharing.delete_user("ann", time.monotonic() + 1)
    server.start()
    async with asyncio.timeout(60):
        while not await answers(sharing):  # noqa: ASYNC110 (a probe closes the breakers)
            await asyncio.sleep(0.05)
    await sharing.append_events("ann", Append(events, 0))
    await rank(sharing, events)
    await settle(sharing, lonely)  # whose states of the same history are good for both
    written = [value(one.metrics, "mfalcon_chunks_total", direction="written") for one in (sharing, lonely)]
    assert sum(written) >= 1


async def test_stale_answers_are_right_for_what_was_verified_and_say_so(
    own_redis: OwnRedis, replica: StartReplica, here: CacheSource
) -> None:
    server, events = own_redis(), random_events(20)
    engine = await replica(url=server.url, log=LogOptions(serve_stale=True), timeout_s=0.1)
    await engine.append_events("ann", Append(events, 0))
    assert not (await rank(engine, events)).stale
    server.freeze()
    assert (await rank(engine, events)).stale
    with pytest.raises(StorageUnavailable):
        await engine.rank(request("bob"), time.monotonic() + 1)
    with pytest.raises(StorageUnavailable):
        await engine.prefill("ann", time.monotonic() + 1)
    server.thaw()
    async with asyncio.timeout(60):
        while (await rank(engine, events)).stale:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_redis_that_would_evict_the_log_is_refused(own_redis: OwnRedis, replica: StartReplica) -> None:
    server = own_redis(arguments=["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lfu"])
    with pytest.raises(ConfigError, match="maxmemory-policy: got allkeys-lfu, which may evict the event log"):
        await replica(url=server.url)
    await replica(url=server.url, holds_log=False)


async def test_over_budget_nothing_is_written(replica: StartReplica, redis_server: RedisServer) -> None:
    engine, events = await replica(budget_bytes=1), random_events(20)
    await asyncio.sleep(0.3)
    await engine.append_events("ann", Append(events, 0))
    await rank(engine, events)
    await settle(engine)
    assert value(engine.metrics, "mfalcon_write_behind_dropped_total", reason="budget") == 1
    assert ":kv" not in keys(redis_server)


@pytest.mark.usefixtures("always_fetch")
async def test_lost_and_spoilt_chunks_shorten_the_state(
    replica: StartReplica, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk, "FULL_CHUNK_BYTES", 4 * 2 * 2 * 2 * 16 * 8)
    one, events = await replica(), random_events(22)
    assert one.histories.redis is not None
    states = remote(one).states
    size = states.layout.events_per_chunk
    await one.append_events("ann", Append(events, 0))
    await rank(one, events)
    await settle(one)
    user = user_hash("ann")
    names = [states.chunk_key(user, i) for i in range(3)]
    redis_server.command("DEL", names[2])
    result = await rank(await replica(), events)
    assert (result.cache.source, result.cache.reused_tokens) == (REDIS, 2 * size)
    redis_server.command("SETRANGE", names[1], 300, b"spoilt")
    spoilt = await replica()
    result = await rank(spoilt, events)
    assert (result.cache.source, result.cache.reused_tokens) == (REDIS, size)
    assert value(spoilt.metrics, "mfalcon_chunks_rejected_total", reason="checksum") == 1
    swapped = redis_server.command("GET", names[1])
    assert isinstance(swapped, bytes)
    redis_server.command("SET", names[0], swapped)
    assert (await rank(await replica(), events)).cache.source is NONE


@pytest.mark.usefixtures("always_fetch")
@pytest.mark.parametrize("what", ["huge", "of another type"])
async def test_what_is_no_chunk_stays_in_redis_and_costs_its_user_a_miss(
    replica: StartReplica, redis_server: RedisServer, what: str
) -> None:
    """Hundreds of megabytes would hold up Redis and open its breaker for everybody."""
    one, two, events = await replica(), await replica(), random_events(20)
    for user_id in ("ann", "bob"):
        await one.append_events(user_id, Append(events, 0))
        await rank(one, events, user_id)
    await settle(one)
    (name,) = (name for name in keys_left(redis_server, f"*{user_hash('ann').hex()}*:kv:*:0"))
    if what == "huge":
        redis_server.command("SETRANGE", name, 64 << 20, "x")
    else:
        redis_server.command("DEL", name)
        redis_server.command("RPUSH", name, "x")
    before = sent_bytes(redis_server)
    for _ in range(5):
        assert (await rank(two, events)).history_len == 20
    assert sent_bytes(redis_server) - before < 5 << 20
    assert (await rank(two, events, "bob")).cache.source is REDIS
    assert value(two.metrics, "mfalcon_redis_breaker_opened_total") in (0, None)
    await one.delete_user("ann")
    assert keys_left(redis_server, f"*{user_hash('ann').hex()}*") == []


def sent_bytes(server: RedisServer) -> int:
    return int(server.text("INFO", "stats").split("total_net_output_bytes:")[1].split()[0])


@pytest.mark.usefixtures("always_fetch")
async def test_a_forged_state_of_no_numbers_is_a_miss(replica: StartReplica, redis_server: RedisServer) -> None:
    """Every checksum holds. Nobody gets INTERNAL for it, and the next replica finds a good state again."""
    one, events = await replica(), random_events(20)
    await one.append_events("ann", Append(events, 0))
    await rank(one, events)
    await settle(one)
    states, user = remote(one).states, user_hash("ann")
    name = states.chunk_key(user, 0)
    good = redis_server.command("GET", name)
    assert isinstance(good, bytes)
    header, payload = chunk.unpack(good, states.layout, user, None)
    redis_server.command("SET", name, chunk.pack(header, bytes(payload[:-16]) + b"\xff" * 16, None))
    other = await replica()
    assert (await rank(other, events)).cache.source is NONE
    assert value(other.metrics, "mfalcon_chunks_rejected_total", reason="finite") == 1
    await settle(other)
    assert redis_server.command("GET", name) == good


@pytest.mark.usefixtures("always_fetch")
async def test_signed_states(replica: StartReplica) -> None:
    events = random_events(20)
    signed = await replica(secret=b"s" * 16)
    await signed.append_events("ann", Append(events, 0))
    await rank(signed, events)
    await settle(signed)
    plain, other = await replica(), await replica(secret=b"t" * 16)
    for engine in (plain, other):
        assert (await rank(engine, events)).cache.source is NONE
        assert value(engine.metrics, "mfalcon_chunks_rejected_total", reason="mac") == 1


async def test_a_budget_holds_on_a_cluster(replica: StartReplica, redis_cluster: RedisCluster) -> None:
    engine, events = await replica(url=redis_cluster.url, budget_bytes=1), random_events(20)
    await asyncio.sleep(0.3)
    await engine.append_events("ann", Append(events, 0))
    await rank(engine, events)
    await settle(engine)
    assert value(engine.metrics, "mfalcon_write_behind_dropped_total", reason="budget") == 1


@pytest.mark.usefixtures("always_fetch")
async def test_a_fetch_that_timed_out_is_remembered_as_slow(
    replica: StartReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, events = await replica(), random_events(20)
    assert engine.histories.redis is not None
    await engine.append_events("ann", Append(events, 0))

    async def hang(*_: object) -> list[object]:
        await asyncio.sleep(0.05)
        raise StorageUnavailable("no answer", may_be_done=True)

    monkeypatch.setattr(remote(engine).states, "fetch", hang)
    before = engine.catalog.default.predictor.fetch.predict(1_000).seconds
    for _ in range(10):
        await engine.catalog.default.fetcher.open("ann", None, NOTHING)
    assert engine.catalog.default.predictor.fetch.predict(1_000).seconds > 5 * before
    assert engine.catalog.default.predictor.coverage.fraction == 1.0


async def test_a_request_in_a_hurry_does_not_wait_for_anothers_fetch(
    replica: StartReplica, always_fetch: None, monkeypatch: pytest.MonkeyPatch, here: CacheSource
) -> None:
    one, two, events = await replica(), await replica(), random_events(20)
    fetch_s = 4.0 if here is CacheSource.GPU else 1.0  # the interpreter needs seconds
    await one.append_events("ann", Append(events, 0))
    await rank(one, events)
    await settle(one)
    assert two.histories.redis is not None
    right = remote(two).states.fetch

    async def slow(*arguments: object) -> object:
        await asyncio.sleep(fetch_s)
        return await right(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(remote(two).states, "fetch", slow)
    patient = asyncio.create_task(rank(two, events))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    hurried = await two.rank(request(), time.monotonic() + 0.8 * fetch_s)
    assert time.monotonic() - began < 0.8 * fetch_s
    assert hurried.cache.source is NONE
    await patient
