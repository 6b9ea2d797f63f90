"""What every event log does, wherever it keeps the events: `local_log.py`, `file_log.py`, `redis_log.py`."""

from typing import Protocol

from mfalcon.history.history import Reading
from mfalcon.types import Append, Appended


class EventLog(Protocol):
    """The truth: every user's acknowledged events. Owned by the event loop."""

    async def read(self, user_id: str, timeout_s: float) -> Reading:
        """The user's history. Raises StorageUnavailable when it cannot be read, DamagedLog when it is none."""
        ...

    async def append(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """Acknowledge all events or none. Raises HistoryMismatch, InvalidInput, Overloaded, StorageUnavailable,
        DamagedLog and DeadlineExceeded.
        """
        ...

    async def delete(self, user_id: str, deadline: float | None) -> bytes:
        """Delete the user's events; returns the generation that ended. Raises StorageUnavailable."""
        ...
