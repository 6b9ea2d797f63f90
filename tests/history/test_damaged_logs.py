"""What is in the place of a user's log and is not that log: his fault alone, told by its reason, and put right."""

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from loadtest.faults.redis_server import RedisServer
from mfalcon.errors import DamagedLog, HistoryMismatch, StorageUnavailable
from mfalcon.history.history import Retention, no_history
from mfalcon.history.redis_header import HEADER_BYTES, Headers
from mfalcon.history.redis_log import LogOptions, RedisLog
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, RedisSettings, Reply
from mfalcon.redis.command import Command
from mfalcon.types import Append
from tests.history.replicas import KEYS, PATIENCE_S, RETENTION, Replica, read
from tests.small import random_events

USER = no_history("ann").user
KEY = KEYS.log(USER)
SECRET, OTHER_SECRET = b"s" * 32, b"o" * 32
EVENTS = random_events(40)
LATER = random_events(3, 1, 10**13)
START_EMPTY = LogOptions(on_damage="start-empty")
SIGNED = LogOptions(secret=SECRET)


def stored(server: RedisServer, key: str = KEY) -> bytes:
    value = server.command("GET", key)
    assert isinstance(value, bytes)
    return value


def counted(metrics: StateMetrics, name: str, reason: str) -> float:
    return metrics.registry.get_sample_value(f"mfalcon_log_{name}_total", {"reason": reason}) or 0.0


def a_list(server: RedisServer) -> None:
    server.command("DEL", KEY)
    server.command("RPUSH", KEY, "x", "y")


def a_hash(server: RedisServer) -> None:
    server.command("DEL", KEY)
    server.command("HSET", KEY, "x", "y")


def huge(server: RedisServer) -> None:
    server.command("SETRANGE", KEY, 8 << 20, "x")


def foreign(server: RedisServer) -> None:
    server.command("SET", KEY, b"{'some': 'json'}" * 100)


def truncated(server: RedisServer) -> None:
    server.command("SET", KEY, stored(server)[:-30])


def cut_in_its_header(server: RedisServer) -> None:
    server.command("SET", KEY, stored(server)[:50])


def another_users(server: RedisServer) -> None:
    server.command("COPY", KEYS.log(no_history("bob").user), KEY, "REPLACE")


def spoilt(server: RedisServer) -> None:
    server.command("SETRANGE", KEY, HEADER_BYTES + 24 * 10, b"\xff")


def of_a_late_clock(server: RedisServer) -> None:
    server.command("SETRANGE", KEY, 80, b"\xff" * 8)


@pytest.mark.parametrize("at", [6, 60, 70, 80, 95, 100])
async def test_a_damaged_tombstone_is_deleted_too(redis_server: RedisServer, replica: Replica, at: int) -> None:
    log = replica(SIGNED)
    await log.append("ann", Append(EVENTS), None)
    await log.delete("ann", None)
    redis_server.command("SETRANGE", KEY, at, b"\xff" * 8)
    with pytest.raises(DamagedLog):
        await log.append("ann", Append(LATER), None)
    await log.delete("ann", None)
    assert (await log.append("ann", Append(LATER), None)).history_len == 3


DAMAGES = [
    (of_a_late_clock, "header"),
    (a_list, "type"),
    (a_hash, "type"),
    (huge, "size"),
    (foreign, "header"),
    (truncated, "truncated"),
    (cut_in_its_header, "header"),
    (another_users, "user"),
    (spoilt, "hash"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
async def test_damage_is_refused_and_left_where_it_is(
    replica: Replica, redis_server: RedisServer, damage: Callable[[RedisServer], None], reason: str
) -> None:
    metrics = StateMetrics()
    log = replica(metrics=metrics)
    for user_id in ("ann", "bob"):
        await replica().append(user_id, Append(EVENTS, 0), None)
    damage(redis_server)
    before = redis_server.command("DUMP", KEY)
    for _ in range(2):
        with pytest.raises(DamagedLog, match="DeleteUser begins a new one") as refused:
            await read(log)
        assert refused.value.reason == reason
        with pytest.raises(DamagedLog):
            await log.append("ann", Append(LATER), None)
    assert redis_server.command("DUMP", KEY) == before
    assert counted(metrics, "damaged", reason) == 4 and counted(metrics, "quarantined", reason) == 0
    assert (await read(log, "bob")).events.tobytes() == EVENTS.tobytes()
    await log.delete("ann", None)
    assert (await log.append("ann", Append(LATER, 0), None)).history_len == 3
    assert (await read(replica())).events.tobytes() == LATER.tobytes()


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
async def test_damage_is_moved_away_and_its_user_begins_anew(
    replica: Replica, redis_server: RedisServer, damage: Callable[[RedisServer], None], reason: str
) -> None:
    metrics = StateMetrics()
    for user_id in ("ann", "bob"):
        await replica().append(user_id, Append(EVENTS, 0), None)
    damage(redis_server)
    before = redis_server.command("DUMP", KEY)
    logs = [replica(START_EMPTY, metrics) for _ in range(3)]
    histories = await asyncio.gather(*(read(log) for log in logs))
    assert [len(history) for history in histories] == [0, 0, 0]
    assert counted(metrics, "quarantined", reason) == 1
    (place, *others) = KEYS.damaged(USER)
    assert redis_server.command("DUMP", place) == before and redis_server.command("EXISTS", *others) == 0
    left = redis_server.command("TTL", place)
    assert isinstance(left, int) and 7 * 86_400 - 60 < left <= 7 * 86_400
    assert (await logs[0].append("ann", Append(LATER, 0), None)).history_len == 3
    assert (await read(logs[1])).events.tobytes() == LATER.tobytes()
    await logs[2].delete("ann", None)
    assert redis_server.command("EXISTS", place) == 0, "a deletion takes what was moved away too"


async def test_an_append_finds_the_damage_too(replica: Replica, redis_server: RedisServer) -> None:
    """Its copy is of the life before; the damage came since."""
    for damage in (a_list, huge, foreign, truncated):
        for options in (None, START_EMPTY):
            log = replica(options)
            await log.delete("ann", None)
            await log.append("ann", Append(EVENTS, 0), None)
            damage(redis_server)
            if options is None:
                with pytest.raises(DamagedLog, match="nothing was written"):
                    await log.append("ann", Append(LATER), None)
            else:
                assert (await log.append("ann", Append(LATER), None)).history_len == 3


async def test_only_so_many_damaged_logs_of_one_user_are_kept(replica: Replica, redis_server: RedisServer) -> None:
    log, places = replica(START_EMPTY), KEYS.damaged(USER)
    for number in range(len(places) + 2):
        redis_server.command("SET", KEY, f"damage {number}")
        assert len(await read(log)) == 0
    values = [redis_server.command("GET", place) for place in places]
    assert values == [b"damage 0", b"damage 1", b"damage 2", b"damage 5"]


async def test_nothing_of_a_huge_value_leaves_redis(replica: Replica, redis_server: RedisServer) -> None:
    huge(redis_server)
    before = sent_bytes(redis_server)
    for _ in range(5):
        for work in (replica().read("ann", PATIENCE_S), replica().append("ann", Append(LATER), None)):
            with pytest.raises(DamagedLog):
                await work
    assert sent_bytes(redis_server) - before < 20_000


def sent_bytes(server: RedisServer) -> int:
    return int(server.text("INFO", "stats").split("total_net_output_bytes:")[1].split()[0])


async def test_what_has_been_put_right_meanwhile_is_not_moved(replica: Replica, redis_server: RedisServer) -> None:
    """An operator restores a log while replicas find it damaged; whatever they do, his is there in the end."""
    log = replica(START_EMPTY)
    await log.append("ann", Append(EVENTS, 0), None)
    right = stored(redis_server)
    for _ in range(20):
        foreign(redis_server)
        reading = asyncio.create_task(read(replica(START_EMPTY)))
        await asyncio.sleep(0.001)
        redis_server.command("SET", KEY, right)
        assert len(await reading) in (0, 40)
        assert stored(redis_server) == right


def in_first_format(value: bytes) -> bytes:
    """As the log was written before headers had a clock and a signature."""
    return value[:4] + struct.pack("<Hxx", 1) + value[8:80] + value[HEADER_BYTES:]


async def test_a_log_of_the_first_format_is_read_and_written_anew(replica: Replica, redis_server: RedisServer) -> None:
    await replica().append("ann", Append(EVENTS, 0), None)
    redis_server.command("SET", KEY, in_first_format(stored(redis_server)))
    one, two = replica(), replica(SIGNED)
    for log in (one, two):
        assert (await read(log)).events.tobytes() == EVENTS.tobytes()
        assert (await read(log)).events.tobytes() == EVENTS.tobytes()
    assert (await two.append("ann", Append(LATER, 40), None)).history_len == 43
    assert stored(redis_server)[4] == 2 and len(stored(redis_server)) == HEADER_BYTES + 43 * 24
    history = await read(replica(SIGNED))
    assert history.events.tobytes() == EVENTS.tobytes() + LATER.tobytes()


@pytest.mark.parametrize("options", [LogOptions(), START_EMPTY])
async def test_what_other_servers_wrote_is_never_moved(
    replica: Replica, redis_server: RedisServer, options: LogOptions
) -> None:
    """Of a later version, or signed with a secret that is unknown here."""
    for reason in ("format", "secret"):
        await replica().delete("ann", None)
        await replica(SIGNED if reason == "secret" else None).append("ann", Append(EVENTS, 0), None)
        if reason == "format":
            redis_server.command("SETRANGE", KEY, 4, struct.pack("<H", 3))
        before = stored(redis_server)
        with pytest.raises(DamagedLog) as refused:
            await read(replica(options))
        assert refused.value.reason == reason
        assert stored(redis_server) == before


async def test_a_log_of_a_server_that_kept_more_is_read_and_cut_by_the_next_append(
    replica: Replica, redis_server: RedisServer
) -> None:
    """Somebody has lowered log_max_events; but what lies behind such a log's end is no part of it, and too much."""
    metrics, events = StateMetrics(), random_events(60_000)
    client = RedisClient(RedisSettings(redis_server.url, PATIENCE_S, PATIENCE_S), metrics)
    await RedisLog(client, KEYS, Retention(100_000, 64), metrics).append("ann", Append(events, 0), None)
    await client.close()
    assert len((await read(replica())).events) == 60_000
    whole = stored(redis_server)
    redis_server.command("APPEND", KEY, "x")
    with pytest.raises(DamagedLog) as refused:
        await read(replica())
    assert refused.value.reason == "size"
    redis_server.command("SET", KEY, whole)
    assert (await replica().append("ann", Append(LATER), None)).history_len == 60_003
    assert len(stored(redis_server)) < HEADER_BYTES + 24 * 300
    assert len(await read(replica())) == 60_003


async def test_a_forged_log_is_noticed(replica: Replica, redis_server: RedisServer) -> None:
    """Right hashes throughout, by somebody who has read the format and not the secret."""
    log = replica(SIGNED)
    await log.append("ann", Append(EVENTS, 0), None)
    history = await read(log)
    wrong = replace(history, events=random_events(40, 9), links=no_history("ann").extended(random_events(40, 9)).links)
    forged = Headers(OTHER_SECRET).write(wrong, 1 << 50).raw
    ours = stored(redis_server)[88:96]  # the name of the secret is no secret
    redis_server.command("SET", KEY, forged[:88] + ours + forged[96:] + wrong.events.tobytes())
    with pytest.raises(DamagedLog) as refused:
        await read(replica(SIGNED))
    assert refused.value.reason == "mac"
    metrics = StateMetrics()
    assert len(await read(replica(replace(SIGNED, on_damage="start-empty"), metrics))) == 0
    assert counted(metrics, "quarantined", "mac") == 1


async def test_what_is_not_signed_is_taken_until_all_must_be(replica: Replica, redis_server: RedisServer) -> None:
    await replica().append("ann", Append(EVENTS, 0), None)
    strict = replace(SIGNED, must_be_signed=True)
    assert len(await read(replica(SIGNED))) == 40
    with pytest.raises(DamagedLog) as refused:
        await read(replica(strict))
    assert refused.value.reason == "unsigned"
    assert (await replica(SIGNED).append("ann", Append(LATER, 40), None)).history_len == 43
    assert len(await read(replica(strict))) == 43
    with pytest.raises(DamagedLog) as refused:  # a replica without the secret cannot vouch for it
        await replica().append("ann", Append(LATER), None)
    assert refused.value.reason == "secret"


async def test_a_secret_is_changed_without_losing_a_log(replica: Replica, redis_server: RedisServer) -> None:
    await replica(SIGNED).append("ann", Append(EVENTS, 0), None)
    changed = LogOptions(secret=OTHER_SECRET, former_secrets=(SECRET,), must_be_signed=True)
    assert len(await read(replica(changed))) == 40
    assert (await replica(changed).append("ann", Append(LATER, 40), None)).history_len == 43
    assert len(await read(replica(LogOptions(secret=OTHER_SECRET)))) == 43


async def test_a_late_append_begins_no_life_after_a_deletion(replica: Replica, redis_server: RedisServer) -> None:
    """The first append of a user waits on its way until he has been deleted: with a log before, and with none."""
    client = Held()
    with pytest.raises(StorageUnavailable):
        await RedisLog(client, KEYS, RETENTION, StateMetrics()).append("ann", Append(EVENTS), None)
    (held,) = client.sent
    for begins in (True, False):
        log = replica()
        if begins:
            await log.append("ann", Append(EVENTS, 0), None)
        await log.delete("ann", None)
        tombstone = stored(redis_server)
        assert len(tombstone) == HEADER_BYTES
        redis_server.command(*held)
        assert stored(redis_server) == tombstone
        assert len(await read(log)) == 0
        redis_server.flush()
    redis_server.command(*held)
    assert len(await read(replica())) == 40, "what was held would have been written"


class Held(RedisClient):
    """Keeps what it is to send."""

    def __init__(self) -> None:
        super().__init__(RedisSettings("redis://127.0.0.1:1", PATIENCE_S, PATIENCE_S), StateMetrics())
        self.sent: list[Command] = []

    async def call(self, op: str, key: str, commands: Sequence[Command], timeout_s: float) -> list[Reply]:
        self.sent.extend(commands)
        raise StorageUnavailable("it is held up", may_be_done=True)


async def test_a_deletion_that_is_repeated_learns_what_the_first_ended(
    replica: Replica, redis_server: RedisServer
) -> None:
    log = replica()
    await log.append("ann", Append(EVENTS, 0), None)
    ended = (await read(log)).generation
    assert [await replica().delete("ann", None) for _ in range(3)] == [ended] * 3
    left = redis_server.command("TTL", KEY)
    assert isinstance(left, int) and 3_540 < left <= 3_600
    assert (await log.append("ann", Append(LATER, 0), None)).history_len == 3
    assert redis_server.command("TTL", KEY) == -1, "the log of the next life does not expire with the tombstone"
    assert await log.delete("ann", None) not in (ended, b"")
    assert await log.delete("bob", None) == b""


async def test_an_append_of_an_ended_life_meets_its_end(replica: Replica, redis_server: RedisServer) -> None:
    """A replica whose copy is of the life before: with a length it is told of the end, without one it begins anew."""
    stale, other = replica(), replica()
    await stale.append("ann", Append(EVENTS, 0), None)
    await other.delete("ann", None)
    with pytest.raises(HistoryMismatch) as refused:
        await stale.append("ann", Append(LATER, 40), None)
    assert refused.value.history_len == 0
    assert len(await read(other)) == 0
