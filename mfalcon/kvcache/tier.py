"""A tier in this process: KV states by user and window under a byte budget, the least recently used out first."""

import threading
import time
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass, field

from mfalcon.history.chain import CHAIN_BLOCK, LINK_BYTES, num_equal
from mfalcon.history.history import History
from mfalcon.kvcache.item_rows import NO_TAGS, first
from mfalcon.kvcache.state import KVState


@dataclass(frozen=True, slots=True)
class StateKey:
    """What a KV state was made from: the events [start, stop) of a history that hashes to `link` at `stop`.

    fingerprint names the checkpoint and the dtype; the hash covers the user and every event before `stop`. base, links:
    of that history, by which another one is seen to begin like it; they make no two keys different. tags: of the item
    rows that it was made with, see `kvcache/item_rows.py`. made_at: a time.monotonic() since when it holds these.
    """

    fingerprint: str
    user: bytes
    start: int
    stop: int
    link: bytes
    tags: bytes = NO_TAGS
    made_at: float = field(default=0.0, compare=False, repr=False)
    base: int = field(default=0, compare=False, repr=False)
    links: bytes = field(default=b"", compare=False, repr=False)

    def is_ancestor(self, fingerprint: str, history: History, start: int) -> bool:
        """Whether a state with this key is one of a prefix of history[start:]."""
        return start <= self.stop <= len(history) and self == state_key(
            fingerprint, history, start, self.stop, self.tags
        )

    def shared(self, fingerprint: str, history: History, start: int) -> int:
        """Where what the state was made from and history[start:] surely part: at `stop` if it is an ancestor, else at a
        multiple of CHAIN_BLOCK, or at `start`. After an insert that is the block of the inserted event.
        """
        if self.is_ancestor(fingerprint, history, start):
            return self.stop
        if (self.fingerprint, self.user, self.start) != (fingerprint, history.user, start):
            return start
        base = max(self.base, history.base)
        ours, theirs = self.links[_link_at(base - self.base) :], history.links[_link_at(base - history.base) :]
        alike = base + (num_equal(ours, theirs) - 1) * CHAIN_BLOCK
        return max(start, min(alike, self.stop // CHAIN_BLOCK * CHAIN_BLOCK))


def state_key(
    fingerprint: str, history: History, start: int, stop: int, tags: bytes = NO_TAGS, made_at: float = 0.0
) -> StateKey:
    """The key of the state of history[start:stop]. tags: of the item rows of history[start:]."""
    made_of = first(tags, stop - start) if tags else NO_TAGS
    link, base, links = history.link(stop), history.base, history.links
    return StateKey(fingerprint, history.user, start, stop, link, made_of, made_at, base, links)


def _link_at(num_events: int) -> int:
    return num_events // CHAIN_BLOCK * LINK_BYTES


@dataclass(frozen=True, slots=True)
class Entry:
    """A state and what it was made from."""

    key: StateKey
    state: KVState

    def until(self, fingerprint: str, history: History, stop: int) -> "Entry":
        """The state of history[start:stop], which `StateKey.shared` has found to be a part of this one."""
        if stop == self.key.stop:
            return self
        start = self.key.start
        num_tokens = self.state.num_tokens * (stop - start) // (self.key.stop - start)
        key = state_key(fingerprint, history, start, stop, self.key.tags, self.key.made_at)
        return Entry(key, self.state.first(num_tokens))


class LruTier:
    """LRU by bytes. Any thread may call any method."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._lock = threading.RLock()
        self._entries: OrderedDict[tuple[bytes, int], Entry] = OrderedDict()
        self._used_at: dict[tuple[bytes, int], float] = {}
        self._starts: dict[bytes, set[int]] = {}
        self._on_page: dict[int, set[tuple[bytes, int]]] = {}
        """Whose small pages lie in a page."""
        self.num_bytes = 0
        self.num_evicted = 0

    def get(self, user: bytes, start: int) -> Entry | None:
        """The user's state of the window that begins at `start`, marked as used."""
        with self._lock:
            entry = self._entries.get((user, start))
            if entry is not None:
                self._entries.move_to_end((user, start))
                self._used_at[user, start] = time.monotonic()
            return entry

    def peek(self, user: bytes, start: int) -> StateKey | None:
        """What that state was made from, if there is one now."""
        entry = self._entries.get((user, start))
        return entry.key if entry is not None else None

    def hottest(self) -> list[StateKey]:
        """What is here, the last used first. Keys alone: whoever goes through them keeps no memory."""
        with self._lock:
            return [entry.key for entry in reversed(self._entries.values())]

    def at(self, key: StateKey) -> Entry | None:
        """The state with this key, if it is still here; not marked as used."""
        entry = self._entries.get((key.user, key.start))
        return entry if entry is not None and entry.key == key else None

    def sizes(self, user: bytes) -> list[tuple[StateKey, int, int]]:
        """The user's states here, with their tokens and bytes; none is marked as used, nor kept by who asks."""
        with self._lock:
            entries = [self._entries[user, start] for start in sorted(self._starts.get(user, ()))]
            return [(entry.key, entry.state.num_tokens, entry.state.num_bytes) for entry in entries]

    def holds(self, user: bytes) -> bool:
        """Whether there is a state of the user, of any window."""
        return user in self._starts

    def put(self, entry: Entry) -> None:
        """Keep a state in place of the user's former one of that window, and evict others for it.

        A state larger than the whole budget is not kept.
        """
        with self._lock:
            place = entry.key.user, entry.key.start
            if place in self._entries:
                self._drop(place)
            if entry.state.num_bytes > self._budget:
                self.num_evicted += 1
                return
            self._entries[place] = entry
            self._used_at[place] = time.monotonic()
            self._starts.setdefault(entry.key.user, set()).add(entry.key.start)
            for page in entry.state.run.cut_pages:
                self._on_page.setdefault(page, set()).add(place)
            self.num_bytes += entry.state.num_bytes
            while self.num_bytes > self._budget:
                self._evict(next(iter(self._entries)))

    def make_room(self, whole: bool = False, held: Container[tuple[bytes, int]] = ()) -> bool:
        """Evict the least recently used state that nobody has in flight; False if there is none.

        whole: whether a whole page is wanted. Then those go too whose small pages lie in one page with its own, where
        that frees the page: at most three, and not the hundreds that it would take for all parts of some page to have
        been the least recently used. held: users and windows whose states somebody else holds too, so that evicting
        them here would free nothing.
        """
        with self._lock:
            free = (place for place, entry in self._entries.items() if not entry.state.pins and place not in held)
            place = next(free, None)
            if place is None:
                return False
            pages = self._entries[place].state.run.cut_pages if whole else ()
            self._evict(place)
            for _, neighbours in sorted((len(self._on_page.get(page, ())), page) for page in pages):
                others = tuple(self._on_page.get(neighbours, ()))
                if not any(self._entries[other].state.pins or other in held for other in others):
                    for other in others:
                        self._evict(other)
                    break
            return True

    def delete(self, user: bytes | None) -> None:
        """Drop the user's states of every window, or everybody's."""
        with self._lock:
            for one in list(self._starts) if user is None else [user]:
                for start in tuple(self._starts.get(one, ())):
                    self._drop((one, start))

    def delete_before(self, user: bytes, start: int) -> None:
        """Drop the user's states of windows that begin before `start`."""
        if user not in self._starts:
            return
        with self._lock:
            for earlier in [other for other in self._starts.get(user, ()) if other < start]:
                self._drop((user, earlier))

    @property
    def oldest_s(self) -> float:
        """Seconds since the state was used that is the next to go; 0 without states."""
        with self._lock:
            place = next(iter(self._entries), None)
            return 0.0 if place is None else time.monotonic() - self._used_at[place]

    def __len__(self) -> int:
        return len(self._entries)

    def _evict(self, place: tuple[bytes, int]) -> None:
        self._drop(place)
        self.num_evicted += 1

    def _drop(self, place: tuple[bytes, int]) -> None:
        user, start = place
        entry = self._entries.pop(place)
        del self._used_at[place]
        self._starts[user].discard(start)
        if not self._starts[user]:
            del self._starts[user]
        for page in entry.state.run.cut_pages:
            self._on_page[page].discard(place)
            if not self._on_page[page]:
                del self._on_page[page]
        self.num_bytes -= entry.state.num_bytes
