"""What was counted of one user: up to which event, and what it added to each item, so that a deletion takes it out."""

from dataclasses import dataclass, field

import numpy as np

from mfalcon.counters.increments import INCREMENT_DTYPE, Increments, merged
from mfalcon.counters.standing import Standing

_LOOSE_ENTRIES = 64


@dataclass(slots=True)
class UserRecord:
    """standing: how far it goes. entries: increments, some items several times;
    merged when they are twice as many as after the last time.
    """

    standing: Standing
    entries: bytearray = field(default_factory=bytearray)
    num_merged: int = 0

    @property
    def increments(self) -> Increments:
        """All of it, every item once."""
        return merged(np.frombuffer(self.entries, dtype=INCREMENT_DTYPE))

    def add(self, increments: Increments) -> None:
        """What was counted besides."""
        self.entries += increments.tobytes()
        if len(self.entries) // INCREMENT_DTYPE.itemsize > 2 * self.num_merged + _LOOSE_ENTRIES:
            whole = self.increments
            self.entries, self.num_merged = bytearray(whole.tobytes()), len(whole)
