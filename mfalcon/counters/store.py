"""What every store of item counters does, wherever the numbers are: `local.py`, `redis_counters.py`."""

from typing import Protocol

from mfalcon.counters.standing import Insertion
from mfalcon.features.counters import LikeRule
from mfalcon.history.history import History
from mfalcon.types import Ids


class ItemCounters(Protocol):
    """The counters of all items under one meaning of a like: what the logs say, from the first event that was counted.

    A user's events are counted once, in order, from where the store's own record of the user ends. Events that were put
    between counted ones are counted by whoever put them there (`inserted`). Where that did not come to pass the record
    is of no history any more, which its link shows, and all of the history is counted anew; if its first events have
    been trimmed they cannot be, and as many of the last ones are counted as are missing. Lives on the event loop.
    """

    like: LikeRule

    @property
    def version(self) -> int:
        """Grows by one with every change."""
        ...

    @property
    def is_stale(self) -> bool:
        """Whether acknowledged events may be missing."""
        ...

    def read(self, item_ids: Ids) -> Ids:
        """int64 [n, 3] as of `version`: events, likes and value of each item. Asks nobody."""
        ...

    def start(self) -> None:
        """Begin what runs beside. On the event loop."""
        ...

    def notice(self, history: History) -> None:
        """Somebody has read a user's log: what was not counted of it is, soon. Asks nobody."""
        ...

    async def catch_up(self, history: History) -> None:
        """Count what a user's log has and was not counted. What fails is counted at the next contact."""
        ...

    async def inserted(self, insertion: Insertion) -> None:
        """Count an append that put events between older ones, if all before it is counted; else `catch_up` finds that
        some are missing.
        """
        ...

    def missed(self, user_id: str) -> None:
        """A user's log has grown and could not be read: count it as soon as it can be. Stale until then."""
        ...

    async def forget(self, user: bytes, generation: bytes) -> None:
        """Take out again all that was counted of a user whose log has ended. generation: the life that ended, empty if
        it is not known. Raises StorageUnavailable.
        """
        ...

    async def close(self) -> None:
        """End what runs beside."""
        ...
