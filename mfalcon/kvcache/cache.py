"""The tiers of KV states in this process as one; the history decides what a state found in them is worth.

Where the first tier is a GPU's, its states are of another memory than those of the tiers below: what is found there is
brought up (`bring`), and what is kept here is copied down by the offload (`offload.py`).

Lower tiers in other processes are asked before a job reaches the device (`fetch.py`): what they held comes in
as `fetched`, and what is kept here is offered to them by `on_keep`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

from mfalcon.errors import Overloaded
from mfalcon.history.history import History
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.tier import Entry, S, StateKey
from mfalcon.types import CacheSource


class Tier(Protocol[S]):
    """A place for KV states, one per user and window. Any thread may call any method: others put in and drop too."""

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        ...

    def get(self, user: bytes, start: int) -> Entry[S] | None:
        """The user's state of the window that begins at `start`, marked as used."""
        ...

    def peek(self, user: bytes, start: int) -> StateKey | None:
        """What that state was made from; any thread may ask."""
        ...

    def holds(self, user: bytes) -> bool:
        """Whether there is a state of the user, of any window; any thread may ask."""
        ...

    def put(self, entry: Entry[S]) -> list[Entry[S]]:
        """Keep a state in place of the user's former one of that window; returns what had to go for it."""
        ...

    def remove(self, user: bytes) -> None:
        """Drop the user's states of every window."""
        ...

    def drop_before(self, user: bytes, start: int) -> None:
        """Drop the user's states of windows that begin before `start`."""
        ...

    def clear(self) -> None:
        """Drop every state."""
        ...


@dataclass(frozen=True, slots=True)
class Found(Generic[S]):
    """A state of the window's first `stop - start` events; `source` names its tier."""

    state: S
    stop: int
    source: CacheSource


class StateStore(Generic[S]):
    """Finds the state that is an ancestor of a history, if there is one. Owned by the device thread.

    tiers: the fastest first; what one evicts, the next one keeps. on_keep: told of each state kept that is of its
    history's own window, on the device thread. demote: told likewise of every state kept, ahead of it. tombstones: of
    whom nothing may be kept any more. bring: makes of a state from below the first tier one that
    can be computed with, or raises Overloaded; with it the tiers hold states of different kinds, so what the first one
    evicts is dropped: `on_keep` has heard of it. None: one kind, nothing to bring. on_delete: told of each user whose
    states are about to be erased, None for all.
    """

    def __init__(
        self,
        fingerprint: str,
        tiers: Sequence[tuple[CacheSource, Tier[S]]],
        tombstones: Tombstones | None = None,
        on_keep: Callable[[History, int, S], None] | None = None,
        bring: Callable[[S], S] | None = None,
        on_delete: Callable[[bytes | None], None] | None = None,
        demote: Callable[[History, int, S], None] | None = None,
    ) -> None:
        self._fingerprint = fingerprint
        self._tiers = tuple(tiers)
        self._bring = bring
        self._on_delete = on_delete
        self._tombstones = tombstones or Tombstones()
        self._on_keep = on_keep
        self._demote = demote

    def acquire(self, history: History, start: int, fetched: Entry[S] | None = None) -> Found[S] | None:
        """The longest state of a prefix of history[start:], verified by the chained hash; None on a miss.

        A state that is no ancestor of the history is a miss; the next `put` of its window replaces it. fetched: a state
        from another tier, kept here if it is the longer one. Where there is no room to bring a state up, the next best
        counts: a request does not fail for what it could compute; if there is no room for that either, computing says
        so.
        """
        found: list[tuple[StateKey, CacheSource, Tier[S] | None]] = []
        for source, tier in self._tiers:
            key = tier.peek(history.user, start)
            if key is not None and self._is_ancestor(key, history, start):
                found.append((key, source, tier))
        if fetched is not None and self._is_ancestor(fetched.key, history, start):
            found.append((fetched.key, CacheSource.REDIS, None))
        found.sort(key=lambda one: -one[0].stop)  # of equally long ones the fastest tier's stays in front
        for key, source, place in found:
            entry = fetched if place is None else place.get(history.user, start)
            if entry is None or (entry.key != key and not self._is_ancestor(entry.key, history, start)):
                continue  # dropped since, or replaced
            if source is not self._tiers[0][0]:
                brought = self._brought(entry)
                if brought is None:
                    continue
                self._keep(history, brought)
                if place is None and brought is not entry and history.generation not in self._tombstones:
                    self._tiers[1][1].put(entry)  # as it came: dropping it above costs nothing
                entry = brought
            return Found(entry.state, entry.key.stop, source)
        return None

    def peek(self, history: History, start: int) -> int:
        """Events of history[start:] that a state here covers, in any thread: a guess that `acquire` may not find."""
        stops = (
            key.stop
            for _, tier in self._tiers
            if (key := tier.peek(history.user, start)) is not None and self._is_ancestor(key, history, start)
        )
        return max(stops, default=start) - start

    def holds(self, user: bytes) -> bool:
        """Whether any tier has a state of the user, good or not; any thread may ask."""
        return any(tier.holds(user) for _, tier in self._tiers)

    def put(self, history: History, start: int, state: S, own_start: int | None = None) -> None:
        """Keep the state of history[start:], unless the user was deleted since the history was read.

        own_start: where the history's own window begins, if not at `start`: a state of the window that it would have
        with more events is kept beside its own, and nobody is told of it (`on_keep`). States of windows that begin
        before the history's own are of no more use and dropped.
        """
        own_start = start if own_start is None else own_start
        for _, tier in self._tiers:
            tier.drop_before(history.user, own_start)
        self._keep(history, Entry(self.key(history, start, len(history)), state))
        if history.generation in self._tombstones:
            return
        if self._demote is not None:
            self._demote(history, start, state)
        if self._on_keep is not None and start == own_start:
            self._on_keep(history, start, state)

    def delete(self, user: bytes) -> None:
        """Erase the user's states from every tier."""
        if self._on_delete is not None:
            self._on_delete(user)
        for _, tier in self._tiers:
            tier.remove(user)

    def clear(self) -> None:
        """Erase every state from every tier."""
        if self._on_delete is not None:
            self._on_delete(None)
        for _, tier in self._tiers:
            tier.clear()

    @property
    def num_bytes(self) -> int:
        """Bytes held by all tiers."""
        return sum(tier.num_bytes for _, tier in self._tiers)

    def key(self, history: History, start: int, stop: int) -> StateKey:
        """The key of the state of history[start:stop]."""
        return state_key(self._fingerprint, history, start, stop)

    def _is_ancestor(self, key: StateKey, history: History, start: int) -> bool:
        return is_ancestor(key, self._fingerprint, history, start)

    def _brought(self, entry: Entry[S]) -> Entry[S] | None:
        """As it is in the first tier; None if there is no room."""
        if self._bring is None:
            return entry
        try:
            return Entry(entry.key, self._bring(entry.state))
        except Overloaded:
            return None

    def _keep(self, history: History, entry: Entry[S]) -> None:
        if history.generation in self._tombstones:
            return
        left = [entry]
        for _, tier in self._tiers if self._bring is None else self._tiers[:1]:
            left = [evicted for arriving in left for evicted in tier.put(arriving)]


def state_key(fingerprint: str, history: History, start: int, stop: int) -> StateKey:
    """The key of the state of history[start:stop]."""
    return StateKey(fingerprint, history.user, start, stop, history.link(stop))


def is_ancestor(key: StateKey, fingerprint: str, history: History, start: int) -> bool:
    """Whether a state with this key is one of a prefix of history[start:]."""
    return start <= key.stop <= len(history) and key == state_key(fingerprint, history, start, key.stop)
