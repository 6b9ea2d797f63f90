"""The counters that replicas share in Redis are a recount of the logs, whoever appends, dies, deletes or falls behind;
requests go on with old ones while Redis does not answer, and say so.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import numpy as np
import pytest

import mfalcon.counters.redis_counters
import mfalcon.counters.redis_records
from loadtest.faults.redis_cluster import RedisCluster
from loadtest.faults.redis_server import RedisServer
from mfalcon.counters.redis_counters import RedisCounters
from mfalcon.counters.redis_records import Change, CounterRecords, name_of
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.errors import StorageUnavailable
from mfalcon.features.counters import LikeRule
from mfalcon.history.chain import user_hash
from mfalcon.history.history import Reading
from mfalcon.history.redis_log import LogOptions
from mfalcon.redis.client import RedisSettings
from mfalcon.types import EVENT_DTYPE, Append, Appended, Events
from tests.engine.replicas import BOUND, value
from tests.engine.test_counters import CHECKPOINT, CONFIG, ITEMS, LIKE, append, expected, num_stores, shuffled
from tests.redis_fixtures import OwnRedis, keys_left
from tests.small import cold_scores, random_events, rank_request, small_checkpoint

SECONDS = 60
PATIENCE_S = 60.0
PAUSE_S = 0.02
Start = Callable[..., Awaitable[Engine]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts engines with a model that reads counters, on one Redis."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(url: str, *, max_items: int = 1_000, serve_stale: bool = False, wait_s: float = 2.0) -> Engine:
            redis = RedisOptions(
                RedisSettings(url, wait_s, wait_s), prefix="t", log=LogOptions(serve_stale=serve_stale)
            )
            histories = HistoryOptions(log_max_events=64, log_slack=32, max_counted_items=max_items, redis=redis)
            config = EngineConfig(threads=1, ranker=RankerOptions(microbatch=16), histories=histories)
            engine = compose(CHECKPOINT, config)
            await asyncio.to_thread(engine.wait_ready, SECONDS)
            await engine.start()
            stack.push_async_callback(engine.close)
            return engine

        yield start


def store(engine: Engine) -> RedisCounters:
    (only,) = engine.histories.counters.stores
    assert isinstance(only, RedisCounters)
    return only


async def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(PAUSE_S)


async def assert_counted(engines: Sequence[Engine], logs: Mapping[str, Events]) -> None:
    """Within a moment every replica has what a recount of the logs gives, and calls it so."""
    truth = expected(list(logs.values()), ITEMS)
    for engine in engines:
        counters = store(engine)
        for _ in range(int(PATIENCE_S / PAUSE_S)):
            if not counters.is_stale and np.array_equal(counters.read(ITEMS), truth):
                break
            await asyncio.sleep(PAUSE_S)
        np.testing.assert_array_equal(store(engine).read(ITEMS), truth)
        assert not store(engine).is_stale
        ids, numbers = store(engine).content()
        np.testing.assert_array_equal(numbers, expected(list(logs.values()), ids).reshape(-1, 3))


def redis_items(server: RedisServer) -> dict[int, list[int]]:
    flat = server.command("HGETALL", f"t:{{counters:{name_of(LIKE)}}}:items")
    assert isinstance(flat, list)
    raw = [part for part in flat if isinstance(part, bytes)]
    pairs = zip(raw[::2], raw[1::2], strict=True)
    return {int.from_bytes(i, "little"): np.frombuffer(n, dtype="<i8").tolist() for i, n in pairs}


def keys_of(server: RedisServer, part: str) -> list[object]:
    found = server.command("KEYS", f"*{part}*")
    assert isinstance(found, list)
    return list(found)


async def test_replicas_that_append_at_once_count_every_event_once(start: Start, redis_server: RedisServer) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    logs = {f"user-{n}": random_events(n * 30, seed=n) for n in range(1, 6)}  # the longest are cut
    users = list(logs)
    await asyncio.gather(
        *(append(one, user_id, logs[user_id]) for user_id in users[:3]),
        *(append(two, user_id, logs[user_id]) for user_id in users[3:]),
    )
    await assert_counted((one, two), logs)
    shared = np.repeat(random_events(1, seed=9), 40)  # of one moment, so that any order of writers is in order
    shared["item_id"] = ITEMS[np.arange(40) % len(ITEMS)]
    await asyncio.gather(*((one, two)[n % 2].append_events("both", Append(shared[n : n + 1])) for n in range(40)))
    await assert_counted((one, two), {**logs, "both": shared})
    assert store(one).version == store(two).version > 0


async def test_in_a_cluster(start: Start, redis_cluster: RedisCluster) -> None:
    one, two = await start(redis_cluster.url), await start(redis_cluster.url)
    logs = {f"user-{n}": random_events(20, seed=n) for n in range(6)}
    await asyncio.gather(*(append((one, two)[n % 2], user_id, logs[user_id]) for n, user_id in enumerate(logs)))
    await assert_counted((one, two), logs)
    for user_id in list(logs)[:3]:
        await two.delete_user(user_id)
        del logs[user_id]
    await assert_counted((one, two), logs)


async def test_an_append_reads_its_own_events_and_a_rank_scores_by_them(
    start: Start, redis_server: RedisServer
) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    events = random_events(50, seed=3)
    for first in range(0, 50, 10):
        await (one, two)[first // 10 % 2].append_events("ann", Append(events[first : first + 10], first))
        at = (one, two)[first // 10 % 2]
        np.testing.assert_array_equal(store(at).read(ITEMS), expected([events[: first + 10]], ITEMS))
    await assert_counted((one, two), {"ann": events})
    request = rank_request("ann", ITEMS[:9].tolist())
    for engine in (one, two):
        result = await engine.rank(request, None)
        truth = cold_scores(CHECKPOINT, events, request, expected([events], request.candidates))
        assert np.abs(result.task_scores - truth.numpy()).max() <= BOUND
        assert not result.counters_stale and result.counters_version == store(one).version


async def test_what_a_replica_that_died_had_not_counted_is_counted_by_the_next_rank_or_append(
    start: Start, redis_server: RedisServer
) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    logs = {"ann": random_events(40, seed=1), "bob": random_events(40, seed=2)}
    for user_id, events in logs.items():
        await append(one, user_id, events[:14])
        await one.histories.log.append(user_id, Append(events[14:30], 14), None)  # and no more: it died here
    await two.rank(rank_request("ann", [1]), None)
    await assert_counted((one, two), {"ann": logs["ann"][:30], "bob": logs["bob"][:14]})
    await two.append_events("bob", Append(logs["bob"][30:], 30))
    await two.append_events("ann", Append(logs["ann"][30:], 30))
    await assert_counted((one, two), logs)


async def test_a_deletion_takes_all_out_and_a_late_count_of_the_ended_life_does_nothing(
    start: Start, redis_server: RedisServer
) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    logs = {"ann": random_events(150, seed=1), "bob": random_events(20, seed=2)}  # ann's first are cut from her log
    for user_id, events in logs.items():
        await append(one, user_id, events)
    late = (await two.histories.log.read("ann", 1)).history
    assert late.base > 0
    await two.delete_user("ann")
    await assert_counted((one, two), {"bob": logs["bob"]})
    assert keys_left(redis_server, f"*{user_hash('ann').hex()}*") == []
    for engine in (one, two):
        await store(engine).catch_up(late)
    await assert_counted((one, two), {"bob": logs["bob"]})
    again = random_events(9, seed=3)
    await append(one, "ann", again)
    for engine in (one, two):
        await store(engine).catch_up(late)
    await assert_counted((one, two), {"ann": again, "bob": logs["bob"]})
    for user_id in logs:
        await one.delete_user(user_id)
        await one.delete_user(user_id)
    await assert_counted((one, two), {})
    assert redis_items(redis_server) == {}


async def test_a_deletion_that_failed_halfway_is_completed(start: Start, redis_server: RedisServer) -> None:
    """The log has gone when Redis fails. Either the deletion is repeated, or the user comes back before."""
    one = await start(redis_server.url)
    logs = {"ann": random_events(40, seed=1), "bob": random_events(40, seed=2)}
    for user_id, events in logs.items():
        await append(one, user_id, events)
        await one.histories.log.delete(user_id, None)
    await one.delete_user("ann")
    again = random_events(5, seed=3)
    await append(one, "bob", again)
    await assert_counted((one,), {"bob": again})
    assert keys_left(redis_server, f"*{user_hash('ann').hex()}*") == []


async def test_a_long_record_goes_in_steps(
    start: Start, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mfalcon.counters.redis_records, "_STEP", 5)
    one, two = await start(redis_server.url), await start(redis_server.url)
    logs = {"ann": random_events(60, seed=1), "bob": random_events(30, seed=2)}
    for user_id, events in logs.items():
        await one.append_events(user_id, Append(events, 0))
    await assert_counted((one, two), logs)
    await asyncio.gather(one.delete_user("ann"), two.append_events("bob", Append(logs["bob"][-1:], 30)))
    logs["bob"] = np.concatenate([logs["bob"], logs["bob"][-1:]])
    await assert_counted((one, two), {"bob": logs["bob"]})


async def test_an_append_waits_for_no_long_count_nor_for_a_log_that_cannot_be_read(
    start: Start, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, events = await start(redis_server.url), random_events(60, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(mfalcon.counters.redis_counters, "_APPEND_S", -1.0)
        assert (await one.append_events("ann", Append(events[:30], 0))).history_len == 30
        assert store(one).is_stale and not store(one).read(ITEMS).any()
    await assert_counted((one,), {"ann": events[:30]})

    async def unreadable(*_: object) -> Reading:
        raise StorageUnavailable("Redis is unreachable")

    with monkeypatch.context() as patch:
        patch.setattr(one.histories.log, "read", unreadable)
        patch.setattr(one.histories, "copy", lambda _: None)
        assert (await one.append_events("ann", Append(events[30:], 30))).history_len == 60
        assert store(one).is_stale
    await assert_counted((one,), {"ann": events})


async def test_values_of_any_size_and_sign_come_and_go_exactly(start: Start, redis_server: RedisServer) -> None:
    one = await start(redis_server.url)
    logs = {}
    for n, values in enumerate(([1e6, -1e6, 3e38], [-0.5, -3e38, 2.25], [4_194_303.9, -4_194_304.1, 1e-9])):
        events = np.zeros(6, dtype=EVENT_DTYPE)
        events["item_id"], events["time_ms"] = [ITEMS[0], ITEMS[1], -7, 2**63 - 1, -(2**63), ITEMS[0]], 10**12
        events["value"] = np.tile(np.array(values, dtype=np.float32), 2)
        logs[f"user-{n}"] = events
        await one.append_events(f"user-{n}", Append(events, 0))
        await one.append_events(f"user-{n}", Append(events, 6))
        logs[f"user-{n}"] = np.concatenate([events, events])
    await assert_counted((one,), logs)
    for user_id in list(logs):
        await one.delete_user(user_id)
        del logs[user_id]
        await assert_counted((one,), logs)
    assert redis_items(redis_server) == {}


async def test_a_replica_that_fell_behind_the_stream_or_comes_later_copies_all(
    start: Start, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    events = random_events(60, seed=1)
    await append(one, "ann", events[:21])
    await assert_counted((one, two), {"ann": events[:21]})
    copies = value(two.metrics, "mfalcon_counters_copied_total")

    async def held_up(*_: object) -> tuple[bytes, int, list[Change]]:
        raise StorageUnavailable("Redis is unreachable")

    with monkeypatch.context() as patch:  # each sees no more than what it counts itself
        patch.setattr(CounterRecords, "follow", held_up)
        for first in range(21, 60, 7):
            await one.append_events("ann", Append(events[first : first + 7], first))
        assert store(two).version < store(one).version
        redis_server.command("XTRIM", f"t:{{counters:{name_of(LIKE)}}}:stream", "MAXLEN", 2)
    await assert_counted((one, two), {"ann": events})
    assert value(two.metrics, "mfalcon_counters_copied_total") > copies
    await assert_counted((await start(redis_server.url),), {"ann": events})
    redis_server.flush()  # Redis has lost everything: so have the counters
    await assert_counted((one, two), {})
    await append(two, "ann", events)
    await assert_counted((one, two), {"ann": events})


async def test_a_frozen_redis_leaves_old_counters_that_say_so_and_it_heals_by_itself(
    start: Start, own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own_redis()
    one = await start(server.url, serve_stale=True, wait_s=0.5)
    two = await start(server.url, wait_s=0.5)
    events = random_events(60, seed=1)
    await append(one, "ann", events[:21])
    await assert_counted((one, two), {"ann": events[:21]})
    right = one.histories.log.append

    async def then_freeze(*arguments: object) -> Appended:
        told = await right(*arguments)  # type: ignore[arg-type]
        server.freeze()
        return told

    monkeypatch.setattr(one.histories.log, "append", then_freeze)
    began = time.monotonic()
    told = await one.append_events("ann", Append(events[21:40], 21))
    assert told.history_len == 40  # acknowledged by the log, not counted
    assert time.monotonic() - began < PATIENCE_S / 2
    result = await one.rank(rank_request("ann", ITEMS[:9].tolist()), None)
    assert result.counters_stale
    np.testing.assert_array_equal(store(one).read(ITEMS), expected([events[:21]], ITEMS))
    for name in ("failed_total", "waiting", "stale_reads_total"):
        assert value(one.metrics, f"mfalcon_counters_{name}") > 0
    with pytest.raises(StorageUnavailable):
        await two.append_events("ann", Append(events[40:], 40))
    await until(lambda: store(two).is_stale)
    server.thaw()
    monkeypatch.undo()
    await until(lambda: not store(one).is_stale and not store(two).is_stale)
    length = len((await two.histories.log.read("ann", 1)).history)  # what was in flight may have been done
    assert length in (40, 60)
    await two.rank(rank_request("ann", [1]), None)
    await assert_counted((one, two), {"ann": events[:length]})
    assert value(one.metrics, "mfalcon_counters_waiting") == 0


async def test_there_is_a_limit_of_items_for_all_replicas(start: Start, redis_server: RedisServer) -> None:
    one, two = await start(redis_server.url, max_items=5), await start(redis_server.url, max_items=5)
    await asyncio.gather(append(one, "ann", random_events(60, seed=1)), append(two, "bob", random_events(60, seed=2)))
    assert len(redis_items(redis_server)) == 5
    assert value(one.metrics, "mfalcon_counters_left_out_total") > 0
    await one.delete_user("ann")
    assert all(min(numbers[:2]) >= 0 for numbers in redis_items(redis_server).values())
    await one.delete_user("bob")
    await assert_counted((one, two), {})
    assert redis_items(redis_server) == {}


async def test_a_deletion_takes_what_is_no_record_too(start: Start, redis_server: RedisServer) -> None:
    """Somebody has put something else where a user's record was: his deletion would fail for ever."""
    one = await start(redis_server.url)
    name = f"t:{{counters:{name_of(LIKE)}}}:user:{user_hash('ann').hex()}"
    await append(one, "bob", random_events(20, seed=2))
    for begins in (False, True):
        if begins:
            await append(one, "ann", random_events(20, seed=1))
        redis_server.command("DEL", name)
        redis_server.command("RPUSH", name, "x")
        await one.delete_user("ann")
        assert keys_left(redis_server, f"*{user_hash('ann').hex()}*") == []
    assert keys_left(redis_server, f"*user:{user_hash('bob').hex()}*")


async def test_a_deletion_reaches_counters_that_no_model_reads_any_more(
    start: Start, redis_server: RedisServer
) -> None:
    one = await start(redis_server.url)
    logs = {"ann": random_events(20, seed=1), "bob": random_events(20, seed=2)}
    for user_id, events in logs.items():
        await append(one, user_id, events)
    await one.reload("", small_checkpoint)
    assert num_stores(one) == 0
    await one.delete_user("ann")
    assert keys_left(redis_server, f"*{user_hash('ann').hex()}*") == []
    more = random_events(30, seed=2)
    await one.append_events("bob", Append(np.repeat(more[-1:], 3)))
    await one.reload("", lambda: small_checkpoint(config=CONFIG, seed=1))
    await one.rank(rank_request("bob", [1]), None)
    await assert_counted((one,), {"bob": np.concatenate([logs["bob"], np.repeat(more[-1:], 3)])})


async def test_one_damaged_record_holds_up_nobody_else(start: Start, redis_server: RedisServer) -> None:
    one = await start(redis_server.url)
    logs = {f"user-{n}": random_events(20, seed=n) for n in range(3)}
    redis_server.command("SET", f"t:{{counters:{name_of(LIKE)}}}:user:{user_hash('bad').hex()}", "not a record")
    await one.append_events("bad", Append(random_events(20, seed=7), 0))
    for user_id, events in logs.items():
        await append(one, user_id, events)
    truth = expected(list(logs.values()), ITEMS)
    await until(lambda: np.array_equal(store(one).read(ITEMS), truth))
    assert store(one).is_stale  # of one user events are missing
    redis_server.command("DEL", f"t:{{counters:{name_of(LIKE)}}}:user:{user_hash('bad').hex()}")
    await assert_counted((one,), {**logs, "bad": random_events(20, seed=7)})


async def test_who_has_lost_his_log_is_taken_out_in_every_store_by_whoever_is_there(
    start: Start, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mfalcon.counters.redis_counters, "SWEEP_S", 0.02)
    monkeypatch.setattr(mfalcon.counters.redis_counters, "SWEEP_KEYS", 3)
    one, two = await start(redis_server.url), await start(redis_server.url)
    logs = {f"user-{n}": random_events(25, seed=n) for n in range(12)}
    for user_id, events in logs.items():
        await append(one, user_id, events)
    gone = list(logs)[::2]
    for user_id in gone:
        redis_server.command("DEL", f"t:{{{user_hash(user_id).hex()}}}:log")
        del logs[user_id]
    await one.reload("", small_checkpoint)  # which reads no counters
    assert num_stores(one) == 0
    await one.histories.log.append(gone[0], Append(random_events(4, seed=50)), None)  # another life, not yet counted
    await assert_counted((two,), logs)
    assert sum(value(engine.metrics, "mfalcon_counters_swept_total") for engine in (one, two)) == len(gone)
    for user_id in gone[1:]:
        assert keys_of(redis_server, f"user:{user_hash(user_id).hex()}") == []
    await two.rank(rank_request(gone[0], [1]), None)
    await assert_counted((two,), {**logs, gone[0]: random_events(4, seed=50)})


async def test_a_sweep_goes_on_where_it_stood_and_a_step_of_it_is_bounded(
    start: Start, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step by another object, as by another replica; a record of 30 items needs six steps of 5."""
    monkeypatch.setattr(mfalcon.counters.redis_records, "_STEP", 5)
    monkeypatch.setattr(mfalcon.counters.redis_records, "_MOST_SWEPT", 2)
    monkeypatch.setattr(mfalcon.counters.redis_counters, "SWEEP_S", 3_600.0)  # only what is asked here
    one = await start(redis_server.url)
    for n in range(10):
        await one.append_events(f"user-{n}", Append(random_events(30, seed=n), 0))
    bad = f"t:{{counters:{name_of(LIKE)}}}:user:"
    redis_server.command("SET", f"{bad}{user_hash('bad').hex()}", "not a record")
    redis_server.command("HSET", f"{bad}no user", "head", "0" * 16)
    for n in range(10):
        redis_server.command("DEL", f"t:{{{user_hash(f'user-{n}').hex()}}}:log")
    client, keys = one.histories.redis.client, one.histories.redis.keys  # type: ignore[union-attr]
    ended, steps, before = 0, 0, len(redis_items(redis_server))
    while ended < 10:
        assert steps < 300
        found = await CounterRecords(client, keys, name_of(LIKE)).sweep(4, 0.001)
        await asyncio.sleep(0.003)
        ended, steps = ended + found, steps + 1
        assert found <= 2
    assert before > 0 and steps > 20
    await until(lambda: redis_items(redis_server) == {})


async def test_one_replica_at_a_time_sweeps_and_a_user_whose_log_is_there_stays(
    start: Start, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mfalcon.counters.redis_counters, "SWEEP_S", 3_600.0)
    one = await start(redis_server.url)
    logs = {user_id: random_events(40, seed=seed) for seed, user_id in enumerate(("ann", "bob", "eve"))}
    for user_id, events in logs.items():
        await append(one, user_id, events)
    records = CounterRecords(one.histories.redis.client, one.histories.redis.keys, name_of(LIKE))  # type: ignore[union-attr]
    redis_server.command("DEL", f"t:{{{user_hash('ann').hex()}}}:log")
    del logs["ann"]
    assert sorted(await asyncio.gather(*(records.sweep(1_000, 60.0) for _ in range(8)))) == [0] * 7 + [1]
    await assert_counted((one,), logs)
    version = store(one).version
    redis_server.command("DEL", f"t:{{counters:{name_of(LIKE)}}}:sweep")
    assert await records.sweep(1_000, 60.0) == 0
    await assert_counted((one,), logs)
    assert store(one).version == version


def test_stores_of_different_likes_have_different_names() -> None:
    likes = [LikeRule(None, 4), LikeRule(4.0, 0), LikeRule(4.5, 0), LikeRule(None, 0)]
    assert len({name_of(like) for like in likes}) == len(likes)


@pytest.mark.parametrize("num_events", [50, 150])
async def test_replicas_that_insert_at_once_count_every_event_once(
    start: Start, redis_server: RedisServer, num_events: int
) -> None:
    """Also where the log is cut meanwhile: every writer counts its own."""
    one, two = await start(redis_server.url), await start(redis_server.url)
    events = random_events(num_events, seed=7)
    events["time_ms"] += np.arange(num_events)
    late, kept = shuffled(events, 7), list[Events]()
    for first in range(0, num_events, 10):
        some = late[first : first + 10]
        told = await asyncio.gather(
            one.append_events("ann", Append(some[:5], late_events="insert")),
            two.append_events("ann", Append(some[5:], late_events="insert")),
        )
        for part, one_told in zip((some[:5], some[5:]), told, strict=True):
            kept.append(np.delete(part, one_told.discarded))
        if num_events > 64:
            await assert_counted((one, two), {"ann": np.concatenate(kept)})
    await assert_counted((one, two), {"ann": np.concatenate(kept)})
    await two.delete_user("ann")
    await assert_counted((one, two), {})


async def test_an_insert_that_a_dead_replica_did_not_count_is_mended_by_whoever_meets_it(
    start: Start, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steps, from the first event on; two that do so at once do no harm."""
    monkeypatch.setattr(mfalcon.counters.redis_records, "_STEP", 3)
    one, two = await start(redis_server.url), await start(redis_server.url)
    events = random_events(60, seed=1)
    events["time_ms"] += np.arange(60)
    await append(one, "ann", events[10:30])
    await assert_counted((one, two), {"ann": events[10:30]})
    await one.histories.log.append("ann", Append(events[:10], late_events="insert"), None)  # and no more: it died here
    await asyncio.gather(*(engine.rank(rank_request("ann", [1]), None) for engine in (one, two)))
    await until(lambda: store(two).read(ITEMS)[:, 0].sum() == expected([events[:30]], ITEMS)[:, 0].sum())
    await assert_counted((one, two), {"ann": events[:30]})
    mended = [value(engine.metrics, "mfalcon_counters_recounted_total", how="whole") for engine in (one, two)]
    assert sum(mended) >= 1
    await two.append_events("ann", Append(events[30:], late_events="insert"))
    await assert_counted((one, two), {"ann": events})
    await one.delete_user("ann")
    await assert_counted((one, two), {})
    assert redis_items(redis_server) == {}


async def test_a_record_of_a_server_that_knew_no_links_is_gone_on_with(start: Start, redis_server: RedisServer) -> None:
    one = await start(redis_server.url)
    events = random_events(40, seed=2)
    events["time_ms"] += np.arange(40)
    await append(one, "ann", events[5:30])
    record = f"t:{{counters:{name_of(LIKE)}}}:user:{user_hash('ann').hex()}"
    head = redis_server.command("HGET", record, "head")
    assert isinstance(head, bytes) and len(head) == 32
    redis_server.command("HSET", record, "head", head[:16])
    two = await start(redis_server.url)
    await two.append_events("ann", Append(events[:5], late_events="insert"))
    await assert_counted((one, two), {"ann": events[:30]})
    head = redis_server.command("HGET", record, "head")
    assert isinstance(head, bytes)
    redis_server.command("HSET", record, "head", head[:16])
    await (await start(redis_server.url)).append_events("ann", Append(events[30:]))
    await assert_counted((one, two), {"ann": events})
