"""States by bytes, the least recently used out first: a replica's block pool, or Redis."""

from collections import OrderedDict
from typing import NamedTuple


class Held(NamedTuple):
    """The events of a history that a state covers, and the bytes that it takes."""

    start: int
    stop: int
    num_bytes: int


class Tier:
    """`mfalcon/kvcache/tier.py` by its numbers alone."""

    def __init__(self, budget_bytes: float) -> None:
        self._budget = budget_bytes
        self._states: OrderedDict[int, Held] = OrderedDict()
        self.num_bytes = 0
        self.num_evicted = 0

    def get(self, user: int, start: int) -> Held | None:
        """The user's state of the window that begins at `start`, marked as used."""
        held = self._states.get(user)
        if held is None or held.start != start:
            return None
        self._states.move_to_end(user)
        return held

    def put(self, user: int, held: Held) -> None:
        """Keep a state in place of the user's former one, and evict others for it. One larger than the whole budget is
        not kept.
        """
        former = self._states.pop(user, None)
        self.num_bytes -= former.num_bytes if former else 0
        if held.num_bytes > self._budget:
            self.num_evicted += 1
            return
        self._states[user] = held
        self.num_bytes += held.num_bytes
        while self.num_bytes > self._budget:
            _, oldest = self._states.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
            self.num_evicted += 1

    def clear(self) -> None:
        """Forget everything: the process has ended."""
        self._states.clear()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._states)
