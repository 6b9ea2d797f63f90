"""The item counters of a server: one store for each meaning of a like among the models that it serves."""

import asyncio
from collections import Counter as Multiset
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from mfalcon.counters.standing import Insertion
from mfalcon.counters.store import ItemCounters
from mfalcon.features.counters import LikeRule
from mfalcon.history.history import History
from mfalcon.types import Ids

_BACKFILL_USERS = 64
"""Logs that are counted in one turn of the event loop."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What each store has counted of a request's candidates, int64 [n, 3], at which version, and which of them may lack
    events. Copies of one moment.
    """

    numbers: Mapping[LikeRule, Ids] = field(default_factory=dict)
    versions: Mapping[LikeRule, int] = field(default_factory=dict)
    stale: frozenset[LikeRule] = frozenset()


class CounterSets:
    """Owns the stores. Lives on the event loop, but for `require` before there is one.

    new_store: makes one. histories: what a new one counts before it counts what is appended, None if there are none; by
    reading them nobody counts as asked for. has_ended: whether the log of a generation was deleted.
    """

    def __init__(
        self,
        new_store: Callable[[LikeRule], ItemCounters],
        histories: Callable[[], AsyncIterator[History] | None] = lambda: None,
        has_ended: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        self._new_store = new_store
        self._histories = histories
        self._has_ended = has_ended
        self._stores: dict[LikeRule, ItemCounters] = {}
        self._started = False
        self._needed: Multiset[LikeRule] = Multiset()
        self._unfilled: set[LikeRule] = set()
        self._filling: dict[LikeRule, asyncio.Task[None]] = {}

    @property
    def stores(self) -> tuple[ItemCounters, ...]:
        """All of them."""
        return tuple(self._stores.values())

    def start(self) -> None:
        """Let the stores, and those that come, begin what runs beside. On the event loop."""
        self._started = True
        for store in self.stores:
            store.start()
            if store.like in self._unfilled:
                self._begin_to_fill(store)

    def require(self, like: LikeRule) -> None:
        """A model needs a store; one that is new counts what the logs have."""
        self._needed[like] += 1
        if like not in self._stores:
            store = self._stores[like] = self._new_store(like)
            self._unfilled.add(like)
            if self._started:
                store.start()
                self._begin_to_fill(store)

    async def release(self, like: LikeRule) -> None:
        """A model needs a store no longer."""
        self._needed[like] -= 1
        if not self._needed[like]:
            await self._close(like)

    def read(self, item_ids: Ids) -> Counted:
        """Of candidates, as of now."""
        if not self._stores:
            return Counted()
        stale = {like for like, store in self._stores.items() if store.is_stale or like in self._filling}
        return Counted(
            {like: store.read(item_ids) for like, store in self._stores.items()},
            {like: store.version for like, store in self._stores.items()},
            frozenset(stale),
        )

    def notice(self, history: History) -> None:
        """See `ItemCounters.notice`."""
        for store in self.stores:
            store.notice(history)

    async def catch_up(self, history: History) -> None:
        """A log has grown; when this returns its events are counted, or the stores are stale."""
        for store in self.stores:
            await store.catch_up(history)

    async def inserted(self, insertion: Insertion) -> None:
        """See `ItemCounters.inserted`."""
        for store in self.stores:
            await store.inserted(insertion)

    def missed(self, user_id: str) -> None:
        """See `ItemCounters.missed`."""
        for store in self.stores:
            store.missed(user_id)

    async def forget(self, user: bytes, generation: bytes) -> None:
        """A log has ended; see `ItemCounters.forget`. Raises StorageUnavailable."""
        for store in self.stores:
            await store.forget(user, generation)

    async def close(self) -> None:
        """End what runs beside."""
        for like in tuple(self._stores):
            await self._close(like)

    async def _close(self, like: LikeRule) -> None:
        store, filling = self._stores.pop(like), self._filling.pop(like, None)
        if filling is not None:
            filling.cancel()
            await asyncio.wait((filling,))
        await store.close()

    def _begin_to_fill(self, store: ItemCounters) -> None:
        loop = asyncio.get_running_loop()
        self._unfilled.discard(store.like)
        histories = self._histories()
        if histories is not None:
            self._filling[store.like] = loop.create_task(self._fill(store, histories))

    async def _fill(self, store: ItemCounters, histories: AsyncIterator[History]) -> None:
        """Count the logs of users; whoever comes, goes or appends meanwhile is counted then."""
        num = 0
        async for history in histories:
            if not self._has_ended(history.generation):
                await store.catch_up(history)
            num += 1
            if num % _BACKFILL_USERS == 0:
                await asyncio.sleep(0)
        self._filling.pop(store.like, None)
