"""Offload from the device's tier to the host's behind the requests' backs: bounded, droppable, counted, never awaited
by a request. What has come to the host goes on to Redis from there (`write_behind.py`).

Of a state that grew since the host got it, only what is new is copied.
"""

import logging
import threading

from mfalcon.errors import Overloaded
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.copy import Copier
from mfalcon.kvcache.item_rows import num_alike
from mfalcon.kvcache.offload_queue import Offer, OffloadQueue
from mfalcon.kvcache.state import KVPool
from mfalcon.kvcache.tier import Entry, LruTier, state_key
from mfalcon.kvcache.write_behind import WriteBehind

_log = logging.getLogger(__name__)


class Offload:
    """Copies what it is offered when it can, one state after the other, in a thread of its own.

    host: the tier to copy to, on pages of `pool`. budget_bytes: of states that wait and so keep their memory on the
    device, besides the one that is being copied. below: is offered what has come to the host.
    """

    def __init__(
        self,
        fingerprint: str,
        host: LruTier,
        pool: KVPool,
        copier: Copier,
        tombstones: Tombstones,
        budget_bytes: int,
        below: WriteBehind | None = None,
    ) -> None:
        self._fingerprint = fingerprint
        self._host = host
        self._pool = pool
        self._copier = copier
        self._tombstones = tombstones
        self._below = below
        self._queue = OffloadQueue(budget_bytes)
        self._changed = self._queue.changed
        self._copying: tuple[bytes, int] | None = None
        self._deleted = False
        self._closed = False
        self.num_copied = 0
        self.num_dropped = 0
        """Offers that found no room here or in the host's memory, or whose copy failed."""
        self._thread = threading.Thread(target=self._run, name="mfalcon-offload", daemon=True)
        self._thread.start()

    def offer(self, offer: Offer) -> None:
        """Have a state copied some time soon, or never. Returns at once."""
        with self._changed:
            if not self._closed and offer.history.generation not in self._tombstones:
                self.num_dropped += self._queue.put(offer)

    def delete(self, user: bytes | None) -> None:
        """Drop what waits for a user (None: for anybody) or is being copied: when this returns, nothing of it comes to
        the host any more. What is in the host's tier is to be deleted after.
        """
        with self._changed:
            self._queue.delete(user)
            if self._copying is not None and user in (None, self._copying[0]):
                self._deleted = True

    def __contains__(self, place: object) -> bool:
        """Whether a state of a user's window waits or is being copied; any thread may ask."""
        return place in self._queue or self._copying == place

    def make_room(self) -> bool:
        """Drop what has waited longest, whose memory on the device is needed; False if nothing waits."""
        with self._changed:
            dropped = self._queue.take() is not None
            self.num_dropped += dropped
            return dropped

    def idle(self) -> None:
        """Return when nothing waits or is being copied."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue and self._copying is None)

    def close(self) -> None:
        """Drop what waits, finish what is being copied and end."""
        with self._changed:
            self._closed = True
            self._queue.delete(None)
            self._changed.notify_all()
        self._thread.join()

    def __len__(self) -> int:
        """States that wait."""
        return len(self._queue)

    def _run(self) -> None:
        while (offer := self._next()) is not None:
            try:
                self._copy(offer)
            except Overloaded:
                self.num_dropped += 1
            except Exception:  # noqa: BLE001 (the thread's edge: the next state is copied all the same)
                _log.exception("a state could not be copied to the host")
                self.num_dropped += 1
            del offer  # the device's memory is free before anybody hears that this is idle
            with self._changed:
                self._copying = None
                self._changed.notify_all()

    def _next(self) -> Offer | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            offer = self._queue.take()
            if offer is not None:
                self._copying, self._deleted = offer.place, False
            return offer

    def _copy(self, offer: Offer) -> None:
        history, start = offer.history, offer.start
        key = state_key(self._fingerprint, history, start, len(history), offer.tags, offer.made_at)
        there = self._host.get(history.user, start)
        if history.generation in self._tombstones or (there is not None and there.key == key):
            return
        older = None
        alike = start if there is None else there.key.shared(self._fingerprint, history, start)
        if there is not None:
            alike = min(alike, start + num_alike(there.key.tags, key.tags, there.key.stop - start))
        if there is not None and alike > start:
            older = there.until(self._fingerprint, history, alike).state
        assert offer.mark is not None
        state = self._copier.demote(offer.state, self._pool, offer.mark, older)
        with self._changed:
            if self._deleted or history.generation in self._tombstones:
                return
            self._host.put(Entry(key, state))
            if history.generation in self._tombstones:
                self._host.delete(history.user)  # deleted just now: whoever did may have been here before us
                return
        self.num_copied += 1
        if self._below is not None and offer.is_own:
            self._below.offer(Offer(history, start, state, tags=offer.tags))
