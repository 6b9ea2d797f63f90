"""Retention by age: every old log goes, no other one does, whoever sweeps and whatever comes in between."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator

import pytest

from loadtest.faults.redis_cluster import RedisCluster
from loadtest.faults.redis_server import RedisServer
from mfalcon.history.deletions import Deletion
from mfalcon.history.history import Retention, no_history
from mfalcon.history.log_sweep import STEP_KEYS, LogSweep
from mfalcon.history.redis_header import HEADER_BYTES
from mfalcon.history.redis_log import TOMBSTONE_S, RedisLog
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, RedisSettings
from mfalcon.redis.keys import Keys
from mfalcon.types import Append
from tests.small import random_events

KEYS = Keys("t[1]*")
DAY_MS = 86_400_000
DAYS = 30
PATIENCE_S = 2.0
EVENTS = random_events(20)


class Place:
    """A log, a sweep of it, and what that ended. url: of the Redis."""

    def __init__(self, url: str) -> None:
        self.metrics = StateMetrics()
        self.client = RedisClient(RedisSettings(url, PATIENCE_S, PATIENCE_S), self.metrics)
        self.log = RedisLog(self.client, KEYS, Retention(200, 64), self.metrics)
        self.ended: list[Deletion] = []
        age_s = DAYS * DAY_MS / 1000
        self.sweep = LogSweep(self.client, KEYS, self.log, age_s, self.ended.append, self.metrics, step_s=0.001)

    async def write(self, user_id: str) -> bytes:
        """A user's log of some events; its generation."""
        await self.log.append(user_id, Append(EVENTS), None)
        return (await self.log.read(user_id, PATIENCE_S)).history.generation

    async def whole_round(self, num_keys: int, num_masters: int = 1) -> None:
        """Steps enough to see every key once, at least."""
        for _ in range(num_masters * (12 + 4 * num_keys // STEP_KEYS)):
            await self.sweep.step()
            await asyncio.sleep(0.002)


@pytest.fixture
async def place(redis_server: RedisServer) -> AsyncIterator[Place]:
    place = Place(redis_server.url)
    yield place
    await place.client.close()


def key(user_id: str) -> str:
    return KEYS.log(no_history(user_id).user)


def make_old(server: RedisServer, user_id: str, days: float) -> None:
    """As if the last append were so long ago."""
    server.command("SETRANGE", key(user_id), 80, struct.pack("<Q", round(time.time() * 1000 - days * DAY_MS)))


async def test_old_logs_go_and_no_others(place: Place, redis_server: RedisServer) -> None:
    old, young = [f"old{number}" for number in range(40)], [f"young{number}" for number in range(40)]
    generations = {user_id: await place.write(user_id) for user_id in old + young}
    for user_id in old:
        make_old(redis_server, user_id, DAYS + 1)
    for user_id in young:
        make_old(redis_server, user_id, DAYS - 1)
    others = [KEYS.log(b"\1" * 16), KEYS.log(b"\2" * 16), "elsewhere:{00}:log"]
    redis_server.command("RPUSH", others[0], "x")
    redis_server.command("SET", others[1], "no log at all, and longer than any header, though it is of no format" * 3)
    redis_server.command("COPY", key("old0"), others[2])
    await place.whole_round(83)
    hashes = {no_history(user_id).user: generations[user_id] for user_id in old}
    assert len(place.ended) == len(old) and {each.user: each.generation for each in place.ended} == hashes
    assert redis_server.command("EXISTS", *others) == 3
    for user_id in young:
        assert len((await place.log.read(user_id, PATIENCE_S)).history) == 20
    for user_id in old:
        assert len((await place.log.read(user_id, PATIENCE_S)).history) == 0
        left = redis_server.command("TTL", key(user_id))
        assert isinstance(left, int) and 0 < left <= TOMBSTONE_S
    assert place.metrics.registry.get_sample_value("mfalcon_log_expired_total") == 40
    assert await place.log.delete("old1", None) == generations["old1"], "a deletion learns what the sweep ended"
    await place.log.append("old2", Append(EVENTS), None)
    await place.whole_round(83)
    assert len(place.ended) == len(old), "tombstones and new lives are left alone"
    assert len((await place.log.read("old2", PATIENCE_S)).history) == 20


async def test_a_log_of_the_first_format_goes_by_its_last_event(place: Place, redis_server: RedisServer) -> None:
    for user_id, days in (("old", DAYS + 1), ("young", DAYS - 1)):
        await place.write(user_id)
        value = redis_server.command("GET", key(user_id))
        assert isinstance(value, bytes)
        last = struct.pack("<q", round(time.time() * 1000 - days * DAY_MS))
        first_format = value[:4] + struct.pack("<Hxx", 1) + value[8:80] + value[HEADER_BYTES:-8] + last
        redis_server.command("SET", key(user_id), first_format)
    await place.whole_round(2)
    assert [each.user for each in place.ended] == [no_history("old").user]
    assert redis_server.command("STRLEN", key("young")) == 80 + 20 * 24


async def test_an_append_in_between_keeps_its_user(place: Place, redis_server: RedisServer) -> None:
    await place.write("ann")
    make_old(redis_server, "ann", DAYS + 1)
    found = redis_server.command("GETRANGE", key("ann"), 0, HEADER_BYTES - 1)
    assert isinstance(found, bytes)
    place.log.drop_all()
    await place.log.append("ann", Append(EVENTS[-1:]), None)
    assert not await place.log.expire(no_history("ann").user, found)
    assert len((await place.log.read("ann", PATIENCE_S)).history) == 21


async def test_replicas_take_turns_and_go_on_where_the_last_one_stood(place: Place, redis_server: RedisServer) -> None:
    """Each of three does a part of a round, and a fourth that has just started goes on."""
    users = [f"u{number}" for number in range(3 * STEP_KEYS)]
    await place.write("model")
    header = redis_server.command("GET", key("model"))
    assert isinstance(header, bytes)
    for user_id in users:
        redis_server.command("SET", key(user_id), header)
    places = [Place(redis_server.url) for _ in range(4)]
    try:
        swept = 0.0
        for step in range(40):
            await places[0 if step < 2 else step % 4].sweep.step()
            await asyncio.sleep(0.002)
            samples = [each.metrics.registry.get_sample_value("mfalcon_log_swept_total") or 0 for each in places]
            swept = sum(samples)
            cursor = redis_server.command("HGET", KEYS.sweep("cursors"), "")
            if cursor == b"0":
                break
        assert len(users) <= swept <= 1.5 * len(users), "a round looks at each once, or little more"
        assert sum(sample > 0 for sample in samples) >= 2
        redis_server.command("SET", KEYS.sweep("turn"), "", "PX", 60_000)
        before = redis_server.command("HGET", KEYS.sweep("cursors"), "")
        assert [await each.sweep.step() for each in places] == [0] * 4, "it is somebody else's turn"
        assert redis_server.command("HGET", KEYS.sweep("cursors"), "") == before
    finally:
        for each in places:
            await each.client.close()


async def test_every_master_of_a_cluster_is_swept(redis_cluster: RedisCluster) -> None:
    place = Place(redis_cluster.url)
    users = [f"u{number}" for number in range(60)]
    try:
        for user_id in users:
            await place.write(user_id)
            slot = redis_cluster.servers[0].command("CLUSTER", "KEYSLOT", key(user_id))
            assert isinstance(slot, int)
            make_old(redis_cluster.owner(slot), user_id, DAYS + 1)
        await place.whole_round(60, num_masters=3)
        assert {each.user for each in place.ended} == {no_history(user_id).user for user_id in users}
    finally:
        await place.client.close()
