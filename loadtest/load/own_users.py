"""Users of a load run: theirs is a name that nobody else has, and nothing of them is left when it ends."""

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from loadtest.load.target import Target
from mfalcon.errors import CallFailed

_AT_ONCE = 8
_PAUSE_S = 0.5
_GIVE_UP_S = 30.0
"""Longest time for all deletions at the end."""


class OwnUsers:
    """`async with OwnUsers(target) as users: ...` deletes them all, also after an error or a cancel."""

    def __init__(self, target: Target, give_up_s: float = _GIVE_UP_S) -> None:
        self._target = target
        self._give_up_s = give_up_s
        self._life = secrets.token_hex(4)
        self._number = 0
        self._there: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._give_up_s):
                while left := sorted(self._there):
                    for at in range(0, len(left), _AT_ONCE):
                        await asyncio.gather(*map(self.delete, left[at : at + _AT_ONCE]))
                    if self._there:
                        await asyncio.sleep(_PAUSE_S)

    @property
    def undeleted(self) -> tuple[str, ...]:
        """Users of whom something may be on the server."""
        return tuple(sorted(self._there))

    async def create(self, append_bodies: Sequence[bytes]) -> str:
        """A new user with a history. Raises CallFailed."""
        self._number += 1
        user_id = f"load-{self._life}-{self._number}"
        self._there.add(user_id)  # first: an append that fails may have been written
        for body in append_bodies:
            await self._target.append(user_id, body)
        return user_id

    async def delete(self, user_id: str) -> bool:
        """True if it is done; one who cannot be deleted now is deleted in the end."""
        try:
            await self._target.delete(user_id)
        except CallFailed:
            return False
        self._there.discard(user_id)
        return True
