"""Write-behind on a remote tier of two nodes, one of which hangs until it is told to go on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from mfalcon.history.chain import user_hash
from mfalcon.history.history import History, no_history
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.chunk import Layout, PayloadDtype
from mfalcon.kvcache.write_behind import WriteBehind
from mfalcon.metrics import StateMetrics
from tests.small import random_events

LAYOUT = Layout(b"f" * 16, 1, 1, 1, 4, 4, PayloadDtype.FLOAT32)
EVENTS = random_events(9)
PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class State:
    num_bytes: int = 10
    pins: int = 0


class TwoNodes:
    """Users are on the node of their first letter; node "a" answers once it is let go."""

    layout = LAYOUT

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.begun: list[tuple[bytes, int]] = []
        self.written: list[tuple[bytes, int]] = []
        self.names: dict[bytes, str] = {}

    def available(self, user: bytes) -> bool:
        return True

    def node(self, user: bytes) -> str:
        return self.names[user][0]

    def num_chunks(self, num_events: int) -> int:
        return 1

    def pack(self, history: History, start: int, first: int, stop: int, payload: memoryview) -> bytes:
        return bytes(payload)

    async def write(self, history: History, number: int, chunk: bytes, timeout_s: float) -> bool:
        what = history.user, len(history)
        self.begun.append(what)
        if self.node(history.user) == "a":
            await self.let_go.wait()
        self.written.append(what)
        return True

    async def touch(self, user: bytes, num_chunks: int, timeout_s: float) -> None:
        return None


class Setting:
    def __init__(self, workers: ThreadPoolExecutor, budget_bytes: int = 1_000) -> None:
        self.remote, self.metrics = TwoNodes(), StateMetrics()

        def encode(state: State, first: int, stop: int) -> memoryview:
            return memoryview(b"x")

        self.writes: WriteBehind[State] = WriteBehind(
            self.remote, encode, Tombstones(), self.metrics, workers, budget_bytes=budget_bytes, timeout_s=PATIENCE_S
        )
        self.writes.start()

    def offer(self, user_id: str, num_events: int = 5) -> None:
        self.remote.names[user_hash(user_id)] = user_id
        self.writes.offer(no_history(user_id, b"life").extended(EVENTS[:num_events]), 0, State())

    def begun(self) -> list[tuple[str, int]]:
        return [(self.remote.names[user], stop) for user, stop in self.remote.begun]

    def written(self) -> list[tuple[str, int]]:
        return [(self.remote.names[user], stop) for user, stop in self.remote.written]


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    with ThreadPoolExecutor(2) as workers:
        made = Setting(workers)
        yield made
        await made.writes.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.001)


async def test_a_node_that_hangs_holds_up_its_own_users_alone(setting: Setting) -> None:
    for user_id in ("ann", "al", "abe", "bob", "bea"):
        setting.offer(user_id)
    await until(lambda: len(setting.written()) == 2)
    assert setting.written() == [("bob", 5), ("bea", 5)]
    assert setting.begun().count(("ann", 5)) == 1 and len(setting.begun()) == 3  # one at a time to each node
    setting.remote.let_go.set()
    await asyncio.wait_for(setting.writes.idle(), PATIENCE_S)
    assert setting.written()[2:] == [("ann", 5), ("al", 5), ("abe", 5)]


async def test_a_user_is_written_by_one_at_a_time_and_the_newest_state_waits(setting: Setting) -> None:
    setting.offer("ann", 5)
    await until(lambda: bool(setting.begun()))
    for num_events in (6, 7):
        setting.offer("ann", num_events)
    setting.remote.names[user_hash("ann")] = "now on another node"
    await asyncio.sleep(0.02)
    assert len(setting.begun()) == 1
    setting.remote.let_go.set()
    await asyncio.wait_for(setting.writes.idle(), PATIENCE_S)
    assert [stop for _, stop in setting.written()] == [5, 7]


async def test_a_deletion_waits_for_what_is_being_written_of_that_user(setting: Setting) -> None:
    for user_id in ("ann", "al"):
        setting.offer(user_id)
    await until(lambda: bool(setting.begun()))
    await asyncio.wait_for(setting.writes.delete(user_hash("al")), PATIENCE_S)  # it only waited
    deleting = asyncio.create_task(setting.writes.delete(user_hash("ann")))
    await asyncio.sleep(0.02)
    assert not deleting.done()
    setting.remote.let_go.set()
    await asyncio.wait_for(deleting, PATIENCE_S)
    await asyncio.wait_for(setting.writes.idle(), PATIENCE_S)
    assert setting.written() == [("ann", 5)]


async def test_closing_ends_every_write_and_counts_what_waited(setting: Setting) -> None:
    for user_id in ("ann", "al"):
        setting.offer(user_id)
    await until(lambda: bool(setting.begun()))
    await asyncio.wait_for(setting.writes.close(0.01), PATIENCE_S)
    setting.offer("bob")
    await asyncio.sleep(0.01)
    assert setting.written() == []
    dropped = setting.metrics.registry.get_sample_value("mfalcon_write_behind_dropped_total", {"reason": "closing"})
    assert dropped == 1
    await asyncio.wait_for(setting.writes.idle(), PATIENCE_S)
