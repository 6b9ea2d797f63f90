"""Engines that share a Redis, as replicas do: what one encodes another fetches, and every score is that of a cold
forward.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import mfalcon.engine.engine
from loadtest.faults.redis_server import RedisCluster, RedisServer
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.engine.remote_tier import RemoteTier
from mfalcon.errors import ConfigError, LengthMismatch, StorageUnavailable
from mfalcon.history.chain import user_hash
from mfalcon.history.deletions import Deletion, Deletions
from mfalcon.kvcache import chunk
from mfalcon.kvcache.chunk import PayloadDtype
from mfalcon.kvcache.cost import Estimate
from mfalcon.kvcache.decision import Decision
from mfalcon.kvcache.planner import Predictor, Situation
from mfalcon.metrics import StateMetrics
from mfalcon.models.registry import architectures
from mfalcon.redis.client import RedisSettings
from mfalcon.types import CacheInfo, CacheSource, Events, RankRequest, RankResult, no_events
from tests.redis_fixtures import OwnRedis
from tests.small import cold_scores, random_events, rank_request, small_checkpoint, small_config

BOUND = 2e-6  # answers are float32, ratings up to 10: half a unit in the last place is 5e-7
PATIENCE_S = 2.0  # a busy test machine is no frozen Redis
CHECKPOINT = small_checkpoint()
ITEMS = CHECKPOINT.items.item_id[:9].tolist()
NONE, REDIS = CacheSource.NONE, CacheSource.REDIS
pytestmark = pytest.mark.usefixtures("here")

StartReplica = Callable[..., Awaitable[Engine]]


@pytest.fixture
async def replica(redis_server: RedisServer) -> AsyncIterator[StartReplica]:
    """Starts engines on one Redis; options are those of RedisOptions."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            architecture: str = "dfgr", url: str = redis_server.url, timeout_s: float = PATIENCE_S, **options: object
        ) -> Engine:
            redis = RedisOptions(RedisSettings(url, timeout_s, PATIENCE_S), prefix="t")
            config = EngineConfig(
                threads=1,
                ranker=RankerOptions(microbatch=16),
                histories=HistoryOptions(
                    redis=dataclasses.replace(redis, **options)  # type: ignore[arg-type]
                ),
            )
            checkpoint = CHECKPOINT if architecture == "dfgr" else small_checkpoint(architecture)
            engine = compose(checkpoint, config)
            await asyncio.to_thread(engine.wait_ready, 20)
            await engine.start()
            stack.push_async_callback(engine.close)
            return engine

        yield start


@pytest.fixture
def always_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tiny models encoding wins; here the way through Redis is what is tested."""

    def fetch(self: Predictor, at: Situation) -> Decision:
        recompute = Estimate(1.0, 1.0)
        if at.redis_tokens is None:
            return Decision("recompute", "redis unavailable", None, recompute)
        return Decision("fetch", "cheaper", Estimate(0.5, 0.5), recompute)

    monkeypatch.setattr(Predictor, "decide", fetch)


def request(user_id: str = "ann", recent: Events | None = None) -> RankRequest:
    return rank_request(user_id, ITEMS, recent=recent)


async def rank(engine: Engine, history: Events, user_id: str = "ann", recent: Events | None = None) -> RankResult:
    """A rank, checked against a cold forward over what the log must hold."""
    asked = request(user_id, recent)
    result = await engine.rank(asked, time.monotonic() + 10)
    assert result.history_len == len(history)
    expected = cold_scores(engine.catalog.default.checkpoint, history, asked).numpy()
    assert np.abs(result.task_scores - expected).max() <= BOUND
    return result


def remote(engine: Engine) -> RemoteTier:
    tier = engine.catalog.default.remote
    assert tier is not None
    return tier


async def settle(*engines: Engine) -> None:
    """Wait until everything that was kept has been written or dropped."""
    for engine in engines:
        assert engine.histories.redis is not None
        await asyncio.sleep(0)
        await asyncio.wait_for(remote(engine).writes.idle(), 10)


def value(metrics: StateMetrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def keys(server: RedisServer) -> set[str]:
    reply = server.command("KEYS", "*")
    assert isinstance(reply, list)
    return {key.decode().split("}")[-1] for key in reply if isinstance(key, bytes)}


@pytest.mark.usefixtures("always_fetch")
@pytest.mark.parametrize("architecture", architectures())
async def test_what_one_replica_encoded_another_fetches(
    replica: StartReplica, architecture: str, here: CacheSource
) -> None:
    one, two = await replica(architecture), await replica(architecture)
    events, per_event = random_events(30), small_checkpoint(architecture).model.tokens_per_event
    await one.append_events("ann", events[:20], 0)
    assert (await rank(one, events[:20])).cache == CacheInfo(NONE, 0, 20 * per_event)
    await settle(one)
    assert (await rank(two, events[:20])).cache == CacheInfo(REDIS, 20 * per_event, 0)
    assert (await rank(two, events[:20])).cache == CacheInfo(here, 20 * per_event, 0)
    await two.append_events("ann", events[20:23], 20)
    assert (await rank(two, events[:23])).cache == CacheInfo(here, 20 * per_event, 3 * per_event)
    await settle(two)
    three = await replica(architecture)
    assert (await rank(three, events[:23])).cache == CacheInfo(REDIS, 23 * per_event, 0)
    # The stale one finds the other's longer state, not its own.
    assert (await rank(one, events[:23])).cache == CacheInfo(REDIS, 23 * per_event, 0)
    await three.append_events("ann", events[23:], 23)  # the window slides: no state fits
    assert (await rank(one, events)).cache.source is NONE
    recent = events[-1:]
    assert (await rank(two, events, recent=recent)).cache.encoded_tokens > 0


@pytest.mark.usefixtures("always_fetch")
async def test_a_stale_replica_never_answers_from_its_old_state(replica: StartReplica, here: CacheSource) -> None:
    one, two, events = await replica(), await replica(), random_events(24)
    for length in range(4, 9 if here is CacheSource.GPU else 24):
        writer, reader = (one, two) if length % 2 else (two, one)
        await writer.append_events("ann", events[length - 1 : length] if length > 4 else events[:4], None)
        await rank(reader, events[:length])
        await rank(writer, events[:length])


@pytest.mark.usefixtures("always_fetch")
async def test_an_edited_history_meets_no_state_of_the_old_one(replica: StartReplica) -> None:
    one, two, events = await replica(), await replica(), random_events(20)
    await one.append_events("ann", events, 0)
    for engine in (one, two):
        await rank(engine, events)
    await settle(one, two)
    edited = events.copy()
    edited["item_id"][3] = ITEMS[0]
    edited["actions"][3] ^= 1
    await two.delete_user("ann")
    await two.append_events("ann", edited, 0)
    for engine in (one, two, await replica()):
        await rank(engine, edited)


async def test_deletion_reaches_every_tier_and_replica(replica: StartReplica, redis_server: RedisServer) -> None:
    one, two, events = await replica(), await replica(), random_events(20)
    for user_id in ("ann", "bob"):
        await one.append_events(user_id, events, 0)
        for engine in (one, two):
            await rank(engine, events, user_id)
    await settle(one, two)
    assert len(redis_server.command("KEYS", "*")) == 6  # type: ignore[arg-type]  # log, index and chunk of two
    await asyncio.sleep(0.5)  # both replicas follow the deletions by now
    await one.delete_user("ann")
    left = redis_server.command("KEYS", f"*{user_hash('ann').hex()}*")
    assert left == []
    assert one.catalog.default.store.peek((await one.histories.log.read("ann", 1)).history, 0) == 0
    assert not one.catalog.default.store.holds(user_hash("ann"))
    for _ in range(100):
        if not two.catalog.default.store.holds(user_hash("ann")):
            break
        await asyncio.sleep(0.05)
    assert not two.catalog.default.store.holds(user_hash("ann"))
    assert two.catalog.default.store.holds(user_hash("bob"))
    for engine in (one, two):
        await rank(engine, events[:0])
        await rank(engine, events, "bob")
    await one.delete_user("nobody")


async def test_a_write_in_flight_undoes_no_deletion(
    replica: StartReplica, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replica has encoded a chunk and not yet sent it when the user is deleted; then he comes back."""
    one, two, events = await replica(), await replica(), random_events(20)
    await one.append_events("ann", events, 0)
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
    await one.append_events("ann", events, 0)  # the same events, another life
    go_on.set()
    await settle(two)
    assert value(two.metrics, "mfalcon_write_behind_dropped_total", reason="deleted") == 1
    assert keys(redis_server) - {"t:deletions"} == {":log"}
    await rank(two, events)


async def test_own_write_in_flight_is_waited_for_where_the_log_is_embedded(
    replica: StartReplica, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, events = await replica(holds_log=False), random_events(20)
    await engine.append_events("ann", events, 0)
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


@pytest.mark.usefixtures("always_fetch")
async def test_an_embedded_log_with_states_in_redis(replica: StartReplica) -> None:
    """A process that restarts and is told the same histories again finds its states."""
    one, events = await replica(holds_log=False), random_events(20)
    await one.append_events("ann", events, 0)
    await rank(one, events)
    await settle(one)
    two = await replica(holds_log=False)
    assert (await rank(two, no_events())).cache == CacheInfo(NONE, 0, 0)
    await two.append_events("ann", events, 0)
    assert (await rank(two, events)).cache == CacheInfo(REDIS, 20, 0)


@pytest.mark.usefixtures("always_fetch")
async def test_an_append_writes_the_last_chunk_only(replica: StartReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk, "FULL_CHUNK_BYTES", 4 * 2 * 2 * 2 * 16 * 8)
    engine, events = await replica(), random_events(22)
    assert engine.histories.redis is not None
    size = remote(engine).states.layout.events_per_chunk
    assert 1 < size < 10
    await engine.append_events("ann", events[:20], 0)
    await rank(engine, events[:20])
    await settle(engine)
    written = value(engine.metrics, "mfalcon_chunks_total", direction="written")
    assert written == -(-20 // size)
    for length in (21, 22):
        await engine.append_events("ann", events[length - 1 : length], None)
        await rank(engine, events[:length])
        await settle(engine)
    assert value(engine.metrics, "mfalcon_chunks_total", direction="written") - written <= 3
    assert (await rank(await replica(), events)).cache == CacheInfo(REDIS, 22, 0)


async def test_redis_absent_at_start_then_there(own_redis: OwnRedis, replica: StartReplica) -> None:
    server = own_redis()
    server.stop()
    lonely = await replica(url=server.url, holds_log=False, timeout_s=0.1)
    sharing = await replica(url=server.url, timeout_s=0.1)
    events = random_events(20)
    await lonely.append_events("ann", events, 0)
    await rank(lonely, events)
    await lonely.append_events("eve", events, 0)
    assert lonely.ready and sharing.ready
    with pytest.raises(StorageUnavailable):
        await sharing.rank(request(), time.monotonic() + 1)
    with pytest.raises(StorageUnavailable, match=r"nothing was written|may have been"):
        await sharing.append_events("ann", events, 0, time.monotonic() + 1)
    with pytest.raises(StorageUnavailable):
        await sharing.delete_user("ann", time.monotonic() + 1)
    server.start()
    await asyncio.sleep(0.6)  # a probe closes the breakers
    await sharing.append_events("ann", events, 0)
    await rank(sharing, events)
    await settle(sharing, lonely)  # whose states of the same history are good for both
    written = [value(one.metrics, "mfalcon_chunks_total", direction="written") for one in (sharing, lonely)]
    assert sum(written) >= 1


async def test_stale_answers_are_right_for_what_was_verified_and_say_so(
    own_redis: OwnRedis, replica: StartReplica, here: CacheSource
) -> None:
    server, events = own_redis(), random_events(20)
    engine = await replica(url=server.url, serve_stale=True, timeout_s=0.1)
    await engine.append_events("ann", events, 0)
    assert not (await rank(engine, events)).stale
    server.freeze()
    began = time.monotonic()
    assert (await rank(engine, events)).stale
    assert time.monotonic() - began < (20 if here is CacheSource.GPU else 1)
    with pytest.raises(StorageUnavailable):
        await engine.rank(request("bob"), time.monotonic() + 1)
    with pytest.raises(StorageUnavailable):
        await engine.prefill("ann", time.monotonic() + 1)
    server.thaw()
    await asyncio.sleep(0.6)
    assert not (await rank(engine, events)).stale


async def test_a_redis_that_would_evict_the_log_is_refused(own_redis: OwnRedis, replica: StartReplica) -> None:
    server = own_redis(arguments=["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lfu"])
    with pytest.raises(ConfigError, match="maxmemory-policy: got allkeys-lfu, which may evict the event log"):
        await replica(url=server.url)
    await replica(url=server.url, holds_log=False)


async def test_over_budget_nothing_is_written(replica: StartReplica, redis_server: RedisServer) -> None:
    engine, events = await replica(budget_bytes=1), random_events(20)
    await asyncio.sleep(0.3)
    await engine.append_events("ann", events, 0)
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
    await one.append_events("ann", events, 0)
    await rank(one, events)
    await settle(one)
    user = user_hash("ann")
    names = [states._keys.chunk(user, states._model, i) for i in range(3)]
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


async def test_chunks_live_from_their_last_use(replica: StartReplica, redis_server: RedisServer) -> None:
    one, events = await replica(ttl_s=100.0), random_events(20)
    await one.append_events("ann", events, 0)
    await rank(one, events)
    await settle(one)
    assert one.histories.redis is not None
    states = remote(one).states
    name = states._keys.chunk(user_hash("ann"), states._model, 0)
    remaining = redis_server.command("PTTL", name)
    assert isinstance(remaining, int) and 90_000 < remaining <= 100_000
    redis_server.command("PEXPIRE", name, 5_000)
    await states.touch(user_hash("ann"), 1, PATIENCE_S)
    remaining = redis_server.command("PTTL", name)
    assert isinstance(remaining, int) and remaining > 90_000
    assert redis_server.command("PTTL", states._keys.log(user_hash("ann"))) == -1


@pytest.mark.usefixtures("always_fetch")
async def test_int8_and_other_models_do_not_meet(replica: StartReplica, here: CacheSource) -> None:
    exact, coarse = await replica(), await replica(state_dtype=PayloadDtype.INT8)
    other, events = await replica("hstu"), random_events(20)
    await exact.append_events("ann", events, 0)
    for engine in (exact, coarse, other):
        assert (await rank(engine, events)).cache.source is NONE
    await settle(exact, coarse, other)
    for engine in (exact, coarse, other):
        assert (await rank(engine, events)).cache.source is here
    fresh = await replica(state_dtype=PayloadDtype.INT8)
    result = await fresh.rank(request(), None)
    assert result.cache.source is REDIS
    gap = np.abs(result.task_scores - cold_scores(CHECKPOINT, events, request()).numpy()).max()
    assert 0 < gap < 0.1


@pytest.mark.usefixtures("always_fetch")
async def test_signed_states(replica: StartReplica) -> None:
    events = random_events(20)
    signed = await replica(secret=b"s" * 16)
    await signed.append_events("ann", events, 0)
    await rank(signed, events)
    await settle(signed)
    plain, other = await replica(), await replica(secret=b"t" * 16)
    for engine in (plain, other):
        assert (await rank(engine, events)).cache.source is NONE
        assert value(engine.metrics, "mfalcon_chunks_rejected_total", reason="mac") == 1


async def test_a_model_without_a_stable_prefix_shares_nothing(
    replica: StartReplica, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(CHECKPOINT.model), "prefix_stable", False)
    engine, events = await replica(), random_events(20)
    await engine.append_events("ann", events, 0)
    for _ in range(2):
        assert (await rank(engine, events)).cache == CacheInfo(NONE, 0, 20)
    await settle(engine)
    assert keys(redis_server) == {":log"}


async def test_a_later_model_with_a_longer_window_sees_what_the_log_kept(replica: StartReplica) -> None:
    """How much is kept is a setting of the server: the model with the short window has cut nothing."""
    one, events = await replica(), random_events(2_000)
    for start in range(0, 2_000, 100):
        await one.append_events("ann", events[start : start + 100], start)
    config = small_config()
    longer = small_checkpoint(config=config.model_copy(update={"max_history": 1_900, "window_chunk": 100}))
    assert one.histories.redis is not None
    histories = HistoryOptions(redis=one.histories.redis.options)
    engine = compose(longer, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16), histories=histories))
    await engine.start()
    result = await engine.rank(request(), None)
    expected = cold_scores(longer, events, request()).numpy()
    assert np.abs(result.task_scores - expected).max() <= BOUND
    await engine.close()


async def test_appends_across_replicas_check_the_length(replica: StartReplica) -> None:
    one, two, events = await replica(), await replica(), random_events(20)
    await one.append_events("ann", events[:10], 0)
    with pytest.raises(LengthMismatch):
        await two.append_events("ann", events[10:], 0)
    assert await two.append_events("ann", events[10:], 10) == 20
    await rank(one, events)


@pytest.mark.usefixtures("always_fetch")
async def test_a_likely_fetch_leaves_with_the_read_of_the_log(
    replica: StartReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, events = await replica(), await replica(), random_events(20)
    monkeypatch.setattr(Predictor, "expected_fetch_wins", lambda *_: True)
    for user_id in ("ann", "bob", "eve"):
        await one.append_events(user_id, events, 0)
        await rank(one, events, user_id)
    await settle(one)
    assert two.histories.redis is not None
    right, order = two.histories.redis.client.call, []

    async def watched(op: str, *rest: object) -> object:
        order.append(op)
        return await right(op, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(two.histories.redis.client, "call", watched)
    for user_id, expected in (
        ("ann", ["log_read", "chunks_read"]),  # nothing is known of usual lengths yet
        ("bob", ["log_read", "chunks_read"]),
        ("bob", ["log_read"]),
    ):
        order.clear()
        result = await rank(two, events, user_id)
        assert result.cache.reused_tokens == 20
        assert [op for op in order if op in expected] == expected
    began = asyncio.Event()
    read = two.histories.log.read

    async def slow_read(user_id: str, timeout_s: float) -> object:
        await asyncio.wait_for(began.wait(), 5)
        return await read(user_id, timeout_s)

    async def early(op: str, *rest: object) -> object:
        if op == "chunks_read":
            began.set()
        return await right(op, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(two.histories.log, "read", slow_read)
    monkeypatch.setattr(two.histories.redis.client, "call", early)
    assert (await rank(two, events, "eve")).cache == CacheInfo(REDIS, 20, 0)


async def test_the_decision_is_in_the_trace_and_the_metrics(
    replica: StartReplica, monkeypatch: pytest.MonkeyPatch, here: CacheSource
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(mfalcon.engine.engine, "_tracer", provider.get_tracer("test"))
    engine, events = await replica(), random_events(20)
    await engine.append_events("ann", events, 0)
    for _ in range(2):
        await rank(engine, events)
    first, second = (dict(span.attributes or {}) for span in exporter.get_finished_spans())
    decision = str(first["mfalcon.state.decision"])
    assert decision.endswith((": cheaper", ": only way", ": meets deadline")) and " ms (<= " in decision
    assert (first["mfalcon.state.source"], second["mfalcon.state.source"]) == ("none", here.name.lower())
    assert second["mfalcon.state.decision"] == "nothing to decide"
    assert not any("ann" in str(item) for item in first.values())
    choices = [
        sample.value
        for family in engine.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "mfalcon_state_decisions_total"
    ]
    assert choices == [1]
    assert value(engine.metrics, "mfalcon_state_lookups_total", model=engine.model.name, source=here.name.lower()) == 1
    assert value(engine.metrics, "mfalcon_state_tokens_total", model=engine.model.name, how="reused") == 20


@pytest.mark.usefixtures("always_fetch")
async def test_requests_that_come_together_fetch_once(replica: StartReplica) -> None:
    one, two, events = await replica(), await replica(), random_events(20)
    await one.append_events("ann", events, 0)
    await rank(one, events)
    await settle(one)
    results = await asyncio.gather(*(rank(two, events) for _ in range(10)))
    assert {result.cache.encoded_tokens for result in results} == {0}
    assert value(two.metrics, "mfalcon_redis_seconds_count", op="chunks_read") == 1


@pytest.mark.usefixtures("always_fetch")
async def test_replicas_on_a_cluster(replica: StartReplica, redis_cluster: RedisCluster) -> None:
    one, two = await replica(url=redis_cluster.url), await replica(url=redis_cluster.url)
    events, users = random_events(20), [f"u{i}" for i in range(8)]
    for user_id in users:
        await one.append_events(user_id, events, 0)
        await rank(one, events, user_id)
    await settle(one)
    for user_id in users:
        assert (await rank(two, events, user_id)).cache == CacheInfo(REDIS, 20, 0)
    sizes = [server.command("DBSIZE") for server in redis_cluster.servers]
    assert all(isinstance(size, int) and size > 0 for size in sizes)
    for user_id in users:
        await two.delete_user(user_id)
    for server in redis_cluster.servers:
        left = server.command("KEYS", "*{*")
        assert left == []


async def test_a_budget_holds_on_a_cluster(replica: StartReplica, redis_cluster: RedisCluster) -> None:
    engine, events = await replica(url=redis_cluster.url, budget_bytes=1), random_events(20)
    await asyncio.sleep(0.3)
    await engine.append_events("ann", events, 0)
    await rank(engine, events)
    await settle(engine)
    assert value(engine.metrics, "mfalcon_write_behind_dropped_total", reason="budget") == 1


async def test_redis_is_asked_again_after_it_was_empty(replica: StartReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Misses make recomputing look cheaper, but what is not asked is learnt of beside the requests."""
    one, two, events = await replica(), await replica(), random_events(20)
    monkeypatch.setattr("mfalcon.kvcache.fetch._LEARN_SECONDS", 0.0)
    recall = two.catalog.default.fetcher
    for _ in range(20):
        recall._coverage.observe(0)
    for user in range(12):
        await one.append_events(f"u{user}", events, 0)
        await rank(one, events, f"u{user}")
    await settle(one)
    poor = recall._coverage.fraction
    monkeypatch.setattr(Predictor, "decide", lambda *_: Decision("recompute", "cheaper", None, Estimate(1, 1)))
    for user in range(12):
        assert (await rank(two, events, f"u{user}")).cache.source is NONE  # no request waits for what is learnt
        await asyncio.sleep(0.005)
    assert poor <= 0.05 and recall._coverage.fraction > 0.9
    assert value(two.metrics, "mfalcon_redis_seconds_count", op="chunks_read") > 10


async def test_a_fetch_that_timed_out_is_remembered_as_slow(
    replica: StartReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, events = await replica(), random_events(20)
    assert engine.histories.redis is not None
    await engine.append_events("ann", events, 0)

    async def hang(*_: object) -> list[object]:
        await asyncio.sleep(0.05)
        raise StorageUnavailable("no answer", may_be_done=True)

    monkeypatch.setattr(remote(engine).states, "fetch", hang)
    before = engine.catalog.default.predictor.fetch.predict(1_000).seconds
    for _ in range(10):
        await asyncio.gather(engine.catalog.default.fetcher._ask(user_hash("ann"), 20, 0.05))
    assert engine.catalog.default.predictor.fetch.predict(1_000).seconds > 5 * before
    assert engine.catalog.default.fetcher._coverage.fraction == 1.0


@pytest.mark.usefixtures("always_fetch")
async def test_a_fetched_state_is_not_written_back(replica: StartReplica) -> None:
    one, two, events = await replica(), await replica(), random_events(20)
    await one.append_events("ann", events, 0)
    await rank(one, events)
    await settle(one)
    assert (await rank(two, events)).cache.source is REDIS
    await settle(two)
    assert value(two.metrics, "mfalcon_chunks_total", direction="written") == 0


async def test_a_request_in_a_hurry_does_not_wait_for_anothers_fetch(
    replica: StartReplica, always_fetch: None, monkeypatch: pytest.MonkeyPatch, here: CacheSource
) -> None:
    one, two, events = await replica(), await replica(), random_events(20)
    fetch_s = 4.0 if here is CacheSource.GPU else 1.0  # the interpreter needs seconds
    await one.append_events("ann", events, 0)
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


async def test_a_page_of_deletions_that_fails_is_read_again(
    replica: StartReplica, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await replica()
    assert engine.histories.redis is not None and engine.histories.redis.deletions is not None
    deletions = Deletions(engine.histories.redis.client, remote(engine).states._keys)
    monkeypatch.setattr("mfalcon.history.deletions._PAGE", 2)
    assert await deletions.poll() == []
    redis_server.command("XADD", "t:deletions", "*", "something", "else")
    for number in range(3):
        await deletions.publish(Deletion(bytes([number]), b"life"))
    right, calls = deletions._client.call, 0

    async def fail_once(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise StorageUnavailable("no answer")
        return await right(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(deletions._client, "call", fail_once)
    with pytest.raises(StorageUnavailable):
        await deletions.poll()
    assert [deletion.user for deletion in await deletions.poll() or ()] == [b"\0", b"\1", b"\2"]
