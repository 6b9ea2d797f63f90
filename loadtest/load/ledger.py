"""The ledger of a load: every request has a number, an intended time and, in the end, exactly one outcome."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

GRACE_S = 0.02
"""An answer that comes so much later than its deadline still counts as in time: the caller's own clock and loop."""


class Outcome(Enum):
    """What became of a request, as its client saw it.

    right: scores, all of them finite, and equal to the oracle's where there is one. error: a status in their place.
    late: either of the two, more than `GRACE_S` after the deadline. never: nothing, until the client gave up.
    wrong: scores that are too few, not finite or others than the oracle's. cancelled: by its client, as planned.
    unsent: the client itself came too late to send it. open: nothing is known, which must be no request's end.
    """

    OPEN = "open"
    RIGHT = "right"
    ERROR = "error"
    LATE = "late"
    NEVER = "never"
    WRONG = "wrong"
    CANCELLED = "cancelled"
    UNSENT = "unsent"


@dataclass(slots=True)
class Entry:
    """One request. Times in seconds of the loop's clock; sent, ended: None if it was not. code: of an error."""

    intended: float
    sent: float | None = None
    ended: float | None = None
    outcome: Outcome = Outcome.OPEN
    code: str = ""

    def in_time(self, within_s: float) -> bool:
        """Right, and at most so long after its intended time."""
        return self.outcome is Outcome.RIGHT and self.ended is not None and self.ended - self.intended <= within_s


class Ledger:
    """Requests of one class, numbered from 0.

    counts: of them by outcome. num_checked, worst_gap: answers held against an oracle, and the worst difference of
    their scores. num_encoded: answers for which some of the history had to be encoded.
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self.counts: Counter[Outcome] = Counter()
        self.settled_twice = 0
        self.num_checked = 0
        self.num_encoded = 0
        self.worst_gap = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def issue(self, intended: float) -> int:
        """A new request, and its number."""
        self._entries.append(Entry(intended))
        self.counts[Outcome.OPEN] += 1
        return len(self._entries) - 1

    def sent(self, number: int, at: float) -> None:
        """It has been handed to the transport."""
        self._entries[number].sent = at

    def settle(self, number: int, outcome: Outcome, at: float, code: str = "") -> None:
        """Its end. A second one changes nothing and is counted."""
        entry = self._entries[number]
        if entry.outcome is not Outcome.OPEN:
            self.settled_twice += 1
            return
        entry.outcome, entry.ended, entry.code = outcome, at, code
        self.counts[Outcome.OPEN] -= 1
        self.counts[outcome] += 1
