"""A real server with its log in a file is killed under load, again and again: nothing acknowledged is lost, nothing is
there twice, and it starts again by itself.
"""

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from loadtest.faults.fleet import Fleet
from mfalcon.history.file_store import FileStore
from mfalcon.history.file_tools import histories
from mfalcon.models import checkpoint
from mfalcon.types import EVENT_DTYPE
from mfalcon_client import Client, ClientError, Retry
from tests.small import small_checkpoint

WRITERS = 8
USERS = 5
"""Of each writer."""


@dataclass(slots=True)
class Written:
    """Of a user: events that were acknowledged, and whether the answer to one more is missing."""

    acknowledged: int = 0
    is_open: bool = False


FLAGS = {
    "fsync": ("--append-durability", "fsync"),
    "memory": ("--append-durability", "memory"),
    "front-ends": ("--append-durability", "fsync", "--frontends", "2"),
}


@pytest.fixture(params=[name if name == "fsync" else pytest.param(name, marks=pytest.mark.thorough) for name in FLAGS])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Fleet, Path]]:
    """One server."""
    loaded = small_checkpoint(dtype=torch.float32)
    checkpoint.save(tmp_path / "m", loaded.model, loaded.items)
    flags: tuple[str, ...] = ("--log-dir", str(tmp_path / "log"), *FLAGS[request.param])
    flags += ("--threads", "1", "--kv-budget-mb", "64", "--log-max-events", "1000000")
    with Fleet(tmp_path / "m", 1, flags) as servers:
        yield servers, tmp_path / "log"


def write(target: str, number: int, written: dict[str, Written], stop: threading.Event) -> None:
    """Append numbered events to users of one's own, until told to stop or the first that fails."""
    rng = random.Random(number)
    with Client(target, retry=Retry(attempts=1)) as client, contextlib.suppress(ClientError):
        while not stop.is_set():
            user_id = f"user-{number}-{rng.randrange(USERS)}"
            mine = written[user_id]
            event = np.array([(mine.acknowledged, 1, 0.5, 10**12 + mine.acknowledged)], dtype=EVENT_DTYPE)
            mine.is_open = True
            told = client.append_events(user_id, event, expected_len=mine.acknowledged, timeout_s=10)
            mine.acknowledged, mine.is_open = mine.acknowledged + 1, False
            assert told.history_len == mine.acknowledged


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.thorough)])
def test_nothing_acknowledged_is_lost_by_a_kill(fleet: tuple[Fleet, Path], kills: int) -> None:
    servers, directory = fleet
    rng = random.Random(kills)
    written = {f"user-{number}-{user}": Written() for number in range(WRITERS) for user in range(USERS)}
    for _ in range(kills):
        before = sum(mine.acknowledged for mine in written.values())
        stop = threading.Event()
        writers = [
            threading.Thread(target=write, args=(servers.targets[0], number, written, stop))
            for number in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        time.sleep(rng.uniform(0.3, 1.0))
        servers.kill(0)
        stop.set()
        for writer in writers:
            writer.join()
        servers.start(0)
        assert sum(mine.acknowledged for mine in written.values()) > before
        store = FileStore.open_to_read(directory)
        try:
            found = {history.user_id: history.events["item_id"].tolist() for history in histories(store)}
            assert store.totals().users == len(found)
            assert store.totals().events == sum(map(len, found.values()))
        finally:
            store.close()
        for user_id, mine in written.items():
            items = found.get(user_id, [])
            assert items == list(range(len(items)))
            assert mine.acknowledged <= len(items) <= mine.acknowledged + mine.is_open
            mine.acknowledged, mine.is_open = len(items), False
