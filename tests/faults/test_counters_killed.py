"""A real server that counts events in Redis is killed in the middle of appends: no event is counted twice, and whoever
meets a user next counts what was not.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from loadtest.faults.fleet import Fleet
from loadtest.faults.redis_server import RedisServer
from mfalcon.counters.redis_records import name_of
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.models import checkpoint
from mfalcon.redis.client import RedisSettings
from mfalcon.types import Events
from mfalcon_client import Client, ClientError, Retry
from tests.engine.test_counters import CONFIG, ITEMS, LIKE, expected
from tests.redis_fixtures import OwnRedis
from tests.small import random_events, small_checkpoint

PREFIX = "t"
USERS = [f"user-{number}" for number in range(8)]
EVENTS = 1_500
"""Of an append: three steps of counting, so that a kill often falls between the log and the last of them."""
KILLS = 4
PATIENCE_S = 60.0


@pytest.fixture
def fleet(tmp_path: Path, own_redis: OwnRedis) -> Iterator[tuple[Fleet, RedisServer]]:
    """Two servers of a model that reads counters, on one Redis."""
    redis = own_redis()
    loaded = small_checkpoint(dtype=torch.float32, config=CONFIG)
    checkpoint.save(tmp_path / "m", loaded.model, loaded.items)
    flags: tuple[str, ...] = ("--redis-url", redis.url, "--redis-prefix", PREFIX, "--threads", "1")
    flags += ("--kv-budget-mb", "64", "--log-max-events", "1000000")
    with Fleet(tmp_path / "m", 2, flags) as servers:
        yield servers, redis


def write(targets: tuple[str, ...], user_id: str, seed: int, stop: threading.Event) -> None:
    """Append to one user until told to stop; a call that fails may have been written."""
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(target, retry=Retry(attempts=1))) for target in targets]
        time_ms = 10**12
        while not stop.is_set():
            events = random_events(EVENTS, rng.randrange(1 << 30), time_ms)
            with contextlib.suppress(ClientError):
                rng.choice(clients).append_events(user_id, events, timeout_s=5)
            time_ms = int(events["time_ms"][-1])
            time.sleep(0.01)


async def logs_of(engine: Engine) -> list[Events]:
    return [(await engine.histories.log.read(user_id, 5.0)).history.events for user_id in USERS]


def counted(redis: RedisServer) -> dict[int, list[int]]:
    flat = redis.command("HGETALL", f"{PREFIX}:{{counters:{name_of(LIKE)}}}:items")
    assert isinstance(flat, list)
    raw = [part for part in flat if isinstance(part, bytes)]
    pairs = zip(raw[::2], raw[1::2], strict=True)
    return {
        int.from_bytes(item, "little", signed=True): np.frombuffer(numbers, dtype="<i8").tolist()
        for item, numbers in pairs
    }


@pytest.mark.thorough
async def test_a_server_that_is_killed_under_appends_leaves_every_event_counted_once(
    fleet: tuple[Fleet, RedisServer],
) -> None:
    servers, redis = fleet
    rng, uncounted = random.Random(0), list[int]()
    histories = HistoryOptions(
        log_max_events=1_000_000, redis=RedisOptions(RedisSettings(redis.url, 5.0, 5.0), prefix=PREFIX)
    )
    reader = compose(small_checkpoint(), EngineConfig(threads=1, histories=histories))  # reads no counters itself
    reader.wait_ready(PATIENCE_S)
    await reader.start()
    try:
        for kill in range(KILLS):
            stop = threading.Event()
            writers = [
                threading.Thread(target=write, args=(servers.targets, user_id, 100 * kill + number, stop))
                for number, user_id in enumerate(USERS)
            ]
            for writer in writers:
                writer.start()
            await asyncio.sleep(rng.uniform(0.5, 1.5))
            servers.kill(0)
            stop.set()
            for writer in writers:
                writer.join()
            logs = await logs_of(reader)
            uncounted.append(sum(map(len, logs)) - sum(events for events, _, _ in counted(redis).values()))
            servers.start(0)
        with Client(servers.targets[1], retry=Retry(attempts=1)) as client:
            for user_id in USERS:  # whoever is met is counted
                client.rank(user_id, ITEMS[:3], timeout_s=30)
        logs = await logs_of(reader)
        ids = np.unique(np.concatenate([log["item_id"] for log in logs]))
        truth = dict(zip(ids.tolist(), expected(logs, ids).tolist(), strict=True))
        for _ in range(int(PATIENCE_S / 0.1)):
            if counted(redis) == truth:
                break
            await asyncio.sleep(0.1)
        assert counted(redis) == truth
    finally:
        await reader.close()
    assert sum(map(len, logs)) >= KILLS * EVENTS
    assert min(uncounted) >= 0 and max(uncounted) > 0, uncounted  # else no kill fell between a log and its counters
