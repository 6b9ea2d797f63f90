"""A move of all histories from one event log to another while the first one serves.

Passes over the source copy what differs, by compare-and-set, until a pass finds nothing. What was acknowledged before a
pass began is in the target when it ends, with the same generation and versions; so once nobody writes to the source any
more, one more pass makes the move whole.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from mfalcon.errors import DataError
from mfalcon.history.history import History

_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Head:
    """What tells whether a user's log has changed."""

    generation: bytes
    length: int
    link: bytes


class End(Protocol):
    """A log that is moved from or to. Its methods raise StorageUnavailable or DataError."""

    def heads(self) -> AsyncIterator[tuple[bytes, Head]]:
        """Every user's; who is there from the first to the last moment is among them."""
        ...

    async def read(self, user: bytes) -> History | None:
        """A user's history, verified; None if there is none. Raises DataError if it is damaged."""
        ...

    async def put(self, before: History | None, after: History) -> bool:
        """Exchange a user's history; False if the log holds another one by now."""
        ...

    async def delete(self, user: bytes, generation: bytes) -> bool:
        """End a life of a user's log; False if it has another one by now."""
        ...


@dataclass(slots=True)
class Pass:
    """What a pass has done. users: in the source. conflicts: users whose history in the target is none that came from
    the source; it was left as it is. damaged: in the source.
    """

    users: int = 0
    copied: int = 0
    deleted: int = 0
    conflicts: list[bytes] = field(default_factory=list)
    damaged: list[bytes] = field(default_factory=list)

    @property
    def is_quiet(self) -> bool:
        """Whether both logs were equal, but for the conflicts and what is damaged."""
        return not self.copied and not self.deleted


class Migration:
    """Passes from a source to a target. Remembers what it has copied, so that later passes read little.

    replace_others: whether another life of a user's log in the target gives way: one that was copied before its user
    was deleted and came again, or of which the source has trimmed all since, where the target is for this move alone.
    """

    def __init__(self, source: End, target: End, *, replace_others: bool = False) -> None:
        self._replace_others = replace_others
        self._source = source
        self._target = target
        self._copied: dict[bytes, Head] = {}
        self.seen: set[bytes] = set()
        """Users of the last pass."""

    async def run_pass(self) -> Pass:
        """Make the target what the source is."""
        told, seen, waiting = Pass(), set[bytes](), list[bytes]()
        async for user, head in self._source.heads():
            seen.add(user)
            told.users += 1
            if self._copied.get(user) != head:
                waiting.append(user)
            if len(waiting) >= _AT_ONCE:
                await self._copy_all(waiting, told)
        await self._copy_all(waiting, told)
        for user in self._copied.keys() - seen:
            if await self._source.read(user) is None:
                told.deleted += await self._target.delete(user, self._copied.pop(user).generation)
        self.seen = seen
        return told

    async def only_there(self) -> list[tuple[bytes, Head]]:
        """Users whom the target has and the last pass did not see."""
        return [(user, head) async for user, head in self._target.heads() if user not in self.seen]

    async def _copy_all(self, waiting: list[bytes], told: Pass) -> None:
        await asyncio.gather(*(self._copy(user, told) for user in waiting))
        waiting.clear()

    async def _copy(self, user: bytes, told: Pass) -> None:
        try:
            from_source = await self._source.read(user)
        except DataError:
            told.damaged.append(user)
            return
        if from_source is None:  # deleted meanwhile: the end of the pass sees to it
            return
        try:
            there = await self._target.read(user)
        except DataError:
            told.conflicts.append(user)
            return
        ours = self._copied.get(user)
        if there is not None and head_of(there) == head_of(from_source):
            self._copied[user] = head_of(from_source)
            return
        if there is not None and head_of(there) != ours and not _is_ancestor(there, from_source):
            # One that ends before the source's begins was trimmed away there: no hash tells whether it was the same.
            is_past = there.generation != from_source.generation or len(there) < from_source.base
            if not (self._replace_others and is_past and await self._target.delete(user, there.generation)):
                told.conflicts.append(user)
                return
            there = None
        if await self._target.put(there, from_source):
            self._copied[user] = head_of(from_source)
            told.copied += 1
        else:
            told.conflicts.append(user)


def head_of(history: History) -> Head:
    """What a pass compares."""
    return Head(history.generation, len(history), history.version)


def _is_ancestor(older: History, newer: History) -> bool:
    """Whether a history is what another one was before."""
    if older.generation != newer.generation or not newer.base <= len(older) <= len(newer):
        return False
    return newer.link(len(older)) == older.version
