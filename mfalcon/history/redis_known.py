"""What a process knows of a user's log in Redis."""

import time
from dataclasses import dataclass

from mfalcon.history.history import History, no_history
from mfalcon.history.redis_header import NO_HEADER, Header


@dataclass(frozen=True, slots=True)
class Known:
    """A verified history and the header that it has in Redis: a tombstone or nothing for one without events."""

    history: History
    header: Header

    def as_arguments(self) -> tuple[bytes, bytes, int]:
        """As the scripts take it: header, generation and length."""
        return self.header.raw, self.history.generation, len(self.history)


def nothing_known(user_id: str) -> Known:
    """Of a user whom nobody asked for."""
    return Known(no_history(user_id), NO_HEADER)


def clock_after(before: int) -> int:
    """The clock of the next header, see `Header`."""
    return max(before + 1, time.time_ns() // 10**6)
