"""The host tier: KV states by user and window under a byte budget, least recently used out first. No torch: a state is
anything with a size.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class StateKey:
    """What a KV state was made from: the events [start, stop) of a history that hashes to `link` at `stop`.

    fingerprint names the checkpoint and the dtype; the hash covers the user and every event before `stop`.
    """

    fingerprint: str
    user: bytes
    start: int
    stop: int
    link: bytes


class Sized(Protocol):
    """A value that knows its size in bytes and whether it is in use."""

    @property
    def num_bytes(self) -> int:
        """Bytes that the value keeps alive."""
        ...

    @property
    def pins(self) -> int:
        """How many have it in flight: above 0 it is not dropped to make room."""
        ...


S = TypeVar("S", bound=Sized)


@dataclass(frozen=True, slots=True)
class Entry(Generic[S]):
    """A state and what it was made from."""

    key: StateKey
    state: S


class LruTier(Generic[S]):
    """LRU by bytes. Any thread may call any method."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._lock = threading.RLock()
        self._entries: OrderedDict[tuple[bytes, int], Entry[S]] = OrderedDict()
        self._starts: dict[bytes, set[int]] = {}
        self.num_bytes = 0
        self.num_evicted = 0

    def get(self, user: bytes, start: int) -> Entry[S] | None:
        """The user's state of the window that begins at `start`, marked as used."""
        with self._lock:
            entry = self._entries.get((user, start))
            if entry is not None:
                self._entries.move_to_end((user, start))
            return entry

    def peek(self, user: bytes, start: int) -> StateKey | None:
        """What that state was made from, if there is one now."""
        entry = self._entries.get((user, start))
        return entry.key if entry is not None else None

    def holds(self, user: bytes) -> bool:
        """Whether there is a state of the user, of any window."""
        return user in self._starts

    def put(self, entry: Entry[S]) -> list[Entry[S]]:
        """Keep a state in place of the user's former one of that window; returns what had to go for it.

        A state larger than the whole budget has to go itself.
        """
        with self._lock:
            place = entry.key.user, entry.key.start
            if place in self._entries:
                self._drop(place)
            self._entries[place] = entry
            self._starts.setdefault(entry.key.user, set()).add(entry.key.start)
            self.num_bytes += entry.state.num_bytes
            evicted = []
            if entry.state.num_bytes > self._budget:
                evicted.append(self._drop(place))
            while self.num_bytes > self._budget:
                evicted.append(self._drop(next(iter(self._entries))))
            self.num_evicted += len(evicted)
            return evicted

    def make_room(self, is_held: Callable[[bytes, int], bool] = lambda user, start: False) -> bool:
        """Drop the least recently used state that nobody has in flight; False if there is none.

        is_held: whether somebody else holds a user's state of the window that begins there, so that dropping it here
        would free nothing.
        """
        with self._lock:
            free = (place for place, entry in self._entries.items() if not entry.state.pins and not is_held(*place))
            place = next(free, None)
            if place is None:
                return False
            self._drop(place)
            self.num_evicted += 1
            return True

    def remove(self, user: bytes) -> None:
        """Drop the user's states of every window."""
        with self._lock:
            for start in tuple(self._starts.get(user, ())):
                self._drop((user, start))

    def drop_before(self, user: bytes, start: int) -> None:
        """Drop the user's states of windows that begin before `start`."""
        if user not in self._starts:
            return
        with self._lock:
            for earlier in [other for other in self._starts.get(user, ()) if other < start]:
                self._drop((user, earlier))

    def clear(self) -> None:
        """Drop every state."""
        with self._lock:
            self._entries.clear()
            self._starts.clear()
            self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def _drop(self, place: tuple[bytes, int]) -> Entry[S]:
        user, start = place
        entry = self._entries.pop(place)
        self._starts[user].discard(start)
        if not self._starts[user]:
            del self._starts[user]
        self.num_bytes -= entry.state.num_bytes
        return entry
