"""Histories that nobody uses at the moment, packed, in the order in which they were last used.

Many small dicts rather than one: a dict that grows copies itself, and one of millions of users would hold up the event
loop for a second. A dict keeps the order of insertion, so the first of each is its oldest, and a heap over the first
ones gives the oldest of all.
"""

import heapq
import struct
from collections.abc import Iterator

from mfalcon.history.history import History
from mfalcon.history.packed import pack, unpack

NUM_SHARDS = 1_024
_STAMP = struct.Struct("<d")
_USER_BYTES = 136
"""Of the dict's entry, the key's and the value's objects, and what the allocator rounds up: measured (docs/LOG.md)."""


class IdleHistories:
    """Packed histories by user id. num_bytes: of memory that they take."""

    def __init__(self) -> None:
        self._shards: list[dict[str, bytes]] = [{} for _ in range(NUM_SHARDS)]
        self._heap: list[tuple[float, int]] = []
        self._in_heap = [False] * NUM_SHARDS
        self._num = 0
        self.num_bytes = 0

    def __len__(self) -> int:
        return self._num

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._shard(user_id)

    def __iter__(self) -> Iterator[str]:
        """Every user id; those who come or go meanwhile may be missing."""
        for shard in self._shards:
            yield from tuple(shard)

    def put(self, history: History, used: float) -> None:
        """Keep a history. used: when it was last used, not before any that was put earlier."""
        number = hash(history.user_id) % NUM_SHARDS
        packed = _STAMP.pack(used) + pack(history)
        self.drop(history.user_id)
        self._shards[number][history.user_id] = packed
        self._num += 1
        self.num_bytes += _size(history.user_id, packed)
        if not self._in_heap[number]:
            self._in_heap[number] = True
            heapq.heappush(self._heap, (used, number))

    def peek(self, user_id: str) -> History | None:
        """A history, which stays as old as it is."""
        packed = self._shard(user_id).get(user_id)
        return None if packed is None else unpack(user_id, packed[_STAMP.size :])

    def take(self, user_id: str) -> History | None:
        """A history, which is no longer kept here."""
        packed = self.drop(user_id)
        return None if packed is None else unpack(user_id, packed[_STAMP.size :])

    def drop(self, user_id: str) -> bytes | None:
        """Keep a history no longer; returns what was kept."""
        packed = self._shard(user_id).pop(user_id, None)
        if packed is not None:
            self._num -= 1
            self.num_bytes -= _size(user_id, packed)
        return packed

    def oldest(self) -> tuple[str, float] | None:
        """Who was not used for longest, and when that was."""
        while self._heap:
            stamp, number = self._heap[0]
            shard = self._shards[number]
            user_id = next(iter(shard), None)
            if user_id is None:
                heapq.heappop(self._heap)
                self._in_heap[number] = False
                continue
            (used,) = _STAMP.unpack_from(shard[user_id])
            if used == stamp:
                return user_id, used
            heapq.heapreplace(self._heap, (used, number))
        return None

    def _shard(self, user_id: str) -> dict[str, bytes]:
        return self._shards[hash(user_id) % NUM_SHARDS]


def _size(user_id: str, packed: bytes) -> int:
    return len(packed) + len(user_id) + _USER_BYTES
