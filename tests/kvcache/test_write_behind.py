"""Write-behind on a remote tier of two nodes, one of which hangs until it is told to go on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mfalcon.history.chain import user_hash
from mfalcon.history.history import History
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.chunk import ChunkLayout, PayloadDtype
from mfalcon.kvcache.offload_queue import Offer
from mfalcon.kvcache.remote import RedisStates, RemoteOptions
from mfalcon.kvcache.state import KVState
from mfalcon.kvcache.write_behind import WriteBehind
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, RedisSettings
from mfalcon.redis.keys import Keys
from tests.kvcache.states import PAGE, history, state_of

CHUNKS = ChunkLayout(b"f" * 16, 1, 1, 1, 4, 4, PayloadDtype.FLOAT32)
PATIENCE_S = 60.0


class TwoNodes(RedisStates):
    """Users are on the node of their first letter; node "a" answers once it is let go."""

    def __init__(self, metrics: StateMetrics) -> None:
        client = RedisClient(RedisSettings("redis://127.0.0.1:1"), metrics)  # which is never asked
        super().__init__(client, Keys("t"), CHUNKS, 100, RemoteOptions(ttl_s=100, log_is_here=True), metrics)
        self.client = client
        self.let_go = asyncio.Event()
        self.begun: list[tuple[bytes, int]] = []
        self.written: list[tuple[bytes, int]] = []
        self.names: dict[bytes, str] = {}

    def available(self, user: bytes) -> bool:
        return True

    def node(self, user: bytes) -> str:
        return self.names[user][0]

    def pack(self, history: History, start: int, number: int, state: KVState, tags: bytes = b"") -> bytes:
        return b"x"

    async def write(self, history: History, number: int, chunk: bytes, timeout_s: float) -> bool:
        what = history.user, len(history)
        self.begun.append(what)
        if self.node(history.user) == "a":
            await self.let_go.wait()
        self.written.append(what)
        return True

    async def touch(self, user: bytes, num_chunks: int, timeout_s: float) -> int:
        return num_chunks


class Setting:
    def __init__(self, workers: ThreadPoolExecutor) -> None:
        self.metrics = StateMetrics()
        self.remote = TwoNodes(self.metrics)
        self.writes = WriteBehind(
            self.remote, Tombstones(), self.metrics, workers, budget_bytes=8 * PAGE, timeout_s=PATIENCE_S
        )
        self.writes.start()

    def offer(self, user_id: str, num_events: int = 5) -> None:
        self.remote.names[user_hash(user_id)] = user_id
        self.writes.offer(Offer(history(num_events, user_id), 0, state_of(1)))

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
        await made.remote.client.close()


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


async def test_a_hand_over_ends_with_the_writes_of_a_model_that_is_exchanged_meanwhile(setting: Setting) -> None:
    offers = []
    for user_id in ("ann", "al"):
        setting.remote.names[user_hash(user_id)] = user_id
        offers.append(Offer(history(5, user_id), 0, state_of(1)))
    handing_over = asyncio.create_task(setting.writes.hand_over(offers, 2**30))
    await until(lambda: bool(setting.begun()))
    await asyncio.wait_for(setting.writes.close(0.01), PATIENCE_S)
    assert await asyncio.wait_for(handing_over, PATIENCE_S) == 0
    assert len(setting.begun()) == 1


async def test_what_waits_is_bounded_and_the_oldest_goes(setting: Setting) -> None:
    setting.offer("ann")
    await until(lambda: bool(setting.begun()))
    for number in range(9):
        setting.offer(f"a{number}")
    await asyncio.sleep(0)
    assert setting.metrics.registry.get_sample_value("mfalcon_write_behind_waiting") == 8
    dropped = setting.metrics.registry.get_sample_value("mfalcon_write_behind_dropped_total", {"reason": "full"})
    assert dropped == 1
    setting.remote.let_go.set()
    await asyncio.wait_for(setting.writes.idle(), PATIENCE_S)
    assert [user for user, _ in setting.written()] == ["ann", *(f"a{number}" for number in range(1, 9))]
