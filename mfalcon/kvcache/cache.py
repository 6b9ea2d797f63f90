"""The KV cache of one model: every tier in this process and the way to Redis behind one door. Look up, put, delete.

A state is kept where it was computed and offered to the next tier below, which takes it when it can:

    device's pool ──Offload──► host's pool ──WriteBehind──► Redis

Without a GPU the host's pool is where states are computed. What Redis holds is brought up before a job reaches the
device (`fetch.py`) and comes in as `fetched`. The history decides what a state found anywhere is worth.
"""

from concurrent.futures import Executor
from dataclasses import dataclass, field

from mfalcon.errors import Overloaded
from mfalcon.history.history import History
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.copy import Copier, copier_of
from mfalcon.kvcache.item_rows import NO_TAGS, FixedRows, ItemRows
from mfalcon.kvcache.offload import Offload
from mfalcon.kvcache.offload_queue import Offer
from mfalcon.kvcache.remote import RedisStates
from mfalcon.kvcache.state import KVPool, KVState
from mfalcon.kvcache.tier import Entry, LruTier, StateKey, state_key
from mfalcon.kvcache.write_behind import WriteBehind
from mfalcon.types import CacheSource

_WAITING_SHARE = 2
"""Of a device's pool, one part in so many may be states that wait to be copied to the host; they go first for room."""


@dataclass(frozen=True, slots=True)
class Found:
    """A state of the window's first `stop - start` events; `source` names its tier. tags, made_at: see `StateKey`."""

    state: KVState
    stop: int
    source: CacheSource
    tags: bytes = NO_TAGS
    made_at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class RemoteTier:
    """The states of one model in Redis: reads, writes behind the requests' backs, and the threads that code them."""

    states: RedisStates
    writes: WriteBehind
    workers: Executor


class KVCache:
    """Finds the state that is an ancestor of a history, if there is one. The device thread looks up, puts and deletes;
    any thread may peek.

    host: what is in host memory. device: what is in the pool of a GPU; None where states are computed in host memory.
    remote: what is in Redis; None without one.
    """

    def __init__(
        self,
        fingerprint: str,
        pool: KVPool,
        budget_bytes: int,
        tombstones: Tombstones,
        *,
        host_pool: KVPool | None = None,
        copier: Copier | None = None,
        remote: RemoteTier | None = None,
        rows: ItemRows | None = None,
    ) -> None:
        """pool: what states are computed in. budget_bytes: of the host's tier. host_pool: pages in host memory where
        `pool` is a device's. copier: between the two, the device's own if not given. rows: of items, where they may
        change.
        """
        self.rows = rows or FixedRows()
        self.fingerprint = fingerprint
        self.remote = remote
        self.host = LruTier(budget_bytes)
        self.host_pool = pool if host_pool is None else host_pool
        self._leave_pools = [self.host_pool.accounts.make_room_with(self.host.make_room)]
        self.device: LruTier | None = None
        self.offload: Offload | None = None
        self._pool = pool
        self._tombstones = tombstones
        self._below = remote.writes if remote is not None else None
        if host_pool is not None:
            self._copier = copier or copier_of(pool.layout.shape.device)
            waiting_bytes = pool.num_bytes // _WAITING_SHARE
            self.offload = offload = Offload(
                fingerprint, self.host, host_pool, self._copier, tombstones, waiting_bytes, self._below
            )
            self.device = device = LruTier((pool.accounts.num_pages - pool.reserved) * pool.layout.page_bytes)
            # Of the parts and not of ourselves: a pool that knew us would wait for the garbage collection of a circle.
            leave = pool.accounts.make_room_with(lambda whole: device.make_room(whole, offload) or offload.make_room())
            self._leave_pools.append(leave)

    @property
    def fastest(self) -> CacheSource:
        """The tier that a state is put into."""
        return self._tiers()[0][0]

    @property
    def num_bytes(self) -> int:
        """Bytes held in this process."""
        return sum(tier.num_bytes for _, tier in self._tiers())

    def lookup(self, history: History, start: int, fetched: Entry | None = None, tags: bytes = NO_TAGS) -> Found | None:
        """The longest state of a prefix of history[start:], verified by the chained hash; None on a miss.

        tags: of the item rows that the asker has of history[start:]; the policy decides which others he takes.

        Of a state that is no ancestor of the history, because an event was inserted say, what it begins with alike
        counts, in whole blocks of the chained hash; the next `put` of its window replaces it. fetched: a state
        from Redis, kept here if it is the longer one. Where there is no room to bring a state up to the device, the
        next best counts: a request does not fail for what it could compute; if there is no room for that either,
        computing says so.
        """
        found: list[tuple[int, CacheSource, LruTier | None]] = []
        for source, tier in self._tiers():
            key = tier.peek(history.user, start)
            if key is not None:
                found.append((self._usable(key, history, start, tags), source, tier))
        if fetched is not None:
            found.append((self._usable(fetched.key, history, start, tags), CacheSource.REDIS, None))
        found.sort(key=lambda one: -one[0])  # of equally long ones the fastest tier's stays in front
        for stop, source, place in found:
            entry = fetched if place is None else place.get(history.user, start)
            if stop == start or entry is None or self._usable(entry.key, history, start, tags) < stop:
                continue  # nothing of it, or evicted since, or replaced
            part = entry.until(self.fingerprint, history, stop)
            state = self._here(history, part, source)
            if state is not None:
                return Found(state, stop, source, part.key.tags, part.key.made_at)
        return None

    def peek(self, history: History, start: int) -> int:
        """Events of history[start:] that a state here covers, in any thread: a guess that `lookup` may not find."""
        keys = [key for _, tier in self._tiers() if (key := tier.peek(history.user, start)) is not None]
        tags = self.rows.tags(history, start) if keys else NO_TAGS
        return max((self._usable(key, history, start, tags) for key in keys), default=start) - start

    def sizes(self, user: bytes) -> list[tuple[CacheSource, StateKey, int, int]]:
        """The user's states in each tier of this process, with their tokens and bytes; any thread may ask, and none is
        marked as used.
        """
        return [(source, *of) for source, tier in self._tiers() for of in tier.sizes(user)]

    def holds(self, user: bytes) -> bool:
        """Whether any tier in this process has a state of the user, good or not; any thread may ask."""
        return any(tier.holds(user) for _, tier in self._tiers())

    def put(
        self,
        history: History,
        start: int,
        state: KVState,
        own_start: int | None = None,
        tags: bytes = NO_TAGS,
        made_at: float = 0.0,
    ) -> None:
        """Keep the state of history[start:], unless the user was deleted since the history was read.

        tags, made_at: of the item rows that it was made with, see `StateKey`.

        own_start: where the history's own window begins, if not at `start`: a state of the window that it would have
        with more events is kept beside its own, and does not go to Redis. States of windows that begin before the
        history's own are of no more use and dropped.
        """
        own_start = start if own_start is None else own_start
        tiers = self._tiers()
        for _, tier in tiers:
            tier.delete_before(history.user, own_start)
        if history.generation in self._tombstones:
            return
        tiers[0][1].put(Entry(state_key(self.fingerprint, history, start, len(history), tags, made_at), state))
        if self.offload is not None:
            is_own = start == own_start
            self.offload.offer(Offer(history, start, state, self._copier.mark(), is_own, tags, made_at))
        elif self._below is not None and start == own_start:
            self._below.offer(Offer(history, start, state, tags=tags))

    def put_part(
        self, history: History, start: int, stop: int, state: KVState, tags: bytes = NO_TAGS, made_at: float = 0.0
    ) -> None:
        """Keep the state of history[start:stop] here, as `put` does, unless there is one that covers more of it."""
        if history.generation not in self._tombstones and self.peek(history, start) < stop - start:
            self._tiers()[0][1].put(Entry(state_key(self.fingerprint, history, start, stop, tags, made_at), state))

    def delete(self, user: bytes | None) -> None:
        """Delete the states of a user, or everybody's, from every tier in this process."""
        if self.offload is not None:
            self.offload.delete(user)
        for _, tier in self._tiers():
            tier.delete(user)

    def key(self, history: History, start: int, stop: int, tags: bytes = NO_TAGS) -> StateKey:
        """The key of the state of history[start:stop], made now of item rows with these tags."""
        return state_key(self.fingerprint, history, start, stop, tags, self.rows.policy.clock())

    def idle(self) -> None:
        """Return when nothing is on its way between the tiers of this process."""
        if self.offload is not None:
            self.offload.idle()
            self._copier.idle()

    def close(self) -> None:
        """Delete every state and end what copies; another model may go on using the pools. Nobody looks up or puts any
        more.
        """
        self.delete(None)
        for leave in self._leave_pools:
            leave()
        if self.offload is not None:
            self.offload.close()
            self._copier.close()

    def _usable(self, key: StateKey, history: History, start: int, tags: bytes) -> int:
        """Where what a state is good for ends, of history[start:] encoded with item rows of these tags."""
        stop = key.shared(self.fingerprint, history, start)
        if key.tags == tags or stop == start:
            return stop
        return start + self.rows.policy.reach(key.tags, key.made_at, tags, stop - start)

    def _tiers(self) -> tuple[tuple[CacheSource, LruTier], ...]:
        """The fastest first."""
        host = (CacheSource.HOST, self.host)
        return (host,) if self.device is None else ((CacheSource.GPU, self.device), host)

    def _here(self, history: History, entry: Entry, source: CacheSource) -> KVState | None:
        """What was found, where it is computed with, and kept there; None if there is no room."""
        if source is CacheSource.GPU or (source is CacheSource.HOST and self.device is None):
            return entry.state
        state = entry.state
        if self.device is not None:
            try:
                state = self._copier.promote(state, self._pool)
            except Overloaded:
                return None
        if history.generation not in self._tombstones:
            if source is CacheSource.REDIS:
                self.host.put(entry)
            if self.device is not None:
                self.device.put(Entry(entry.key, state))
        return state
