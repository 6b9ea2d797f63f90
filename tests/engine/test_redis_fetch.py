"""What one replica encodes another fetches through Redis, and every score is that of a cold forward."""

import asyncio

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import mfalcon.spans
from loadtest.faults.redis_cluster import RedisCluster
from loadtest.faults.redis_server import RedisServer
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.errors import HistoryMismatch
from mfalcon.history.chain import user_hash
from mfalcon.kvcache import chunk
from mfalcon.kvcache.chunk import PayloadDtype
from mfalcon.kvcache.cost import Estimate
from mfalcon.kvcache.decision import Decision
from mfalcon.kvcache.planner import Predictor
from mfalcon.models.registry import prefix_rankers
from mfalcon.types import Append, CacheInfo, CacheSource, no_events
from tests.engine.replicas import (
    BOUND,
    CHECKPOINT,
    ITEMS,
    NONE,
    PATIENCE_S,
    REDIS,
    StartReplica,
    keys,
    rank,
    remote,
    request,
    settle,
    value,
)
from tests.redis_fixtures import keys_left
from tests.small import cold_scores, random_events, small_checkpoint, small_config

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.usefixtures("always_fetch")
@pytest.mark.parametrize("architecture", prefix_rankers())
async def test_what_one_replica_encoded_another_fetches(
    replica: StartReplica, architecture: str, here: CacheSource
) -> None:
    one, two = await replica(architecture), await replica(architecture)
    events, per_event = random_events(30), small_checkpoint(architecture).prefix_model.tokens_per_event
    await one.append_events("ann", Append(events[:20], 0))
    assert (await rank(one, events[:20])).cache == CacheInfo(NONE, 0, 20 * per_event)
    await settle(one)
    assert (await rank(two, events[:20])).cache == CacheInfo(REDIS, 20 * per_event, 0)
    assert (await rank(two, events[:20])).cache == CacheInfo(here, 20 * per_event, 0)
    await two.append_events("ann", Append(events[20:23], 20))
    assert (await rank(two, events[:23])).cache == CacheInfo(here, 20 * per_event, 3 * per_event)
    await settle(two)
    three = await replica(architecture)
    assert (await rank(three, events[:23])).cache == CacheInfo(REDIS, 23 * per_event, 0)
    # The stale one finds the other's longer state, not its own.
    assert (await rank(one, events[:23])).cache == CacheInfo(REDIS, 23 * per_event, 0)
    await three.append_events("ann", Append(events[23:], 23))  # the window slides: no state fits
    assert (await rank(one, events)).cache.source is NONE
    recent = events[-1:]
    assert (await rank(two, events, recent=recent)).cache.encoded_tokens > 0


@pytest.mark.usefixtures("always_fetch")
async def test_a_stale_replica_never_answers_from_its_old_state(replica: StartReplica, here: CacheSource) -> None:
    one, two, events = await replica(), await replica(), random_events(24)
    for length in range(4, 9 if here is CacheSource.GPU else 24):
        writer, reader = (one, two) if length % 2 else (two, one)
        await writer.append_events("ann", Append(events[length - 1 : length] if length > 4 else events[:4]))
        await rank(reader, events[:length])
        await rank(writer, events[:length])


@pytest.mark.usefixtures("always_fetch")
async def test_an_edited_history_meets_no_state_of_the_old_one(replica: StartReplica) -> None:
    one, two, events = await replica(), await replica(), random_events(20)
    await one.append_events("ann", Append(events, 0))
    for engine in (one, two):
        await rank(engine, events)
    await settle(one, two)
    edited = events.copy()
    edited["item_id"][3] = ITEMS[0]
    edited["actions"][3] ^= 1
    await two.delete_user("ann")
    await two.append_events("ann", Append(edited, 0))
    for engine in (one, two, await replica()):
        await rank(engine, edited)


@pytest.mark.usefixtures("always_fetch")
async def test_an_embedded_log_with_states_in_redis(replica: StartReplica) -> None:
    """A process that restarts and is told the same histories again finds its states."""
    one, events = await replica(holds_log=False), random_events(20)
    await one.append_events("ann", Append(events, 0))
    await rank(one, events)
    await settle(one)
    two = await replica(holds_log=False)
    assert (await rank(two, no_events())).cache == CacheInfo(NONE, 0, 0)
    await two.append_events("ann", Append(events, 0))
    assert (await rank(two, events)).cache == CacheInfo(REDIS, 20, 0)


@pytest.mark.usefixtures("always_fetch")
async def test_an_append_writes_the_last_chunk_only(replica: StartReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk, "FULL_CHUNK_BYTES", 4 * 2 * 2 * 2 * 16 * 8)
    engine, events = await replica(), random_events(22)
    assert engine.histories.redis is not None
    size = remote(engine).states.layout.events_per_chunk
    assert 1 < size < 10
    await engine.append_events("ann", Append(events[:20], 0))
    await rank(engine, events[:20])
    await settle(engine)
    written = value(engine.metrics, "mfalcon_chunks_total", direction="written")
    assert written == -(-20 // size)
    for length in (21, 22):
        await engine.append_events("ann", Append(events[length - 1 : length]))
        await rank(engine, events[:length])
        await settle(engine)
    assert value(engine.metrics, "mfalcon_chunks_total", direction="written") - written <= 3
    assert (await rank(await replica(), events)).cache == CacheInfo(REDIS, 22, 0)


async def test_chunks_live_from_their_last_use(replica: StartReplica, redis_server: RedisServer) -> None:
    one, events = await replica(ttl_s=100.0), random_events(20)
    await one.append_events("ann", Append(events, 0))
    await rank(one, events)
    await settle(one)
    assert one.histories.redis is not None
    states = remote(one).states
    name = states.chunk_key(user_hash("ann"), 0)
    remaining = redis_server.command("PTTL", name)
    assert isinstance(remaining, int) and 90_000 < remaining <= 100_000
    redis_server.command("PEXPIRE", name, 5_000)
    await states.touch(user_hash("ann"), 1, PATIENCE_S)
    remaining = redis_server.command("PTTL", name)
    assert isinstance(remaining, int) and remaining > 90_000
    assert redis_server.command("PTTL", one.histories.redis.keys.log(user_hash("ann"))) == -1


@pytest.mark.usefixtures("always_fetch")
async def test_int8_and_other_models_do_not_meet(replica: StartReplica, here: CacheSource) -> None:
    exact, coarse = await replica(), await replica(state_dtype=PayloadDtype.INT8)
    other, events = await replica("hstu"), random_events(20)
    await exact.append_events("ann", Append(events, 0))
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


async def test_a_model_without_a_stable_prefix_shares_nothing(
    replica: StartReplica, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(CHECKPOINT.model), "prefix_stable", False)
    engine, events = await replica(), random_events(20)
    await engine.append_events("ann", Append(events, 0))
    for _ in range(2):
        assert (await rank(engine, events)).cache == CacheInfo(NONE, 0, 20)
    await settle(engine)
    assert keys(redis_server) == {":log"}


async def test_a_later_model_with_a_longer_window_sees_what_the_log_kept(replica: StartReplica) -> None:
    """How much is kept is a setting of the server: the model with the short window has cut nothing."""
    one, events = await replica(), random_events(2_000)
    for start in range(0, 2_000, 100):
        await one.append_events("ann", Append(events[start : start + 100], start))
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
    await one.append_events("ann", Append(events[:10], 0))
    with pytest.raises(HistoryMismatch):
        await two.append_events("ann", Append(events[10:], 0))
    assert (await two.append_events("ann", Append(events[10:], 10))).history_len == 20
    await rank(one, events)


@pytest.mark.usefixtures("always_fetch")
async def test_a_likely_fetch_leaves_with_the_read_of_the_log(
    replica: StartReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, events = await replica(), await replica(), random_events(20)
    monkeypatch.setattr(Predictor, "expected_fetch_wins", lambda *_: True)
    for user_id in ("ann", "bob", "eve"):
        await one.append_events(user_id, Append(events, 0))
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
    monkeypatch.setattr(mfalcon.spans, "_tracer", provider.get_tracer("test"))
    engine, events = await replica(), random_events(20)
    await engine.append_events("ann", Append(events, 0))
    for _ in range(2):
        with provider.get_tracer("test").start_as_current_span("caller"):
            await rank(engine, events)
    first, second = (dict(span.attributes or {}) for span in exporter.get_finished_spans() if span.name == "rank")
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
    await one.append_events("ann", Append(events, 0))
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
        await one.append_events(user_id, Append(events, 0))
        await rank(one, events, user_id)
    await settle(one)
    for user_id in users:
        assert (await rank(two, events, user_id)).cache == CacheInfo(REDIS, 20, 0)
    sizes = [server.command("DBSIZE") for server in redis_cluster.servers]
    assert all(isinstance(size, int) and size > 0 for size in sizes)
    for user_id in users:
        await two.delete_user(user_id)
    for server in redis_cluster.servers:
        assert keys_left(server, "*{*") == []


async def test_redis_is_asked_again_after_it_was_empty(replica: StartReplica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Misses make recomputing look cheaper, but what is not asked is learnt of beside the requests."""
    one, two, events = await replica(), await replica(), random_events(20)
    monkeypatch.setattr("mfalcon.kvcache.fetch._LEARN_SECONDS", 0.0)
    coverage = two.catalog.default.predictor.coverage
    for _ in range(20):
        coverage.observe(0)
    for user in range(12):
        await one.append_events(f"u{user}", Append(events, 0))
        await rank(one, events, f"u{user}")
    await settle(one)
    poor = coverage.fraction
    monkeypatch.setattr(Predictor, "decide", lambda *_: Decision("recompute", "cheaper", None, Estimate(1, 1)))
    async with asyncio.timeout(60):
        for user in range(12):
            assert (await rank(two, events, f"u{user}")).cache.source is NONE  # no request waits for what is learnt
            while value(two.metrics, "mfalcon_redis_seconds_count", op="chunks_read") <= user:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        while coverage.fraction <= 0.9:  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0.005)
    assert poor <= 0.05


@pytest.mark.usefixtures("always_fetch")
async def test_a_fetched_state_is_not_written_back(replica: StartReplica) -> None:
    one, two, events = await replica(), await replica(), random_events(20)
    await one.append_events("ann", Append(events, 0))
    await rank(one, events)
    await settle(one)
    assert (await rank(two, events)).cache.source is REDIS
    await settle(two)
    assert value(two.metrics, "mfalcon_chunks_total", direction="written") == 0
