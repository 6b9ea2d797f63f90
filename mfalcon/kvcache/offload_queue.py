"""What waits for a slower tier: the newest state of each user's window, the oldest offer first, bounded by bytes.

Both stages of the offload take from one: the copies to host memory (`offload.py`) and the writes to Redis
(`write_behind.py`).
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from mfalcon.history.history import History
from mfalcon.kvcache.copy import Mark
from mfalcon.kvcache.item_rows import NO_TAGS
from mfalcon.kvcache.state import KVState


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """The state of history[start:]. mark: the moment from which on it stands in its device's memory, None if it does.

    is_own: whether that window is the history's own, and not one that recent events move to. tags, made_at: of the item
    rows that it was made with, see `StateKey`.
    """

    history: History
    start: int
    state: KVState
    mark: Mark | None = None
    is_own: bool = True
    tags: bytes = NO_TAGS
    made_at: float = 0.0

    @property
    def place(self) -> tuple[bytes, int]:
        """User and window."""
        return self.history.user, self.start


class OffloadQueue:
    """Any thread may call any method. Whoever takes from it may wait for `changed`, under which all of it happens.

    budget_bytes: of the states that wait, whose memory they keep.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.changed = threading.Condition()
        self._budget = budget_bytes
        self._waiting: OrderedDict[tuple[bytes, int], Offer] = OrderedDict()
        self._num_bytes = 0

    def put(self, offer: Offer) -> int:
        """Queue an offer in place of the former one of its user's window; returns how many had to go for it."""
        with self.changed:
            self._drop(offer.place)
            self._waiting[offer.place] = offer
            self._num_bytes += offer.state.num_bytes
            num_dropped = 0
            while self._num_bytes > self._budget:
                self._drop(next(iter(self._waiting)))
                num_dropped += 1
            self.changed.notify_all()
            return num_dropped

    def take(self, fits: Callable[[Offer], bool] = lambda _: True) -> Offer | None:
        """The oldest offer that fits, which waits no more."""
        with self.changed:
            place = next((place for place, offer in self._waiting.items() if fits(offer)), None)
            return None if place is None else self._drop(place)

    def delete(self, user: bytes | None) -> int:
        """Drop what waits for a user, or everything; returns how many that were."""
        with self.changed:
            places = [place for place in self._waiting if user is None or place[0] == user]
            for place in places:
                self._drop(place)
            return len(places)

    def __contains__(self, place: object) -> bool:
        return place in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def _drop(self, place: tuple[bytes, int]) -> Offer | None:
        offer = self._waiting.pop(place, None)
        if offer is not None:
            self._num_bytes -= offer.state.num_bytes
        return offer
