"""The log in a real Redis: in order, exactly once, verified, whoever else writes and whatever Redis does."""

import asyncio
import time
from collections.abc import Awaitable

import numpy as np
import pytest

from loadtest.faults.redis_server import RedisServer
from mfalcon.errors import DamagedLog, DeadlineExceeded, HistoryMismatch, InvalidInput, StorageUnavailable
from mfalcon.history.history import History, no_history
from mfalcon.history.local_log import LocalLog
from mfalcon.history.redis_log import LogOptions, RedisLog
from mfalcon.history.redis_scripts import DELETE
from mfalcon.metrics.states import StateMetrics
from mfalcon.types import EVENT_DTYPE, Append, Appended, Events
from tests.history.replicas import KEYS, PATIENCE_S, RETENTION, Replica, read
from tests.redis_fixtures import OwnRedis
from tests.small import random_events


def key(user_id: str = "ann") -> str:
    return KEYS.log(no_history(user_id).user)


async def assert_holds(log: RedisLog, events: Events, user_id: str = "ann") -> History:
    history = await read(log, user_id)
    assert len(history) == len(events)
    assert history.events.tobytes() == events[history.base :].tobytes()
    assert history.link(len(events)) == no_history(user_id).extended(events).link(len(events))
    return history


def reads(metrics: StateMetrics) -> tuple[float, ...]:
    """How many brought the whole log, what was new in it, and nothing."""
    values = (
        metrics.registry.get_sample_value("mfalcon_log_reads_total", {"kind": kind})
        for kind in ("full", "delta", "unchanged")
    )
    return tuple(value or 0.0 for value in values)


async def test_what_one_replica_appends_the_other_reads(replica: Replica) -> None:
    metrics = StateMetrics()
    one, two, events = replica(), replica(metrics=metrics), random_events(100)
    await assert_holds(two, events[:0])
    assert (await one.append("ann", Append(events[:30], 0), None)).history_len == 30
    await assert_holds(two, events[:30])
    assert (await two.append("ann", Append(events[30:31], 30), None)).history_len == 31
    told = await one.append("ann", Append(events[31:33]), None)  # its copy was old: it met the other's event first
    assert told.history_len == 33
    await assert_holds(two, events[:33])
    await assert_holds(two, events[:33])
    assert reads(metrics) == (1, 1, 2)  # once empty


async def test_a_read_moves_only_what_the_copy_lacks(replica: Replica, redis_server: RedisServer) -> None:
    one, two, events = replica(), replica(), random_events(200)
    await one.append("ann", Append(events[:199]), None)
    await read(two)
    await one.append("ann", Append(events[199:]), None)
    before = sent_bytes(redis_server)
    await assert_holds(two, events)
    cost = sent_bytes(redis_server) - before - len(redis_server.text("INFO", "stats"))
    assert 112 + 24 < cost < 112 + 24 + 100, "a header, an event and the frames around them"


def sent_bytes(server: RedisServer) -> int:
    return int(server.text("INFO", "stats").split("total_net_output_bytes:")[1].split()[0])


async def test_expected_len_is_checked_against_the_log_not_the_copy(replica: Replica) -> None:
    one, two, events = replica(), replica(), random_events(20)
    await one.append("ann", Append(events[:10], 0), None)
    await read(two)
    await one.append("ann", Append(events[10:], 10), None)
    with pytest.raises(HistoryMismatch) as refused:
        await two.append("ann", Append(events[10:], 10), None)
    assert refused.value.history_len == 20
    with pytest.raises(HistoryMismatch):
        await replica().append("ann", Append(events, 0), None)
    await assert_holds(replica(), events)


async def test_time_runs_forward_across_replicas(replica: Replica) -> None:
    one, two, events = replica(), replica(), random_events(20)
    await one.append("ann", Append(events), None)
    with pytest.raises(InvalidInput, match=r"events\[0\]\.time_ms"):
        await two.append("ann", Append(events[:1]), None)
    await assert_holds(two, events)


async def test_many_writers_without_a_length_lose_and_double_nothing(replica: Replica) -> None:
    """Each event is acknowledged once; those of a writer stay in its order."""
    metrics, per_writer = StateMetrics(), 25
    logs = [replica(metrics=metrics) for _ in range(4)]

    async def write(writer: int) -> None:
        for number in range(per_writer):
            event = np.zeros(1, dtype=EVENT_DTYPE)
            event["item_id"], event["value"], event["time_ms"] = writer, number, 1
            await logs[writer % 4].append("ann", Append(event), None)

    await asyncio.gather(*(write(writer) for writer in range(8)))
    events = (await read(replica())).events
    assert len(events) == 8 * per_writer
    for writer in range(8):
        assert events["value"][events["item_id"] == writer].tolist() == list(range(per_writer))
    assert metrics.registry.get_sample_value("mfalcon_log_conflicts_total")


async def test_of_racing_writers_with_a_length_one_wins(replica: Replica) -> None:
    logs, events = [replica() for _ in range(4)], random_events(30)
    for length in range(30):
        answers = await asyncio.gather(
            *(log.append("ann", Append(events[length : length + 1], length), None) for log in logs),
            return_exceptions=True,
        )
        assert sorted(isinstance(answer, HistoryMismatch) for answer in answers) == [False, True, True, True]
    await assert_holds(replica(), events)


async def test_the_same_as_the_embedded_log(replica: Replica) -> None:
    """Any plan of appends, deletes and reads by either of two replicas; logs are cut on the way."""
    rng, logs, embedded = np.random.default_rng(5), [replica(), replica()], LocalLog(RETENTION)
    last = 0
    for step in range(300):
        log = logs[rng.integers(2)]
        what = rng.random()
        if what < 0.6:
            events = random_events(int(rng.integers(1, 40)), step, last)
            last = int(events["time_ms"][-1])
            expected_len = int(rng.integers(0, 60)) if rng.random() < 0.2 else None
            answers = [
                await outcome(some.append("ann", Append(events, expected_len), None)) for some in (log, embedded)
            ]
            assert answers[0] == answers[1]
        elif what < 0.62:
            ended, began_anew = await log.delete("ann", None), await embedded.delete("ann", None)
            assert ended or not began_anew
            last = 0
        else:
            mine, theirs = await read(log), (await embedded.read("ann", 0)).history
            assert (mine.base, len(mine), mine.links) == (theirs.base, len(theirs), theirs.links)
            assert mine.events.tobytes() == theirs.events.tobytes()
    assert mine.base > 0


async def outcome(append: Awaitable[Appended]) -> Appended | str:
    try:
        return await append
    except HistoryMismatch as error:
        return str(error)


async def test_a_cut_log_is_bounded_and_a_slow_replica_follows(replica: Replica, redis_server: RedisServer) -> None:
    one, slow, events = replica(), replica(), random_events(1_000)
    await one.append("ann", Append(events[:150]), None)
    await read(slow)
    for start in range(150, 1_000, 10):
        await one.append("ann", Append(events[start : start + 10], start), None)
        stored = redis_server.command("STRLEN", key())
        assert isinstance(stored, int)
        assert stored <= 112 + 24 * (200 + 64 + 64 + 32)
    assert (await assert_holds(slow, events)).base > 600
    assert (await assert_holds(one, events)).base == (await read(slow)).base


async def test_one_append_larger_than_the_window(replica: Replica) -> None:
    events = random_events(5_000)
    log = replica()
    assert (await log.append("ann", Append(events[:10]), None)).history_len == 10
    assert (await log.append("ann", Append(events[10:], 10), None)).history_len == 5_000
    for some in (log, replica()):
        assert (await assert_holds(some, events)).base >= 4_700


async def test_a_deleted_log_begins_anew(replica: Replica) -> None:
    one, two, events = replica(), replica(), random_events(20)
    await one.append("ann", Append(events), None)
    first = (await read(two)).generation
    assert await two.delete("ann", None) == first
    assert await one.delete("ann", None) == first  # asked again: what the first has ended
    await assert_holds(one, events[:0])
    with pytest.raises(HistoryMismatch):
        await one.append("ann", Append(events[:5], 20), None)
    assert (await one.append("ann", Append(events[:5]), None)).history_len == 5
    assert (await assert_holds(two, events[:5])).generation not in (first, b"")


async def test_deleted_and_grown_again_behind_a_copy(replica: Replica) -> None:
    """Same user, other events, longer than the copy: the copy is no ancestor."""
    one, two, events = replica(), replica(), random_events(50)
    await one.append("ann", Append(events[:20]), None)
    await read(two)
    await one.delete("ann", None)
    await one.append("ann", Append(events[5:45]), None)
    await assert_holds(two, events[5:45])


@pytest.mark.parametrize("offset", [0, 4, 6, 8, 16, 24, 32, 48, 64, 88, 112, 112 + 24 * 7 + 3])
async def test_a_damaged_log_is_an_error_not_a_history(
    replica: Replica, redis_server: RedisServer, offset: int
) -> None:
    """Any flipped bit of a header, or of an event that the reader has not verified before."""
    await replica().append("ann", Append(random_events(40)), None)
    value = redis_server.command("GETRANGE", key(), offset, offset)
    assert isinstance(value, bytes)
    redis_server.command("SETRANGE", key(), offset, bytes([value[0] ^ 4]))
    metrics = StateMetrics()
    log = replica(metrics=metrics)
    if offset == 24:  # the generation names a life of the log, and proves nothing
        await assert_holds(log, random_events(40))
        return
    with pytest.raises(DamagedLog, match="event log of this user"):
        await log.read("ann", PATIENCE_S)
    assert damaged(metrics) == 1
    with pytest.raises(DamagedLog):
        await log.append("ann", Append(random_events(1, 1, 10**13)), None)


def damaged(metrics: StateMetrics) -> float:
    samples = (sample for family in metrics.log_damaged.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))


async def test_events_lost_by_redis_are_seen(replica: Replica, redis_server: RedisServer) -> None:
    """A Redis that comes back with an older file: the shorter log is the truth now, not our copy."""
    log, events = replica(), random_events(20)
    await log.append("ann", Append(events[:10]), None)
    older = redis_server.command("GET", key())
    await log.append("ann", Append(events[10:]), None)
    assert isinstance(older, bytes)
    redis_server.command("SET", key(), older)
    await assert_holds(log, events[:10])
    assert (await log.append("ann", Append(events[15:], 10), None)).history_len == 15


async def test_bytes_behind_the_log_are_no_events(replica: Replica, redis_server: RedisServer) -> None:
    """An append that died between its two writes left events that the header does not count."""
    log, events = replica(), random_events(20)
    await log.append("ann", Append(events[:10]), None)
    redis_server.command("APPEND", key(), b"x" * 100)
    await assert_holds(replica(), events[:10])
    await log.append("ann", Append(events[10:], 10), None)
    await assert_holds(replica(), events)


async def test_a_copy_that_was_evicted_is_read_again(replica: Replica) -> None:
    """There is room for one copy of 50 events."""
    metrics, histories = StateMetrics(), {f"u{i}": random_events(50, i) for i in range(10)}
    log = replica(metrics=metrics, options=LogOptions(cache_bytes=3_000))
    for user_id, events in histories.items():
        await log.append(user_id, Append(events), None)
    for user_id, events in reversed(histories.items()):
        await assert_holds(log, events, user_id)
    assert reads(metrics) == (9, 0, 1)
    log.drop_all()
    for _ in range(2):
        await assert_holds(log, histories["u0"], "u0")
    assert reads(metrics) == (10, 0, 2)


async def test_acknowledged_events_survive_a_killed_redis(own_redis: OwnRedis, replica: Replica) -> None:
    server, events = own_redis(append_only=True), random_events(60)
    log, known = replica(url=server.url), 0
    for stop in range(10, 61, 10):
        appending = asyncio.create_task(log.append("ann", Append(events[known:stop], known), None))
        await asyncio.sleep(0.0005 * stop / 10)
        server.kill()
        answer = (await asyncio.gather(appending, return_exceptions=True))[0]
        await asyncio.to_thread(server.start)
        length = len(await read(log))
        if isinstance(answer, Appended):
            assert length == stop  # acknowledged is written
        else:
            assert isinstance(answer, StorageUnavailable)
            assert length in (known, stop)  # all of it or nothing
        known = length
        if known < stop:
            assert (await log.append("ann", Append(events[known:stop], known), None)).history_len == stop
            known = stop
    await assert_holds(replica(url=server.url), events)


async def test_unreachable_refuses_or_serves_the_last_verified(redis_server: RedisServer, replica: Replica) -> None:
    strict, lenient, events = replica(), replica(LogOptions(serve_stale=True)), random_events(10)
    await strict.append("ann", Append(events), None)
    for log in (strict, lenient):
        await read(log)
    redis_server.freeze()
    with pytest.raises(StorageUnavailable, match="no answer within 20 ms"):
        await strict.read("ann", 0.02)
    reading = await lenient.read("ann", 0.02)
    assert reading.stale and reading.history.events.tobytes() == events.tobytes()
    with pytest.raises(StorageUnavailable):
        await lenient.read("bob", 0.02)  # nothing verified of him
    with pytest.raises((StorageUnavailable, DeadlineExceeded), match="may have been written all the same"):
        await strict.append("ann", Append(random_events(1, 1, 10**13), 10), time.monotonic() + 0.02)
    redis_server.thaw()
    await asyncio.sleep(0.05)
    assert len(await read(strict)) in (10, 11)


async def test_a_refusal_says_that_nothing_was_written(redis_server: RedisServer, replica: Replica) -> None:
    log, events = replica(), random_events(10)
    await log.append("ann", Append(events), None)
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StorageUnavailable, match=r"refused \(oom\).*; nothing was written"):
        await log.append("ann", Append(random_events(1, 1, 10**13), 10), None)
    await assert_holds(log, events)
    redis_server.command("CONFIG", "SET", "maxmemory", "0")
    await assert_holds(replica(), events)


async def test_a_late_deletion_ends_no_later_life(replica: Replica, redis_server: RedisServer) -> None:
    """A deletion waits in a frozen Redis; its caller gives up, repeats it, and the user comes back."""
    log, events = replica(), random_events(10)
    await log.append("ann", Append(events, 0), None)
    first = (await read(log)).generation
    assert await log.delete("ann", None) == first
    await log.append("ann", Append(events[:5], 0), None)
    late = redis_server.command("EVAL", DELETE, 1, key(), first)
    assert late != first
    await assert_holds(log, events[:5])


async def test_another_users_log_is_no_history(replica: Replica, redis_server: RedisServer) -> None:
    """Copied there by whoever; also one that was cut, whose events prove nothing of their user."""
    for length in (40, 1_000):
        writer = replica()
        await writer.delete("gil", None)
        await writer.append("gil", Append(random_events(length)), None)
        redis_server.command("COPY", key("gil"), key("hal"), "REPLACE")
        with pytest.raises(DamagedLog, match="event log of this user"):
            await replica().read("hal", PATIENCE_S)


@pytest.mark.parametrize("length", [1, 20, 40, 79])
async def test_what_is_left_of_a_log_can_be_deleted(replica: Replica, redis_server: RedisServer, length: int) -> None:
    redis_server.command("SET", key(), b"x" * length)
    log = replica()
    with pytest.raises(DamagedLog):
        await log.read("ann", PATIENCE_S)
    await log.delete("ann", None)
    await assert_holds(log, random_events(0))
    assert (await log.append("ann", Append(random_events(5), 0), None)).history_len == 5


async def test_an_append_that_could_not_even_read_says_so(redis_server: RedisServer, replica: Replica) -> None:
    log = replica()
    await replica().append("ann", Append(random_events(5), 0), None)
    redis_server.freeze()
    with pytest.raises((StorageUnavailable, DeadlineExceeded), match="; nothing was written") as refused:
        await log.append("ann", Append(random_events(1, 1, 10**13), 5), time.monotonic() + 0.05)
    assert not refused.value.may_be_done
    redis_server.thaw()


async def test_inserts_of_replicas_give_the_sorted_log_and_older_copies_are_made_new(replica: Replica) -> None:
    """A copy of before an insert costs one more round trip; nothing is taken for damaged."""
    metrics = StateMetrics()
    one, two, reader = replica(), replica(), replica(metrics=metrics)
    events = random_events(180, seed=4)
    events["time_ms"] += np.arange(180)  # no two of one moment
    order = np.argsort(np.arange(180) + np.random.default_rng(0).uniform(0, 20, 180))
    seen = 0
    for first in range(0, 180, 9):
        some = events[order[first : first + 9]]
        told = await (one, two)[first // 9 % 2].append("ann", Append(some, late_events="insert"), None)
        seen += len(some)
        now = events[np.sort(order[:seen])]
        assert told.history_len == seen and told.version == no_history("ann").extended(now).version
        await assert_holds(reader, now)
    await assert_holds(two, events)
    full, _, _ = reads(metrics)
    assert full > 1 and not metrics.registry.get_sample_value("mfalcon_log_damaged_total", {"reason": "hash"})


async def test_writers_who_insert_at_once_lose_nothing_and_double_nothing(replica: Replica) -> None:
    events = random_events(96, seed=5)
    events["time_ms"] += np.arange(96)  # no two of one moment, so that any order of writers gives the same
    writers = [replica() for _ in range(3)]
    shuffled = events[np.random.default_rng(1).permutation(96)]
    await asyncio.gather(
        *(
            writers[n % 3].append("ann", Append(shuffled[n : n + 4], late_events="insert"), None)
            for n in range(0, 96, 4)
        )
    )
    await assert_holds(replica(), events)


async def test_a_late_event_behind_a_trimmed_log_is_discarded_and_nothing_is_written(replica: Replica) -> None:
    log, events = replica(), random_events(300, seed=6)
    for first in range(0, 300, 50):
        await log.append("ann", Append(events[first : first + 50]), None)
    history = await read(log)
    assert history.base > 0
    oldest = int(history.events["time_ms"][0])
    late = np.array([(7, 1, 1.0, oldest - 1)], dtype=EVENT_DTYPE)
    told = await log.append("ann", Append(late, late_events="insert"), None)
    assert (told.history_len, told.version, told.discarded) == (300, history.version, (0,))
    two = np.concatenate([late, late])
    two["time_ms"][1] = oldest
    told = await log.append("ann", Append(two, late_events="insert"), None)
    assert (told.history_len, told.inserted, told.discarded) == (301, (1,), (0,))
    after = await read(replica())
    assert after.version == told.version and int((after.events["item_id"] == 7).sum()) >= 1
