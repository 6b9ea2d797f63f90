"""The host tier: one KV state per user under a byte budget, least recently used out first. No torch: a state is
anything with a size.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mfalcon.state.key import StateKey


class Sized(Protocol):
    """A value that knows its size in bytes."""

    @property
    def num_bytes(self) -> int:
        """Bytes that the value keeps alive."""
        ...


S = TypeVar("S", bound=Sized)


@dataclass(frozen=True, slots=True)
class Entry(Generic[S]):
    """A state and what it was made from."""

    key: StateKey
    state: S


class HostTier(Generic[S]):
    """LRU by bytes. Owned by one thread."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._entries: OrderedDict[str, Entry[S]] = OrderedDict()
        self.num_bytes = 0
        self.num_evicted = 0

    def get(self, user_id: str) -> Entry[S] | None:
        """The user's newest state, marked as used."""
        entry = self._entries.get(user_id)
        if entry is not None:
            self._entries.move_to_end(user_id)
        return entry

    def put(self, key: StateKey, state: S) -> None:
        """Keep a state in place of the user's former one; evict others until the budget holds.

        A state larger than the whole budget is not kept.
        """
        self.remove(key.user_id)
        if state.num_bytes > self._budget:
            self.num_evicted += 1
            return
        self._entries[key.user_id] = Entry(key, state)
        self.num_bytes += state.num_bytes
        while self.num_bytes > self._budget:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.state.num_bytes
            self.num_evicted += 1

    def remove(self, user_id: str) -> None:
        """Drop the user's state, if there is one."""
        entry = self._entries.pop(user_id, None)
        if entry is not None:
            self.num_bytes -= entry.state.num_bytes

    def __len__(self) -> int:
        return len(self._entries)
