"""What a KV state was made of besides its events: the item rows that these were encoded with, where rows may change
while a model serves.

A row that was patched has a tag, a hash of what it is, and 0 as long as it is the checkpoint's. The tags of a state's
events are a part of its key, in memory and in Redis: whoever has other rows finds that it is not his.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mfalcon.history.chain import LINK_BYTES
from mfalcon.history.history import History
from mfalcon.types import ItemsPolicy

TAG_BYTES: Final = 8
NO_TAGS: Final = b""
"""Of events whose rows are all those of the checkpoint."""


@dataclass(frozen=True, slots=True)
class RowPolicy:
    """keep_s: seconds after which a state is no longer used for its events whose rows have changed; of `bounded`.
    clock: that tells how old states are.
    """

    name: ItemsPolicy = "exact"
    keep_s: float = 0.0
    clock: Callable[[], float] = field(default=time.monotonic, compare=False)

    def reach(self, made_of: bytes, made_at: float, now_tags: bytes, num_events: int) -> int:
        """How many of the first events of a state may be used by who has these tags of them.

        made_of, made_at: of the state, see `StateKey`.
        """
        if self.name == "frozen" or (self.name == "bounded" and self.clock() - made_at <= self.keep_s):
            return num_events
        return num_alike(made_of, now_tags, num_events)


class ItemRows(Protocol):
    """The rows that a model has of its items now."""

    @property
    def policy(self) -> RowPolicy:
        """What becomes of states that were made of others."""
        ...

    def tags(self, history: History, start: int) -> bytes:
        """Of the items of history[start:]; any thread may ask."""
        ...


class FixedRows:
    """Those of a model whose rows never change."""

    policy: Final = RowPolicy()

    def tags(self, history: History, start: int) -> bytes:
        """See `ItemRows`."""
        return NO_TAGS


def packed(tags: NDArray[np.int64]) -> bytes:
    """Tags of events [num_events] as a key holds them."""
    return tags.tobytes() if tags.any() else NO_TAGS


def first(tags: bytes, num_events: int) -> bytes:
    """Those of the first events."""
    part = tags[: num_events * TAG_BYTES]
    return part if part.strip(b"\0") else NO_TAGS


def joined(made_of: bytes, num_events: int, now_tags: bytes) -> bytes:
    """Of a state whose first events have these tags, and all others those that they have now."""
    head, tail = made_of[: num_events * TAG_BYTES], now_tags[num_events * TAG_BYTES :]
    if not head and not tail:
        return NO_TAGS
    return first(head.ljust(num_events * TAG_BYTES, b"\0") + tail, num_events + len(tail) // TAG_BYTES)


def num_alike(ours: bytes, theirs: bytes, num_events: int) -> int:
    """How many of the first events have the same tags in both."""
    if ours == theirs:
        return num_events
    size = num_events * TAG_BYTES
    one, other = (np.frombuffer(tags[:size].ljust(size, b"\0"), dtype=np.int64) for tags in (ours, theirs))
    different = np.flatnonzero(one != other)
    return int(different[0]) if len(different) else num_events


def link_of(history: History, start: int, stop: int, tags: bytes) -> bytes:
    """What names history[start:stop] and the rows that it was encoded with: the chained hash of the history alone as
    long as all rows are the checkpoint's.
    """
    link, made_of = history.link(stop), first(tags, stop - start)
    return link if not made_of else hashlib.blake2b(link + made_of, digest_size=LINK_BYTES).digest()
