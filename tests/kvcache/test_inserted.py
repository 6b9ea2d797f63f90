"""What a KV state is worth once its history has changed in the middle: what lies before that, in whole blocks of the
chained hash, in every tier.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.history.chain import user_hash
from mfalcon.history.history import History
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import KVCache
from mfalcon.kvcache.chunk import ChunkLayout, PayloadDtype
from mfalcon.kvcache.copy import ThreadCopier
from mfalcon.kvcache.offload_queue import Offer
from mfalcon.kvcache.remote import RedisStates, RemoteOptions
from mfalcon.kvcache.state import KVPool, KVState
from mfalcon.kvcache.tier import Entry
from mfalcon.kvcache.write_behind import WriteBehind
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, RedisSettings
from mfalcon.redis.keys import Keys
from mfalcon.types import CacheSource, Events
from tests.kvcache.states import LAYOUT, PAGE, history
from tests.small import random_events

EVENTS = random_events(200, seed=5)
PER_EVENT = 2


def edited(at: int, length: int) -> Events:
    """The events with another one at a position, and so many in all."""
    return np.concatenate([EVENTS[:at], random_events(1, 77), EVENTS[at:]])[:length]


def marked(pool: KVPool, num_events: int) -> KVState:
    """A state with as many tokens as so many events have, a page each, on which their numbers are written."""
    state = pool.empty().grown(PER_EVENT * num_events)
    for number, page in enumerate(state.pages):
        page.fill_(number % 251)
    return state


def marks(state: KVState) -> list[int]:
    return [int(page[0]) for page in state.pages]


class Tiers:
    """A cache with the CPU as its device: `num_device` pages there, plenty in the host's memory."""

    def __init__(self, num_device: int = 1_000) -> None:
        self.pool, self.host_pool = KVPool(LAYOUT, num_device), KVPool(LAYOUT, 2_000)
        self.cache = KVCache(
            "f", self.pool, 2_000 * PAGE, Tombstones(), host_pool=self.host_pool, copier=ThreadCopier()
        )


@given(
    st.integers(1, 150),
    st.integers(0, 150),
    st.integers(0, 160),
    st.sampled_from([0, 8, 32, 64]),
    st.sampled_from([0, 32]),
    st.booleans(),
)
def test_the_part_before_the_change_is_found(
    made_from: int, at: int, length: int, start: int, base: int, is_cut: bool
) -> None:
    """Whatever was trimmed of either history; also of a state that was kept before all was encoded."""
    if made_from <= start or base > min(made_from, length):
        return
    pool = KVPool(LAYOUT)
    cache = KVCache("f", pool, 1_000 * PAGE, Tombstones())
    known, now = history(EVENTS[:made_from]), history(edited(at, length))
    if is_cut:
        cache.put_part(history(EVENTS[:200]), start, made_from, marked(pool, made_from - start))
    else:
        cache.put(known, start, marked(pool, made_from - start))
    now = now.trimmed(base)
    found, same = cache.lookup(now, start), min(at, made_from, length)
    expected = made_from if same == made_from else same // 32 * 32
    if expected <= start or (base > expected):
        assert found is None and cache.peek(now, start) == 0
        return
    assert found is not None and found.stop == expected
    assert cache.peek(now, start) == expected - start
    assert marks(found.state) == [number % 251 for number in range(PER_EVENT * (expected - start))]
    assert cache.lookup(now.until(expected), start) is not None


def test_another_user_fingerprint_or_window_shares_nothing() -> None:
    pool = KVPool(LAYOUT)
    cache = KVCache("f", pool, 1_000 * PAGE, Tombstones())
    cache.put(history(EVENTS[:100]), 0, marked(pool, 100))
    entry = Entry(cache.key(history(EVENTS[:100]), 0, 100), marked(pool, 100))
    assert cache.lookup(history(EVENTS[:90]), 0) is not None  # 64 of them
    assert cache.lookup(history(EVENTS[:90], "bob"), 0) is None
    assert cache.lookup(history(EVENTS[:90]), 8) is None
    assert KVCache("g", pool, 1_000 * PAGE, Tombstones()).lookup(history(EVENTS[:90]), 0, entry) is None


@pytest.mark.parametrize("tier", [CacheSource.GPU, CacheSource.HOST, CacheSource.REDIS])
def test_every_tier_gives_its_part_and_the_others_stay(tier: CacheSource) -> None:
    tiers = Tiers()
    cache, known, now = tiers.cache, history(EVENTS[:100]), history(edited(70, 101))
    fetched = None
    assert cache.device is not None
    if tier is CacheSource.GPU:
        cache.put(known, 0, marked(tiers.pool, 100))
    elif tier is CacheSource.HOST:
        cache.host.put(Entry(cache.key(known, 0, 100), marked(tiers.host_pool, 100)))
    else:
        fetched = Entry(cache.key(known, 0, 100), marked(tiers.host_pool, 100))
    found = cache.lookup(now, 0, fetched)
    assert found is not None and (found.stop, found.source) == (64, tier)
    assert found.state.pool is tiers.pool
    cache.idle()
    assert marks(found.state) == list(range(128))
    longer = found.state.grown(2)
    longer.pages[-1].fill_(7)
    assert marks(longer)[:128] == list(range(128))
    if tier is CacheSource.GPU:  # whoever scores against the older history still can
        older = cache.lookup(known, 0)
        assert older is not None and older.stop == 100 and marks(older.state) == [n % 251 for n in range(200)]
    cache.close()


def test_only_what_changed_is_copied_to_the_host() -> None:
    tiers, copied = Tiers(), list[int]()

    class Counting(ThreadCopier):
        def demote(self, state: KVState, pool: KVPool, mark: object, onto: KVState | None = None) -> KVState:
            copied.append(state.num_tokens - (onto.num_tokens if onto is not None else 0))
            return super().demote(state, pool, mark, onto)  # type: ignore[arg-type]

    cache = KVCache("f", tiers.pool, 2_000 * PAGE, Tombstones(), host_pool=tiers.host_pool, copier=Counting())
    cache.put(history(EVENTS[:100]), 0, marked(tiers.pool, 100))
    cache.idle()
    cache.put(history(edited(70, 101)), 0, marked(tiers.pool, 101))
    cache.idle()
    assert copied == [200, PER_EVENT * (101 - 64)]
    entry = cache.host.get(user_hash("ann"), 0)
    assert entry is not None and marks(entry.state) == [n % 251 for n in range(202)]
    cache.close()


async def test_only_the_chunks_that_changed_are_written_to_redis() -> None:
    """32 events a chunk: those behind the inserted event, and not the ones before it."""
    metrics = StateMetrics()
    layout = ChunkLayout(b"f" * 16, 1, 8, 4, 32, 32, PayloadDtype.FLOAT32)
    assert layout.events_per_chunk == 32
    client = RedisClient(RedisSettings("redis://127.0.0.1:1"), metrics)  # which is never asked
    written: list[int] = []

    class Remote(RedisStates):
        def available(self, user: bytes) -> bool:
            return True

        def node(self, user: bytes) -> str:
            return "a"

        def pack(self, history: History, start: int, number: int, state: KVState, tags: bytes = b"") -> bytes:
            return b"x"

        async def write(self, history: History, number: int, chunk: bytes, timeout_s: float) -> bool:
            written.append(number)
            return True

        async def touch(self, user: bytes, num_chunks: int, timeout_s: float) -> int:
            return num_chunks

    remote = Remote(client, Keys("t"), layout, 1_000, RemoteOptions(ttl_s=100, log_is_here=True), metrics)
    with ThreadPoolExecutor(1) as workers:
        writes = WriteBehind(remote, Tombstones(), metrics, workers, budget_bytes=1 << 30, timeout_s=5)
        writes.start()
        pool = KVPool(LAYOUT)
        for now, expected in (
            (EVENTS[:100], [0, 1, 2, 3]),
            (edited(70, 101), [2, 3]),
            (edited(70, 101), []),
            (edited(3, 102), [0, 1, 2, 3]),
        ):
            written.clear()
            writes.offer(Offer(history(now), 0, marked(pool, len(now))))
            await asyncio.sleep(0)  # until the offer is there
            await writes.idle()
            assert written == expected
        await writes.close()
    await client.close()
