"""What was found by breaking the promise of the wire, "acknowledged means in the log, in order, exactly once": a test
for each case. What each of them needs in depth is tested beside its part.
"""

import asyncio
import time

import numpy as np
import pytest

from loadtest.faults.redis_server import RedisServer
from mfalcon.errors import DamagedLog, DeadlineExceeded, HistoryMismatch, InvalidInput, Overloaded, StorageUnavailable
from mfalcon.history.budget import LogBudget
from mfalcon.history.history import no_history
from mfalcon.history.local_log import LocalLog
from mfalcon.history.log import EventLog
from mfalcon.metrics.states import StateMetrics
from mfalcon.types import EVENT_DTYPE, Append, Events
from server import limits
from tests.history.replicas import KEYS, PATIENCE_S, RETENTION, Replica

NOW_MS = 1_700_000_000_000


def event(item: int, time_ms: int = NOW_MS) -> Events:
    return np.array([(item, 1, 0.0, time_ms)], dtype=EVENT_DTYPE)


def events(*items: int) -> Events:
    return np.concatenate([event(item) for item in items])


async def items(log: EventLog, user_id: str = "ann") -> list[int]:
    found: list[int] = (await log.read(user_id, PATIENCE_S)).history.events["item_id"].tolist()
    return found


async def test_1_a_lost_append_is_not_taken_for_another_writers(replica: Replica) -> None:
    """A's append is lost, B appends, A asks again: the history has 11, and the eleventh is not A's."""
    one, two = replica(), replica()
    known = await one.append("ann", Append(events(*range(10))), None)
    lost = Append(event(100), 10, append_id="a")
    await two.append("ann", Append(event(200), 10, append_id="b"), None)
    with pytest.raises(HistoryMismatch) as refused:
        await one.append("ann", lost, None)
    assert refused.value.history_len == 11 and not refused.value.may_be_done
    assert await items(one) == [*range(10), 200]
    told = await one.append("ann", Append(event(100), append_id="a"), None)  # A learns the truth, and appends after all
    assert (told.history_len, told.was_written) == (12, False) and told.version != known.version


async def test_1_after_a_failover_a_length_is_not_enough_and_a_version_is(
    replica: Replica, redis_server: RedisServer
) -> None:
    """Event 11 is acknowledged and lost, B writes its own 11th, and A goes on from what it knows."""
    one, two = replica(), replica()
    await one.append("ann", Append(events(*range(10))), None)
    replicated = redis_server.command("GET", KEYS.log(no_history("ann").user))
    assert isinstance(replicated, bytes)
    known = await one.append("ann", Append(event(100)), None)
    redis_server.command("SET", KEYS.log(no_history("ann").user), replicated)
    await two.append("ann", Append(event(200)), None)
    with pytest.raises(HistoryMismatch, match="expected_version"):
        await one.append("ann", Append(event(101), 11, known.version), None)
    assert await items(two) == [*range(10), 200]
    assert (await one.append("ann", Append(event(101)), None)).lost_events == 1


async def test_1_an_append_that_may_have_been_written_says_so(replica: Replica, redis_server: RedisServer) -> None:
    log = replica()
    await log.append("ann", Append(events(1, 2)), None)
    redis_server.freeze()
    with pytest.raises((StorageUnavailable, DeadlineExceeded)) as unknown:
        await log.append("ann", Append(event(3), append_id="a"), time.monotonic() + 0.3)
    redis_server.thaw()
    assert unknown.value.may_be_done
    told = await log.append("ann", Append(event(3), append_id="a"), None)
    assert told.history_len == 3 and await items(log) == [1, 2, 3]


async def test_2_a_future_event_locks_nobody_out_and_a_late_one_loses_nothing(replica: Replica) -> None:
    """One year ahead is refused, seconds are not milliseconds, and one millisecond late goes where it belongs."""
    now = time.time_ns() // 10**6
    with pytest.raises(InvalidInput, match="after the time of the server's clock"):
        limits.check_events("events", event(1, now + 365 * 86_400_000), 1, 60_000)
    with pytest.raises(InvalidInput, match="seconds"):
        limits.check_events("events", event(1, now // 1_000), 1, 60_000)
    for log in (replica(), LocalLog(RETENTION)):
        await log.append("ann", Append(event(1)), None)
        with pytest.raises(InvalidInput):
            await log.append("ann", Append(event(2, NOW_MS - 1)), None)
        told = await log.append("ann", Append(event(2, NOW_MS - 1), late_events="insert"), None)
        assert list(told.inserted) == [0] and await items(log) == [2, 1]
        told = await log.append("ann", Append(event(3, NOW_MS - 1), late_events="clamp"), None)
        assert list(told.clamped) == [0] and await items(log) == [2, 1, 3]


async def test_3_many_clients_of_one_user_do_not_collide_in_one_replica(replica: Replica) -> None:
    """Two replicas, 16 writers each: what waits is joined, so there are fewer conflicts than appends."""
    metrics = [StateMetrics(), StateMetrics()]
    logs = [replica(metrics=one) for one in metrics]

    async def write(number: int) -> None:
        for turn in range(8):
            await logs[number % 2].append("ann", Append(event(100 * number + turn)), time.monotonic() + 20)

    await asyncio.gather(*map(write, range(32)))
    written = await items(logs[0])
    assert sorted(written) == sorted(100 * number + turn for number in range(32) for turn in range(8))
    for number in range(32):
        own = [item for item in written if item // 100 == number]
        assert own == sorted(own)
    conflicts = sum(one.registry.get_sample_value("mfalcon_log_conflicts_total") or 0.0 for one in metrics)
    assert conflicts < len(written) / 2


async def test_4_the_log_in_memory_is_bounded_and_known_users_go_on() -> None:
    log = LocalLog(RETENTION, LogBudget(max_users=3))
    for user in ("ann", "bob", "eve"):
        await log.append(user, Append(event(1)), None)
    with pytest.raises(Overloaded):
        await log.append("mallory", Append(event(1)), None)
    assert (await log.append("ann", Append(event(2)), None)).history_len == 2
    assert [await items(log, user) for user in ("ann", "bob", "eve", "mallory")] == [[1, 2], [1], [1], []]


@pytest.mark.parametrize("damage", ["240 MB", "another type", "truncated", "forged"])
async def test_5_what_is_wrong_with_one_users_key_is_that_users_alone(
    replica: Replica, redis_server: RedisServer, damage: str
) -> None:
    log, key = replica(), KEYS.log(no_history("ann").user)
    for user in ("ann", "bob"):
        await log.append(user, Append(events(1, 2)), None)
    content = redis_server.command("GET", key)
    assert isinstance(content, bytes)
    redis_server.command("DEL", key)
    match damage:
        case "240 MB":
            redis_server.command("SETRANGE", key, 240 * 2**20, b"x")
        case "another type":
            redis_server.command("LPUSH", key, "x")
        case "truncated":
            redis_server.command("SET", key, content[:-1])
        case "forged":
            redis_server.command("SET", key, content[:-24] + b"\\1" * 24)
    log = replica()  # who has a verified copy of this very log need not look at what is damaged
    for _ in range(3):
        with pytest.raises(DamagedLog) as told:
            await log.read("ann", PATIENCE_S)
        assert "WRONGTYPE" not in str(told.value)
        with pytest.raises(DamagedLog):
            await log.append("ann", Append(event(3)), None)
        await log.append("bob", Append(event(3)), time.monotonic() + 20)
    await log.delete("ann", None)
    assert await items(log) == [] and (await log.append("ann", Append(event(4)), None)).history_len == 1
    assert await items(log, "bob") == [1, 2, 3, 3, 3]


async def test_5_a_deletion_that_is_repeated_still_knows_what_it_ended(replica: Replica) -> None:
    log = replica()
    await log.append("ann", Append(event(1)), None)
    ended = await log.delete("ann", None)
    assert ended and await log.delete("ann", None) == ended
