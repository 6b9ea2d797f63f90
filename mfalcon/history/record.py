"""A user's log as it lies somewhere: bytes that prove themselves by the chained hash, or do not."""

from dataclasses import dataclass

import numpy as np

from mfalcon.history.chain import CHAIN_BLOCK, LINK_BYTES, user_hash
from mfalcon.history.history import History
from mfalcon.types import EVENT_DTYPE, no_events

GENERATION_BYTES = 8


@dataclass(frozen=True, slots=True)
class LogRecord:
    """The log of a user, unverified. user_id: "" where it is not known, as in Redis, which knows the hash. content: the
    events from `base` to `length`. used: when the user was last asked for, in seconds since 1970. The rest as in
    `History`, with the links at both ends.
    """

    user_id: str
    user: bytes
    generation: bytes
    base: int
    length: int
    base_link: bytes
    link: bytes
    used: int
    content: bytes

    def history(self) -> History | None:
        """The history that the record proves; None if it is damaged."""
        if (self.user_id and self.user != user_hash(self.user_id)) or len(self.base_link) != LINK_BYTES:
            return None
        if not self.generation or self.base % CHAIN_BLOCK or (self.base == 0 and self.base_link != self.user):
            return None
        if len(self.content) != (self.length - self.base) * EVENT_DTYPE.itemsize:
            return None
        history = self.unverified()
        return history if history.version == self.link else None

    def unverified(self) -> History:
        """The history of these events, whatever their hash is."""
        begun = History(self.user_id, self.user, self.generation, self.base, no_events(), self.base_link)
        return begun.extended(np.frombuffer(self.content, dtype=EVENT_DTYPE))
