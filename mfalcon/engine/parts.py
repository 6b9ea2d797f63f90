"""Scores of a request that is still computed, told as they come: each candidate's once, in their order, and all of them
of one model, item table and history.
"""

from mfalcon.engine.progress import Progress
from mfalcon.errors import Superseded
from mfalcon.types import RankPart, TellPart


class Parts:
    """Those of one request. They belong to the thread that works on it."""

    def __init__(self, tell: TellPart) -> None:
        """tell: is called with each part, on that thread."""
        self._tell = tell
        self._told_of: object = None
        self.num_told = 0
        self.has_ended = False
        """Nothing more is told before the answer, which has all that is left."""

    def check(self, work: Progress) -> None:
        """Raise Superseded where a request begins again with what its first scores, which were told, are not of."""
        if self.num_told and self._told_of != _made_with(work):
            raise self.superseded("the model or its items were exchanged")

    def superseded(self, why: str) -> Superseded:
        """Why the rest will not be told."""
        return Superseded(f"{why} after {self.num_told} scores were told; ask again")

    def add(self, part: RankPart, work: Progress) -> None:
        """Tell the next scores."""
        self._told_of = _made_with(work)
        self.num_told += len(part.scores)
        self._tell(part)


def _made_with(work: Progress) -> object:
    return work.owner, work.items.name, work.graph_version
