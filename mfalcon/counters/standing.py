"""Up to where a user's events are counted, and what an append that put events between older ones added."""

from dataclasses import dataclass

from mfalcon.history.history import History
from mfalcon.types import Events


@dataclass(frozen=True, slots=True)
class Standing:
    """The first `counted` events are, of a history that hashed to `link` there; generation: the life of its log.

    link: b"" where it is not known, of records that an older server wrote.
    """

    generation: bytes
    counted: int = 0
    link: bytes = b""

    def is_of(self, history: History) -> bool:
        """Whether those events are the first ones of a history of this life: none was put between them uncounted.

        What lies before the history's base cannot be compared; what is longer than the history knows more of it.
        """
        if not self.link or not history.base <= self.counted <= len(history):
            return True
        return history.link(self.counted) == self.link


@dataclass(frozen=True, slots=True)
class Insertion:
    """An append that put some of its events between older ones: it led from one standing to the other, and `events` are
    all that it stored.
    """

    user_id: str
    user: bytes
    before: Standing
    after: Standing
    events: Events


def standing_of(history: History, counted: int) -> Standing:
    """All of a history up to an event."""
    link = history.link(counted) if history.base <= counted <= len(history) else b""
    return Standing(history.generation, counted, link)
