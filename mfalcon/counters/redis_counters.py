"""Item counters that replicas share: Redis has them, and every replica a copy that follows.

A copy begins with all items and then follows the stream of changes. Changes name whole numbers and have versions
without a gap, so one that is seen twice does no harm and one that is missed is noticed: then a new copy is made.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
from cachetools import LRUCache

from mfalcon.counters.item_numbers import ItemNumbers
from mfalcon.counters.redis_records import CALL_S, CounterRecords, DamagedCounters, Outcome, name_of, store_names
from mfalcon.counters.standing import Insertion, Standing
from mfalcon.errors import StorageUnavailable
from mfalcon.features.counters import LikeRule
from mfalcon.history.history import History
from mfalcon.history.log import EventLog
from mfalcon.metrics.counters import CounterMetrics
from mfalcon.redis.client import RedisClient
from mfalcon.redis.keys import Keys
from mfalcon.types import Ids

_log = logging.getLogger(__name__)

POLL_S = 0.1
SWEEP_S = 1.0
"""Between two steps of the sweep."""
SWEEP_KEYS = 64
"""That a step looks at: where all are records two calls for each, a hundredth of the event loop's time."""
_SILENT_S = 1.0
_READ_S = 0.25
_AT_ONCE_S, _PAUSE_S = 0.1, 0.005
"""How long, and how often, an append looks whether those that came before it have been counted."""
_APPEND_S = 0.5
"""When an append stops to count, however much is left."""
PATIENCE_S = 0.5
"""How long an append that came late may take to be counted before somebody else mends the record."""
_PAGE = 256
_SCAN = 1_000
_KNOWN_USERS = 65_536
_WAITING_USERS = 65_536
_AT_ONCE = 256
_FAILURES = 3
_NO_LIMIT = 1 << 62
"""Redis bounds the items; a copy takes what is there."""


class _NotYet(StorageUnavailable):
    """Nothing is wrong yet: another replica is about to count."""


class RedisCounters:
    """See `ItemCounters`. What could not be counted is counted later, by itself; until then the store is stale."""

    def __init__(
        self, like: LikeRule, max_items: int, client: RedisClient, keys: Keys, log: EventLog, metrics: CounterMetrics
    ) -> None:
        self.like = like
        self.version = 0
        self._client = client
        self._keys = keys
        self._records = CounterRecords(client, keys, name_of(like), max_items)
        self._log = log
        self._metrics = metrics
        self._items = ItemNumbers(_NO_LIMIT)
        self._epoch: bytes | None = None
        self._followed_at = 0.0
        self._is_failing = False
        self._following = asyncio.Lock()
        self._known: LRUCache[bytes, Standing] = LRUCache(_KNOWN_USERS)
        self._parted: LRUCache[bytes, tuple[bytes, float]] = LRUCache(_KNOWN_USERS)
        self._insertions: LRUCache[bytes, tuple[Insertion, ...]] = LRUCache(_KNOWN_USERS)
        self._waiting: dict[str, None] = {}
        self._failed: set[str] = set()
        self._is_copying = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_stale(self) -> bool:
        """See `ItemCounters.is_stale`. Also while Redis does not answer."""
        is_silent = time.monotonic() - self._followed_at > _SILENT_S
        return self._epoch is None or self._is_failing or is_silent or bool(self._failed)

    def start(self) -> None:
        """Begin to follow. On the event loop."""
        if not self._tasks:
            loop = asyncio.get_running_loop()
            works: dict[str, Callable[[], Awaitable[None]]] = {
                "counters-follow": self._follow,
                "counters-work-off": self._work_off,
                "counters-sweep": self._sweep,
            }
            for name, work in works.items():
                self._tasks.add(loop.create_task(self._keep(work), name=name))

    def read(self, item_ids: Ids) -> Ids:
        """See `ItemCounters.read`."""
        if self.is_stale:
            self._metrics.stale_reads.inc()
        return self._items.read(item_ids)

    def content(self) -> tuple[Ids, Ids]:
        """Every item of the copy that was counted, ascending, and its numbers."""
        return self._items.content()

    def notice(self, history: History) -> None:
        """See `ItemCounters.notice`."""
        at = self._known.get(history.user)
        if history.generation and (
            at is None or at.generation != history.generation or at.counted < len(history) or not at.is_of(history)
        ):
            self._wait(history.user_id)

    async def catch_up(self, history: History) -> None:
        """See `ItemCounters.catch_up`."""
        until, at_once = time.monotonic() + _APPEND_S, time.monotonic() + _AT_ONCE_S
        try:
            while True:
                try:
                    return await self._count(history, until)
                except _NotYet:
                    if time.monotonic() > at_once:
                        raise
                await asyncio.sleep(_PAUSE_S)
        except StorageUnavailable as error:
            _log.debug("counting: %s", error)
            self._known.pop(history.user, None)
            self.missed(history.user_id)

    async def inserted(self, insertion: Insertion) -> None:
        """See `ItemCounters.inserted`."""
        try:
            outcome = await self._records.count_inserted(insertion, self.like)
            unknown = replace(insertion.before, link=b"")
            if outcome.standing == unknown:  # of a server that knew no links
                outcome = await self._records.count_inserted(replace(insertion, before=unknown), self.like)
            if outcome.change is not None:
                self._known[insertion.user], _ = await self._done(outcome, len(insertion.events))
            elif outcome.standing.counted < insertion.after.counted:  # another insert is to be counted first
                self._insertions[insertion.user] = (*self._insertions.get(insertion.user, ()), insertion)
        except StorageUnavailable as error:
            _log.debug("counting: %s", error)
            self._known.pop(insertion.user, None)
            self.missed(insertion.user_id)

    def missed(self, user_id: str) -> None:
        """See `ItemCounters.missed`."""
        self._metrics.failed.inc()
        if self._wait(user_id):
            self._failed.add(user_id)
        self._metrics.waiting.set(len(self._failed))

    async def forget(self, user: bytes, generation: bytes) -> None:
        """See `ItemCounters.forget`."""
        self._known.pop(user, None)
        await self._records.forget(user, generation)
        await self._follow_awhile()

    async def close(self) -> None:
        """See `ItemCounters.close`."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _count(self, history: History, until: float = math.inf, *, is_fresh: bool = False) -> None:
        """Count what the record lacks, step by step. until: when no step may begin any more. is_fresh: whether the
        history is what the log has now.
        """
        if not history.generation:
            return
        user, length = history.user, len(history)
        at = self._known.get(user)
        if at is None or at.generation != history.generation or not at.is_of(history):
            at = await self._records.stands(user, history.generation)
        while at.counted < length or not at.is_of(history):
            if time.monotonic() > until:
                raise StorageUnavailable("counting takes too long for an append; the rest is counted later")
            if not at.is_of(history):
                at, is_gone = await self._mend(history, at, is_fresh=is_fresh)
            else:
                outcome = await self._records.count(history, at, self.like)
                at, is_gone = await self._done(outcome, outcome.standing.counted - max(at.counted, history.base))
            if is_gone:
                break
        else:
            self._known[user] = at
        self._parted.pop(user, None)
        left = tuple(one for one in self._insertions.pop(user, ()) if one.before.counted >= at.counted)
        if left:
            self._insertions[user] = left
        self._is_counted(history.user_id)

    async def _mend(self, history: History, at: Standing, *, is_fresh: bool) -> tuple[Standing, bool]:
        """Count a history that has events between those that were counted, which whoever put them there has had the
        time to count and did not. Raises _NotYet while it has.
        """
        for insertion in self._insertions.get(history.user, ()):
            if insertion.before == at:
                return await self._done(await self._records.count_inserted(insertion, self.like), len(insertion.events))
        link, since = self._parted.get(history.user, (b"", 0.0))
        if link != at.link:
            link, since = self._parted[history.user] = at.link, time.monotonic()
        if not is_fresh or time.monotonic() - since < PATIENCE_S:
            raise _NotYet("an append that came late has not been counted yet")
        del self._parted[history.user]
        self._metrics.recounted.labels("guess" if history.base else "whole").inc()
        if history.base:  # what was trimmed is counted nowhere but in the record
            outcome = await self._records.count(history, at, self.like)
            return await self._done(outcome, outcome.standing.counted - at.counted)
        gone = False
        for outcome in await self._records.count_whole(history, at, self.like):
            at, gone = await self._done(outcome, 0)
        return at, gone

    async def _done(self, outcome: Outcome, num_events: int) -> tuple[Standing, bool]:
        """Where the record stands after a step, and whether it is gone."""
        if outcome.change is not None:
            self._metrics.events.inc(num_events)
            self._metrics.left_out.inc(outcome.left_out)
            if len(outcome.change.ids):
                await self._take(outcome)
        return outcome.standing, outcome.is_gone

    async def _take(self, outcome: Outcome) -> None:
        """See one's own change at once, if everything before it is known here."""
        change = outcome.change
        assert change is not None
        if outcome.epoch == self._epoch and change.version == self.version + 1 and not self._following.locked():
            self._items.put(change.ids, change.numbers)
            self._is_at(change.version)
        elif not self._is_copying and (outcome.epoch != self._epoch or change.version > self.version):
            await self._follow_awhile(outcome.epoch, change.version)

    async def _follow_awhile(self, epoch: bytes = b"", version: int = 0) -> None:
        """Follow as far as a version, or be stale if that takes long: an append does not wait for a copy of all."""
        following = asyncio.get_running_loop().create_task(self._follow(epoch, version))
        self._tasks.add(following)
        following.add_done_callback(self._tasks.discard)
        following.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.wait((following,), timeout=CALL_S)
        if not following.done():
            self._is_failing = True

    def _wait(self, user_id: str) -> bool:
        if len(self._waiting) < _WAITING_USERS:
            self._waiting[user_id] = None
        return user_id in self._waiting

    def _is_counted(self, user_id: str) -> None:
        """As far as was known; another failure meanwhile has made the user wait again."""
        if user_id not in self._waiting:
            self._failed.discard(user_id)

    async def _keep(self, work: Callable[[], Awaitable[None]]) -> None:
        is_told = False
        while True:
            try:
                await work()
                is_told = False
            except DamagedCounters as error:
                if not is_told:
                    _log.error("%s", error)
                is_told = True
            except StorageUnavailable as error:
                _log.debug("counters: %s", error)
            except Exception:  # noqa: BLE001 (the task's edge: without it the counters would stand still)
                self._is_failing = True
                _log.exception("following the item counters failed")
            await asyncio.sleep(POLL_S)

    async def _work_off(self) -> None:
        """Count what waits. A user who cannot be counted holds nobody else up."""
        failures = 0
        for user_id in list(self._waiting)[:_AT_ONCE]:
            del self._waiting[user_id]
            try:
                reading = await self._log.read(user_id, _READ_S)
                if reading.stale:
                    raise StorageUnavailable("the event log cannot be asked")
                await self._count(reading.history, is_fresh=True)
                self._is_counted(user_id)
            except StorageUnavailable as error:
                if not self._wait(user_id):
                    self._failed.discard(user_id)
                failures += not isinstance(error, _NotYet)
                if failures == _FAILURES:
                    break
            except Exception:  # noqa: BLE001 (one user's log or record must not stop the others)
                self._is_counted(user_id)
                _log.exception("a user's events cannot be counted")
        self._metrics.waiting.set(len(self._failed))

    async def _sweep(self) -> None:
        """Have no record outlive its log for ever, in any store that there ever was."""
        await asyncio.sleep(SWEEP_S)
        for name in await store_names(self._client, self._keys):
            records = CounterRecords(self._client, self._keys, name)
            self._metrics.swept.inc(await records.sweep(SWEEP_KEYS, SWEEP_S))

    async def _follow(self, epoch: bytes = b"", version: int = 0) -> None:
        """Bring the copy up to what Redis has now, or at least to a version. Raises StorageUnavailable."""
        async with self._following:
            if version and self._epoch == epoch and self.version >= version:
                return
            try:
                if not await self._replay():
                    await self._copy_all()
            except StorageUnavailable:
                self._is_failing = True
                raise
            self._is_failing, self._followed_at = False, time.monotonic()

    async def _replay(self) -> bool:
        """Follow the stream to its end; False if this copy cannot be brought up that way."""
        if self._epoch is None:
            return False
        return await self._replayed(self._items, self._epoch, self.version) is not None

    async def _replayed(self, items: ItemNumbers, epoch: bytes, version: int) -> int | None:
        """Put the changes after a version. The version reached, None if some are missing."""
        while True:
            now, latest, changes = await self._records.follow(version, _PAGE)
            if now != epoch or latest < version:
                return None
            for change in changes:
                if change.version != version + 1:
                    return None
                items.put(change.ids, change.numbers)
                version = change.version
                if items is self._items:
                    self._is_at(version)
            if version == latest:
                return version
            if not changes:
                return None

    async def _copy_all(self) -> None:
        """Copy all items and then what has changed meanwhile, beside the copy in use, which is stale."""
        self._is_copying = self._is_failing = True
        try:
            if not await self._copied():
                raise StorageUnavailable("the counters change faster than they can be copied")
        finally:
            self._is_copying = False

    async def _copied(self) -> bool:
        """False if changes came faster than they could be followed."""
        self._metrics.copies.inc()
        self._known.clear()
        items, cursor = ItemNumbers(_NO_LIMIT, await self._records.num_items()), 0
        epoch, reached, _ = await self._records.follow(0, 1)
        while True:
            cursor, ids, numbers = await self._records.scan(cursor, _SCAN)
            _, first = np.unique(ids, return_index=True)  # a step may name an item twice
            items.put(ids[first], numbers[first])
            at = await self._replayed(items, epoch, reached)
            if at is None:
                return False
            reached = at
            if not cursor:
                self._items, self._epoch = items, epoch
                self._is_at(reached)
                return True

    def _is_at(self, version: int) -> None:
        self.version = version
        self._metrics.items.set(len(self._items))
        self._metrics.version.set(version)
