"""The embedded event log: every user's acknowledged events, in this process's memory.

Lives on the event loop: each call is atomic because nothing in it awaits.
"""

import itertools
from collections.abc import Iterable
from dataclasses import replace

from mfalcon.history.appending import appended
from mfalcon.history.history import History, Reading, Retention, no_history
from mfalcon.types import Append, Appended


class LocalLog:
    """All users' histories."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._histories: dict[str, History] = {}
        self._generations = itertools.count(1)

    async def read(self, user_id: str, timeout_s: float) -> Reading:
        """The user's history now; empty for a user that is not known."""
        return Reading(self._histories.get(user_id) or no_history(user_id), stale=False)

    async def append(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """Append all events or none. Raises HistoryMismatch if the history is not the expected one, InvalidInput if an
        event is older than the log.
        """
        after, told = appended(self._histories.get(user_id) or no_history(user_id), append)
        if not after.generation:
            after = replace(after, generation=next(self._generations).to_bytes(8, "little"))
        self._histories[user_id] = self._retention.keep(after)
        return told

    async def delete(self, user_id: str, deadline: float | None) -> bytes:
        """Forget the user's events; returns the generation that ended, empty if there was none."""
        history = self._histories.pop(user_id, None)
        return history.generation if history else b""

    def users(self) -> Iterable[str]:
        """Everybody who has a history."""
        return self._histories.keys()

    def __len__(self) -> int:
        return len(self._histories)
