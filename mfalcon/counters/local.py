"""Item counters of the logs in this process's memory."""

import numpy as np

from mfalcon.counters.increments import counted, numbers
from mfalcon.counters.item_numbers import ItemNumbers
from mfalcon.counters.record import UserRecord
from mfalcon.counters.standing import Insertion, Standing, standing_of
from mfalcon.features.counters import LikeRule
from mfalcon.history.history import History
from mfalcon.metrics.counters import CounterMetrics
from mfalcon.types import Events, Ids


class LocalCounters:
    """See `ItemCounters`. Nothing in it awaits, so a log and its counters change as one."""

    def __init__(self, like: LikeRule, max_items: int, metrics: CounterMetrics) -> None:
        self.like = like
        self.version = 0
        self.is_stale = False
        self._items = ItemNumbers(max_items)
        self._users: dict[bytes, UserRecord] = {}
        self._metrics = metrics

    def read(self, item_ids: Ids) -> Ids:
        """See `ItemCounters.read`."""
        return self._items.read(item_ids)

    def content(self) -> tuple[Ids, Ids]:
        """Every item that was counted, ascending, and its numbers."""
        return self._items.content()

    def start(self) -> None:
        """See `ItemCounters.start`."""

    def notice(self, history: History) -> None:
        """See `ItemCounters.notice`. Here a log and its counters are never apart."""

    async def catch_up(self, history: History) -> None:
        """See `ItemCounters.catch_up`."""
        self.count(history)

    def missed(self, user_id: str) -> None:
        """See `ItemCounters.missed`. A log in this process can always be read."""

    def count(self, history: History) -> None:
        """Count what a history has beyond its user's record."""
        if not history.generation:
            return
        record = self._users.get(history.user)
        if record is not None and record.standing.generation != history.generation:
            self._take_out(history.user)
            record = None
        is_parted = record is not None and not record.standing.is_of(history)
        if is_parted:
            self._metrics.recounted.labels("guess" if history.base else "whole").inc()
        if is_parted and not history.base:
            self._take_out(history.user)
            record = None
        if record is None:
            record = self._users[history.user] = UserRecord(Standing(history.generation))
        if is_parted or record.standing.counted < len(history):
            self._count(record, history.since(max(record.standing.counted, history.base)))
            record.standing = standing_of(history, len(history))

    async def inserted(self, insertion: Insertion) -> None:
        """See `ItemCounters.inserted`."""
        record = self._users.get(insertion.user)
        if record is not None and record.standing == insertion.before:
            self._count(record, insertion.events)
            record.standing = insertion.after

    async def forget(self, user: bytes, generation: bytes) -> None:
        """See `ItemCounters.forget`."""
        self._take_out(user)

    async def close(self) -> None:
        """See `ItemCounters.close`."""

    def _count(self, record: UserRecord, events: Events) -> None:
        added = counted(events, self.like)
        taken = self._items.add(np.ascontiguousarray(added["item_id"]), numbers(added))
        record.add(added[taken])
        self._changed(len(events))
        self._metrics.left_out.inc(int(np.count_nonzero(~taken)))

    def _take_out(self, user: bytes) -> None:
        record = self._users.pop(user, None)
        if record is not None:
            theirs = record.increments
            self._items.add(np.ascontiguousarray(theirs["item_id"]), -numbers(theirs))
            self._changed(0)

    def _changed(self, num_events: int) -> None:
        self.version += 1
        self._metrics.events.inc(num_events)
        self._metrics.items.set(len(self._items))
        self._metrics.version.set(self.version)
