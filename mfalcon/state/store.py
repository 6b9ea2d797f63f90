"""The tiers of KV states as one. Today one tier, the host; the history decides what a state found in it is worth."""

from dataclasses import dataclass
from typing import Generic

from mfalcon.state.history import History
from mfalcon.state.host import HostTier, S
from mfalcon.state.key import StateKey
from mfalcon.types import CacheSource


@dataclass(frozen=True, slots=True)
class Found(Generic[S]):
    """A state of the window's first `stop - start` events; `source` names its tier."""

    state: S
    stop: int
    source: CacheSource


class StateStore(Generic[S]):
    """Finds the state that is an ancestor of a history, if there is one. Owned by the device thread."""

    def __init__(self, fingerprint: str, budget_bytes: int) -> None:
        self._fingerprint = fingerprint
        self._host: HostTier[S] = HostTier(budget_bytes)

    def acquire(self, history: History, start: int) -> Found[S] | None:
        """The state of a prefix of history[start:], verified by the chained hash; None on a miss.

        A state that is no ancestor of the history, or whose window starts elsewhere, is a miss; the next `put`
        replaces it.
        """
        entry = self._host.get(history.user_id)
        if entry is None:
            return None
        stop = entry.key.stop
        if stop > len(history) or entry.key != self._key(history, start, stop):
            return None
        return Found(entry.state, stop, CacheSource.HOST)

    def put(self, history: History, start: int, state: S) -> None:
        """Keep the state of history[start:]."""
        self._host.put(self._key(history, start, len(history)), state)

    def forget(self, user_id: str) -> None:
        """Erase the user's state from every tier."""
        self._host.remove(user_id)

    @property
    def num_bytes(self) -> int:
        """Bytes held by the host tier."""
        return self._host.num_bytes

    def _key(self, history: History, start: int, stop: int) -> StateKey:
        return StateKey(self._fingerprint, history.user_id, start, stop, history.link(stop))
