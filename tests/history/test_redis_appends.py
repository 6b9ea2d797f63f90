"""Appends to the log in Redis: known again by their ids, joined while one is under way, each told its own outcome."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from loadtest.faults.redis_server import RedisServer
from mfalcon.errors import DamagedLog, DeadlineExceeded, HistoryMismatch, InvalidInput, MFalconError, StorageUnavailable
from mfalcon.history import append_ids
from mfalcon.history.append_ids import RECORD_BYTES, USER_BYTES, RecentAppends, Record
from mfalcon.history.history import no_history
from mfalcon.history.joining import MAX_WAITING
from mfalcon.history.local_log import LocalLog
from mfalcon.history.redis_log import LogOptions, RedisLog
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, RedisSettings, Reply
from mfalcon.redis.command import Command
from mfalcon.types import Append, Appended
from tests.history.replicas import KEYS, PATIENCE_S, RETENTION, Replica, read
from tests.small import random_events

ANN = no_history("ann").user


def one(number: int, append_id: str = "", expected_len: int | None = None) -> Append:
    """One event, which tells its number, at a time of all such events."""
    event = random_events(1, 0, 10**13)
    event["item_id"], event["time_ms"] = number, 10**13
    return Append(event, expected_len, append_id=append_id)


async def numbers(log: RedisLog) -> list[int]:
    history = await read(log)
    assert history.version == no_history("ann").extended(history.events).version
    return [int(item_id) for item_id in history.events["item_id"]]


async def outcome(append: Awaitable[Appended]) -> Appended | str:
    try:
        return await append
    except MFalconError as error:
        return f"{type(error).__name__}: {error}"


async def test_a_repeated_append_is_told_what_became_of_the_first(replica: Replica) -> None:
    writer, other = replica(), replica()
    await writer.append("ann", Append(random_events(10)), None)
    first = await writer.append("ann", one(1, "a"), None)
    assert not first.was_written
    for log in (writer, other, replica()):
        for expected_len in (None, 10, 11, 3):
            assert await log.append("ann", one(1, "a", expected_len), None) == replace(first, was_written=True)
        await log.append("ann", one(2), None)
    assert len(await read(other)) == 14
    assert (await numbers(other)).count(1) == 1


async def test_a_lost_append_is_not_taken_for_anothers(redis_server: RedisServer, replica: Replica) -> None:
    """Two writers know ten events. A's append never arrives; B's makes eleven; A asks again."""
    a, b = replica(), replica()
    await b.append("ann", Append(random_events(10)), None)
    await read(a)
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StorageUnavailable, match="nothing was written"):
        await a.append("ann", one(1, "a", 10), None)
    redis_server.command("CONFIG", "SET", "maxmemory", "0")
    theirs = await b.append("ann", one(2, "b", 10), None)
    with pytest.raises(HistoryMismatch) as refused:
        await a.append("ann", one(1, "a", 10), None)
    assert (refused.value.history_len, refused.value.version_hex) == (11, theirs.version.hex())
    assert not refused.value.may_be_done
    assert (await numbers(a))[10:] == [2]


async def test_an_append_without_an_answer_is_told_when_it_is_asked_again(
    redis_server: RedisServer, replica: Replica
) -> None:
    log = replica()
    await log.append("ann", Append(random_events(10)), None)
    redis_server.freeze()
    with pytest.raises((StorageUnavailable, DeadlineExceeded), match="may have been written all the same") as unknown:
        await log.append("ann", one(1, "a"), time.monotonic() + 0.3)
    assert unknown.value.may_be_done
    redis_server.thaw()
    end = time.monotonic() + 60
    while len(await read(log)) < 11:  # Redis comes to it
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    told = await log.append("ann", one(1, "a"), None)
    assert told.was_written and told.history_len == 11
    assert (await numbers(replica()))[10:] == [1]


async def test_an_id_is_of_one_append_alone(replica: Replica) -> None:
    log, local = replica(), LocalLog(RETENTION)
    for some in (log, local):
        await some.append("ann", one(1, "a"), None)
        with pytest.raises(InvalidInput, match="append_id: got 'a', must be another one: other events"):
            await some.append("ann", one(2, "a"), None)
        assert (await some.append("bob", one(2, "a"), None)).history_len == 1


async def test_ids_end_with_the_log(replica: Replica, redis_server: RedisServer) -> None:
    log = replica()
    await log.append("ann", one(1, "a"), None)
    await log.delete("ann", None)
    assert redis_server.command("EXISTS", KEYS.appends(ANN)) == 0
    assert not (await log.append("ann", one(1, "a"), None)).was_written
    redis_server.command("DEL", KEYS.log(ANN))  # by whoever
    told = await log.append("ann", one(1, "a"), None)
    assert not told.was_written and told.history_len == 1
    assert (await replica().append("ann", one(1, "a"), None)).was_written


async def test_ids_are_bounded_in_number_and_time(replica: Replica, redis_server: RedisServer) -> None:
    log = replica(LogOptions(max_ids=20))
    for number in range(90):
        await log.append("ann", one(number, f"{number}"), None)
    assert redis_server.command("HLEN", KEYS.appends(ANN)) == 2 * 20 + 2
    assert (await log.append("ann", one(70, "70"), None)).was_written
    assert not (await log.append("ann", one(69, "69"), None)).was_written
    left = redis_server.command("TTL", KEYS.appends(ANN))
    assert isinstance(left, int)
    assert append_ids.TTL_S - 60 < left <= append_ids.TTL_S


async def test_whatever_lies_where_the_ids_belong_stops_nobody(replica: Replica, redis_server: RedisServer) -> None:
    log = replica()
    await log.append("ann", one(1, "a"), None)
    redis_server.command("SET", KEYS.appends(ANN), "of somebody else")
    assert not (await log.append("ann", one(2, "b"), None)).was_written
    assert (await log.append("ann", one(2, "b"), None)).was_written
    for number, num in enumerate(("nonsense", "nan", "-7", str(2**63 - 1), "1e300"), start=3):
        redis_server.command("HSET", KEYS.appends(ANN), "num", num)
        assert not (await log.append("ann", one(number, num), None)).was_written
        assert (await log.append("ann", one(number, num), None)).was_written
    assert await numbers(log) == [1, 2, 3, 4, 5, 6, 7]


async def test_a_spoilt_record_of_an_append_is_told_to_who_asks_for_it_alone(
    replica: Replica, redis_server: RedisServer
) -> None:
    log = replica()
    await log.append("ann", one(1, "a"), None)
    redis_server.command("HSET", KEYS.appends(ANN), append_ids.id_hash(one(1, "a")), "x")
    answers = await asyncio.gather(*(outcome(log.append("ann", one(1, name), None)) for name in ("", "a", "b", "a")))
    assert [str(answer)[:57] for answer in answers[1::2]] == [
        "DamagedLog: the event log of this user is damaged (append"
    ] * 2
    assert await numbers(log) == [1, 1, 1]


async def test_those_that_wait_are_one_script(replica: Replica, redis_server: RedisServer) -> None:
    metrics = StateMetrics()
    log = replica(metrics=metrics)
    told = await asyncio.gather(*(log.append("ann", one(number), None) for number in range(200)))
    assert [each.history_len for each in told] == list(range(1, 201))
    assert await numbers(log) == list(range(200))
    history = await read(log)
    assert [each.version for each in told] == [history.link(length) for length in range(1, 201)]
    calls = metrics.registry.get_sample_value("mfalcon_redis_seconds_count", {"op": "log_append"})
    assert calls is not None and calls <= 5


async def test_of_a_join_each_has_its_own_answer(replica: Replica) -> None:
    log, other = replica(), replica()
    early = random_events(1, 0, 0)
    early["time_ms"] = 5
    await other.append("ann", one(0, "zero"), None)
    appends = [
        one(1, "a", 1),
        one(2, "b", 1),  # not what the first one leaves
        one(3, "c", 2),
        Append(early),  # older than the log
        one(0, "zero", 77),  # written by another replica
        one(3, "c"),  # again
        one(4, "c"),  # its id is of another
        one(5),
    ]
    told = await asyncio.gather(*(outcome(log.append("ann", append, None)) for append in (one(9), *appends)))
    assert [each if isinstance(each, str) else (each.history_len, each.was_written) for each in told[1:]] == [
        "HistoryMismatch: expected_len: got 1, the history has 2 events; nothing was written",
        "HistoryMismatch: expected_len: got 1, the history has 2 events; nothing was written",
        (3, False),
        f"InvalidInput: events[0].time_ms: got 5, must be at least {10**13}, the time of the last stored event",
        (1, True),
        (3, True),
        "InvalidInput: append_id: got 'c', must be another one: other events have been appended under this one",
        (4, False),
    ]
    assert await numbers(other) == [0, 9, 3, 5]


async def test_who_left_is_not_written(replica: Replica, redis_server: RedisServer) -> None:
    log = replica()
    await log.append("ann", one(0), None)
    redis_server.freeze()
    first = asyncio.create_task(log.append("ann", one(1), None))
    await asyncio.sleep(0.02)
    leaver = asyncio.create_task(log.append("ann", one(2), None))
    late = asyncio.create_task(outcome(log.append("ann", one(3), time.monotonic() + 0.03)))
    last = asyncio.create_task(log.append("ann", one(4), None))
    await asyncio.sleep(0.02)
    leaver.cancel()
    assert await late == (
        "DeadlineExceeded: the deadline passed before the events could be written; nothing was written"
    )
    redis_server.thaw()
    assert [(await first).history_len, (await last).history_len] == [2, 3]
    assert await numbers(log) == [0, 1, 4]


async def test_a_join_that_fails_tells_each_whether_it_was_sent(replica: Replica, redis_server: RedisServer) -> None:
    log = replica(timeout_s=0.2)
    await log.append("ann", one(0), None)
    redis_server.freeze()
    sent = asyncio.create_task(log.append("ann", one(1, "a"), None))
    await asyncio.sleep(0.02)
    waiting = [asyncio.create_task(log.append("ann", one(2, "b"), time.monotonic() + left)) for left in (0.05, 5)]
    with pytest.raises(DeadlineExceeded) as never_sent:
        await waiting[0]
    assert not never_sent.value.may_be_done
    with pytest.raises(StorageUnavailable) as unknown:
        await sent
    assert unknown.value.may_be_done
    redis_server.thaw()
    await outcome(waiting[1])
    for name in ("a", "b"):
        await log.append("ann", one(1 if name == "a" else 2, name), None)
    assert await numbers(replica()) == [0, 1, 2]


async def test_two_replicas_write_one_user_at_once(replica: Replica) -> None:
    logs, told = (replica(), replica()), []

    async def write(log: RedisLog, writer: int) -> None:
        for number in range(10):
            told.append((await log.append("ann", one(100 * writer + number, f"{writer} {number}"), None)).history_len)

    async with asyncio.timeout(60):
        await asyncio.gather(*(write(logs[writer % 2], writer) for writer in range(16)))
    assert sorted(told) == list(range(1, 161))
    written = await numbers(replica())
    assert sorted(written) == sorted(100 * writer + number for writer in range(16) for number in range(10))
    for writer in range(16):
        mine = [number for number in written if number // 100 == writer]
        assert mine == sorted(mine)


class Overtaken(RedisClient):
    """Another replica appends before each of our scripts, unless it must wait."""

    def __init__(self, settings: RedisSettings, metrics: StateMetrics, rival: RedisLog) -> None:
        super().__init__(settings, metrics)
        self.rival = rival
        self.rivals: list[asyncio.Task[Appended]] = []

    async def call(self, op: str, key: str, commands: Sequence[Command], timeout_s: float) -> list[Reply]:
        if op == "log_append":
            number = 100 + len(self.rivals)
            self.rivals.append(asyncio.create_task(self.rival.append("ann", one(number), None)))
            await asyncio.sleep(0.02)
        return await super().call(op, key, commands, timeout_s)


async def test_who_always_comes_second_gets_a_turn(replica: Replica, redis_server: RedisServer) -> None:
    metrics = StateMetrics()
    client = Overtaken(RedisSettings(redis_server.url, PATIENCE_S, PATIENCE_S), metrics, replica())
    log = RedisLog(client, KEYS, RETENTION, metrics)
    try:
        for number in range(3):
            before = len(client.rivals)
            async with asyncio.timeout(60):
                await log.append("ann", one(number), None)
            assert len(client.rivals) - before <= 6
        await asyncio.gather(*client.rivals)
        written = await numbers(replica())
        assert sorted(written) == [0, 1, 2, *range(100, 100 + len(client.rivals))]
        assert redis_server.command("EXISTS", KEYS.turn(ANN)) == 0
    finally:
        await client.close()


async def test_a_turn_ends_with_its_writer(replica: Replica, redis_server: RedisServer) -> None:
    """A replica that died has left its turn behind; and something else lies where turns belong."""
    log = replica()
    began = time.monotonic()
    redis_server.command("SET", KEYS.turn(ANN), "somebody", "PX", 200)
    assert (await log.append("ann", one(1), None)).history_len == 1
    assert time.monotonic() - began > 0.1
    redis_server.command("RPUSH", KEYS.turn(ANN), "no turn")
    assert (await log.append("ann", one(2), None)).history_len == 2
    redis_server.command("SET", KEYS.turn(ANN), "a turn without an end")
    assert (await log.append("ann", one(3), time.monotonic() + PATIENCE_S)).history_len == 3


async def test_ids_in_both_logs_tell_the_same(replica: Replica) -> None:
    rng, log, local = np.random.default_rng(3), replica(), LocalLog(RETENTION)
    for _ in range(200):
        number = int(rng.integers(20))
        expected_len = int(rng.integers(30)) if rng.random() < 0.3 else None
        append = one(number + int(rng.random() < 0.1), f"{number}" if rng.random() < 0.9 else "", expected_len)
        assert await outcome(log.append("ann", append, None)) == await outcome(local.append("ann", append, None))


def test_a_record_tells_all_that_was_told() -> None:
    append = Append(random_events(77), append_id="a")
    told = Appended(100, bytes(range(16)), clamped=(0, 76), inserted=(1, 33), discarded=(8,))
    for each in (told, Appended(2**40, bytes(16))):
        record = Record.of(append, each)
        assert Record.unpack(record.pack()) == record
        assert record.told_again(append) == replace(each, was_written=True)
    assert len(Record.of(append, Appended(1, bytes(16))).pack()) == 32


def test_recent_appends_are_bounded() -> None:
    now = [0.0]
    recent = RecentAppends(
        max_ids=3, ttl_s=10, max_bytes=5 * (32 + RECORD_BYTES) + 3 * USER_BYTES, clock=lambda: now[0]
    )

    def add(user_id: str, *names: str) -> None:
        for name in names:
            recent.add(user_id, one(1, name), Appended(1, bytes(16)))

    def known(user_id: str, *names: str) -> list[str]:
        return [name for name in names if recent.find(user_id, one(1, name))]

    add("ann", "a", "b", "c", "d")
    assert known("ann", "a", "b", "c", "d") == ["b", "c", "d"]
    now[0] = 5
    add("bob", "a", "b")
    add("cid", "a")  # six records: ann, who appended longest ago, is forgotten
    assert (known("ann", "d"), known("bob", "a", "b"), known("cid", "a")) == ([], ["a", "b"], ["a"])
    now[0] = 14.9
    add("bob", "c")
    now[0] = 15.1
    assert (known("cid", "a"), known("bob", "a", "b", "c")) == ([], ["a", "b", "c"])
    recent.delete("bob")
    assert recent.num_bytes == 0
    late = Append(random_events(10_000), append_id="late")
    for user_id in ("ann", "bob"):  # two bits an event: more than there is room for
        recent.add(user_id, late, Appended(10_000, bytes(16), inserted=tuple(range(10_000))))
    assert recent.num_bytes == USER_BYTES + 32 + 2_500 + RECORD_BYTES
    assert [recent.find(user_id, late) is None for user_id in ("ann", "bob")] == [True, False]


async def test_events_that_the_log_lost_are_counted_and_told_once(replica: Replica, redis_server: RedisServer) -> None:
    """A failover: the log of the same life goes on from an older moment, and another writer has been there."""
    metrics = StateMetrics()
    log, other = replica(metrics=metrics), replica()
    await log.append("ann", Append(random_events(40)), None)
    older = redis_server.command("GET", KEYS.log(ANN))
    assert isinstance(older, bytes)
    for number in range(3):
        await log.append("ann", one(number), None)
    redis_server.command("SET", KEYS.log(ANN), older)
    for number in range(10, 15):
        await other.append("ann", one(number), None)
    told = await log.append("ann", one(20), None)
    assert (told.history_len, told.lost_events) == (46, 3)
    assert (await log.append("ann", one(21), None)).lost_events == 0
    assert metrics.registry.get_sample_value("mfalcon_log_rollbacks_total") == 1
    assert (await replica().append("ann", one(22), None)).lost_events == 0


async def test_after_a_failover_a_length_is_no_proof_and_a_version_is(
    replica: Replica, redis_server: RedisServer
) -> None:
    """Event 11 was acknowledged, the new master has ten, and B has written an eleventh of its own: a length fits what A
    knew, a version does not.
    """
    a, b = replica(), replica()
    await a.append("ann", Append(random_events(10)), None)
    older = redis_server.command("GET", KEYS.log(ANN))
    assert isinstance(older, bytes)
    mine = await a.append("ann", one(1), None)
    redis_server.command("SET", KEYS.log(ANN), older)
    theirs = await b.append("ann", one(2), None)
    assert (mine.history_len, theirs.history_len) == (11, 11)
    with pytest.raises(HistoryMismatch) as refused:
        await a.append("ann", replace(one(3), expected_len=11, expected_version=mine.version), None)
    assert (refused.value.history_len, refused.value.version_hex) == (11, theirs.version.hex())
    told = await a.append("ann", one(3, expected_len=11), None)
    assert (told.history_len, told.lost_events) == (12, 1)


async def test_so_many_wait_and_no_more(replica: Replica, redis_server: RedisServer) -> None:
    log = replica(timeout_s=0.5)
    await log.append("ann", one(0), None)
    redis_server.freeze()
    calls = [asyncio.create_task(outcome(log.append("ann", one(1), None))) for _ in range(MAX_WAITING + 60)]
    await asyncio.sleep(0.1)
    refused = [call.result() for call in calls if call.done()]
    assert 0 < len(refused) <= 60
    assert all(
        "appends of this user wait already" in str(text) and "nothing was written" in str(text) for text in refused
    )
    assert await outcome(log.append("bob", one(1), time.monotonic() + 0.05)) != refused[0], "others are not refused"
    redis_server.thaw()
    await asyncio.gather(*calls)


async def test_a_damaged_log_fails_each_of_a_join_alone(replica: Replica, redis_server: RedisServer) -> None:
    redis_server.command("SET", KEYS.log(ANN), b"x" * 200)
    log = replica()
    appends = [log.append("ann", one(number), None) for number in range(5)]
    ends = await asyncio.gather(*appends, log.append("bob", one(1), None), return_exceptions=True)
    assert [type(end) for end in ends] == [DamagedLog] * 5 + [Appended]
    assert len({id(end) for end in ends}) == 6
    assert not any(end.may_be_done for end in ends if isinstance(end, DamagedLog))
