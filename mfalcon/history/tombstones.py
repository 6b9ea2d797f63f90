"""Which lives of users' logs have ended: work that was under way when its user was deleted must keep nothing."""

from collections import OrderedDict


class Tombstones:
    """Generations of deleted logs, the newest `limit` of them; work older than that many deletions is long over.

    Any thread may ask or add: each call is one operation of a dict.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._generations: OrderedDict[bytes, None] = OrderedDict()

    def add(self, generation: bytes) -> None:
        """Remember the end of a log; an empty generation is no log."""
        if generation:
            self._generations[generation] = None
            if len(self._generations) > self._limit:
                self._generations.popitem(last=False)

    def __contains__(self, generation: bytes) -> bool:
        return generation in self._generations
