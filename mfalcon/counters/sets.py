"""The item counters of a server: one store for each meaning of a like among the models that it serves."""

import asyncio
from collections import Counter as Multiset
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from mfalcon.counters.store import ItemCounters
from mfalcon.features.counters import LikeRule
from mfalcon.history.history import History
from mfalcon.history.log import EventLog
from mfalcon.types import Ids

_READ_S = 1.0
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

    new_store: makes one. log, users: those whose logs a new one counts before it counts what is appended.
    """

    def __init__(
        self,
        new_store: Callable[[LikeRule], ItemCounters],
        log: EventLog,
        users: Callable[[], Iterable[str]] = lambda: (),
    ) -> None:
        self._new_store = new_store
        self._log = log
        self._users = users
        self._stores: dict[LikeRule, ItemCounters] = {}
        self._started = False
        self._needed: Multiset[LikeRule] = Multiset()
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

    def require(self, like: LikeRule) -> None:
        """A model needs a store; one that is new counts what the logs have."""
        self._needed[like] += 1
        if like not in self._stores:
            store = self._stores[like] = self._new_store(like)
            if self._started:
                store.start()
            users = list(self._users())
            if users:
                self._filling[like] = asyncio.get_running_loop().create_task(self._fill(store, users))

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

    async def _fill(self, store: ItemCounters, users: list[str]) -> None:
        """Count the logs of users; whoever comes, goes or appends meanwhile is counted then."""
        while users:
            for user_id in users[-_BACKFILL_USERS:]:
                await store.catch_up((await self._log.read(user_id, _READ_S)).history)
            del users[-_BACKFILL_USERS:]
            await asyncio.sleep(0)
        self._filling.pop(store.like, None)
