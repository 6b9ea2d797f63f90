"""A user's events at one moment, and how much of them a log keeps. Immutable: an append makes a longer history."""

from dataclasses import dataclass, replace

import numpy as np

from mfalcon.errors import InvalidInput
from mfalcon.history.chain import CHAIN_BLOCK, LINK_BYTES, block_links, link_after, num_equal, user_hash
from mfalcon.types import Events, no_events

_OBJECT_BYTES = 475


@dataclass(frozen=True, slots=True)
class History:
    """A user's history, whose events before `base` are trimmed, with its chained hash at any length from `base` on.

    base: a multiple of CHAIN_BLOCK. events: [n - base]. links: the links at base, base + CHAIN_BLOCK, ...
    generation: names one life of the user's log, from its first event to its deletion; empty for an empty history.
    """

    user_id: str
    user: bytes
    generation: bytes
    base: int
    events: Events
    links: bytes

    def __len__(self) -> int:
        """Events acknowledged, trimmed ones included."""
        return self.base + len(self.events)

    def since(self, first: int) -> Events:
        """Events from position `first` on; first >= base."""
        assert first >= self.base
        return self.events[first - self.base :]

    def link(self, length: int) -> bytes:
        """Chained hash of the first `length` events, base <= length <= n."""
        assert self.base <= length <= len(self)
        block, rest = divmod(length - self.base, CHAIN_BLOCK)
        link = self.links[block * LINK_BYTES : (block + 1) * LINK_BYTES]
        return link_after(link, self.events[block * CHAIN_BLOCK :][:rest]) if rest else link

    @property
    def version(self) -> bytes:
        """The chained hash of all of it: two histories of one user with the same version hold the same events."""
        return self.link(len(self))

    @property
    def num_bytes(self) -> int:
        """Memory of the events and links, and of the objects around them."""
        return self.events.nbytes + len(self.links) + _OBJECT_BYTES

    def extended(self, events: Events) -> "History":
        """This history and then these events."""
        hashed = len(self.events) // CHAIN_BLOCK * CHAIN_BLOCK
        longer = np.concatenate([self.events, events])
        links = self.links + block_links(self.links[-LINK_BYTES:], longer[hashed:])
        return replace(self, events=longer, links=links)

    def merged(self, events: Events) -> "History":
        """This history with events, in time order, each behind all those that are as old or older; both sorted."""
        at = np.searchsorted(self.events["time_ms"], events["time_ms"], side="right")
        if not len(events) or at[0] == len(self.events):
            return self.extended(events)
        kept = int(at[0]) // CHAIN_BLOCK
        links = self.links[: (kept + 1) * LINK_BYTES]
        merged = np.insert(self.events, at, events)
        links += block_links(links[-LINK_BYTES:], merged[kept * CHAIN_BLOCK :])
        return replace(self, events=merged, links=links)

    def shared(self, other: "History") -> int:
        """Events that two histories of one user surely begin with alike: all of the shorter one, or a multiple of
        CHAIN_BLOCK from the later base on; 0 where not even what was trimmed is known to be alike.
        """
        base, shorter = max(self.base, other.base), min(len(self), len(other))
        if base > shorter:
            return 0
        if self.link(shorter) == other.link(shorter):
            return shorter
        ours, theirs = (one.links[(base - one.base) // CHAIN_BLOCK * LINK_BYTES :] for one in (self, other))
        num = num_equal(ours, theirs)
        return base + (num - 1) * CHAIN_BLOCK if num else 0

    def until(self, length: int) -> "History":
        """The history as it was with `length` events, base <= length <= n."""
        assert self.base <= length <= len(self)
        cut = length - self.base
        return replace(self, events=self.events[:cut], links=self.links[: (cut // CHAIN_BLOCK + 1) * LINK_BYTES])

    def trimmed(self, base: int) -> "History":
        """Without the events before `base`, a multiple of CHAIN_BLOCK from the present base to the length."""
        cut = base - self.base
        links = self.links[cut // CHAIN_BLOCK * LINK_BYTES :]
        return replace(self, base=base, events=self.events[cut:].copy(), links=links)


def no_history(user_id: str, generation: bytes = b"") -> History:
    """The history of a user without events."""
    user = user_hash(user_id)
    return History(user_id, user, generation, 0, no_events(), user)


@dataclass(frozen=True, slots=True)
class Reading:
    """A history as it was at some moment since the call began; `stale` if the log could not be asked."""

    history: History
    stale: bool


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of a history a log keeps: a setting of the server, never of a model, so that the next one may look
    further back.

    max_events: the newest events that are always kept. slack: events beyond them before a log is cut, which rewrites
    it.
    """

    max_events: int
    slack: int

    def keep(self, history: History) -> History:
        """The history, cut if it is time."""
        needed = max(0, len(history) - self.max_events) // CHAIN_BLOCK * CHAIN_BLOCK
        return history.trimmed(needed) if needed - history.base >= max(self.slack, 1) else history


def check_order(history: History, events: Events, field: str) -> None:
    """Raise InvalidInput if the first new event is older than the last one of the history."""
    if len(history.events) and len(events) and events["time_ms"][0] < history.events["time_ms"][-1]:
        last = int(history.events["time_ms"][-1])
        raise InvalidInput(
            f"{field}[0].time_ms", int(events["time_ms"][0]), f"at least {last}, the time of the last stored event"
        )
