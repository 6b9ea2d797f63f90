"""What an engine must know of captures: it notes what each request read, and offers what was answered.

Only what writes and reads the files needs a library for their encryption.
"""

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from mfalcon.counters.sets import Counted
from mfalcon.history.deletions import Deletion
from mfalcon.history.history import History
from mfalcon.types import ModelInfo, RankRequest, RankResult


@dataclass(slots=True, eq=False)
class Seen:
    """What is noted of one request while it is answered. began: how many had begun before. user: hash.
    history, counted: that the model read; of an ensemble, that its first member here read.
    """

    began: int
    user: bytes
    history: History | None = None
    counted: Counted = field(default_factory=Counted)

    def note(self, history: History, counted: Counted) -> None:
        """A model reads this for the request."""
        if self.history is None:
            self.history, self.counted = history, counted


class Captures(Protocol):
    """Where requests are captured; its methods are the event loop's."""

    def start(self) -> None:
        """Write from now on."""
        ...

    def begin(self, user: bytes) -> Seen | None:
        """A request begins; None if its user is not in the sample. user: hash."""
        ...

    def offer(self, seen: Seen, info: ModelInfo, request: RankRequest, result: RankResult) -> None:
        """A request has been answered. info: of the model that answered, or of its successor."""
        ...

    async def delete(self, user: bytes, deadline: float | None) -> None:
        """Have what was captured of a user until now unreadable. Raises StorageUnavailable where the disk did not say
        so in time (`time.monotonic()`).
        """
        ...

    def delete_soon(self, user: bytes) -> "Future[None]":
        """The same, beside: the future says when, or raises OSError."""
        ...

    def delete_missed(self, deletions: Iterable[Deletion]) -> None:
        """The same of users whom others deleted, perhaps while this server did not hear of it."""
        ...

    async def close(self) -> None:
        """Write what is queued, for some seconds, and end."""
        ...
