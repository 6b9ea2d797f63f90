"""The host tier: one KV state per user under a byte budget, least recently used out first. No torch: a state is
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
        self._entries: OrderedDict[bytes, Entry[S]] = OrderedDict()
        self.num_bytes = 0
        self.num_evicted = 0

    def get(self, user: bytes) -> Entry[S] | None:
        """The user's newest state, marked as used."""
        with self._lock:
            entry = self._entries.get(user)
            if entry is not None:
                self._entries.move_to_end(user)
            return entry

    def peek(self, user: bytes) -> StateKey | None:
        """What the user's state was made from, if there is one now."""
        entry = self._entries.get(user)
        return entry.key if entry is not None else None

    def put(self, entry: Entry[S]) -> list[Entry[S]]:
        """Keep a state in place of the user's former one; returns what had to go for it.

        A state larger than the whole budget has to go itself.
        """
        with self._lock:
            user = entry.key.user
            self.remove(user)
            self._entries[user] = entry
            self.num_bytes += entry.state.num_bytes
            evicted = []
            if entry.state.num_bytes > self._budget:
                self.remove(user)
                evicted.append(entry)
            while self.num_bytes > self._budget:
                evicted.append(self._drop(next(iter(self._entries))))
            self.num_evicted += len(evicted)
            return evicted

    def make_room(self, is_held: Callable[[bytes], bool] = lambda _: False) -> bool:
        """Drop the least recently used state that nobody has in flight; False if there is none.

        is_held: whether somebody else holds a user's state, so that dropping it here would free nothing.
        """
        with self._lock:
            users = (user for user, entry in self._entries.items() if not entry.state.pins and not is_held(user))
            user = next(users, None)
            if user is None:
                return False
            self._drop(user)
            self.num_evicted += 1
            return True

    def remove(self, user: bytes) -> None:
        """Drop the user's state, if there is one."""
        with self._lock:
            if user in self._entries:
                self._drop(user)

    def clear(self) -> None:
        """Drop every state."""
        with self._lock:
            self._entries.clear()
            self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def _drop(self, user: bytes) -> Entry[S]:
        entry = self._entries.pop(user)
        self.num_bytes -= entry.state.num_bytes
        return entry
