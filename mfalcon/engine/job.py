"""What the device thread is asked to do: one job per accepted request, answered exactly once through its future."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeAlias

from mfalcon.kvcache.fetch import Fetched
from mfalcon.types import CacheInfo, RankRequest, RankResult


@dataclass(frozen=True, slots=True, eq=False)
class RankJob:
    """Rank candidates. fetched_history: the acknowledged history, before the request's own recent events, and what was
    found of it. accepted: when the engine was asked.
    """

    request: RankRequest
    fetched_history: Fetched
    deadline: float | None
    future: "Future[RankResult]" = field(default_factory=Future)
    accepted: float = field(default_factory=time.monotonic)
    queued: float = field(default_factory=time.monotonic)

    @property
    def user(self) -> bytes:
        """Whose it is."""
        return self.fetched_history.history.user


@dataclass(frozen=True, slots=True, eq=False)
class PrefillJob:
    """Bring the user's KV state up to the acknowledged history."""

    fetched_history: Fetched
    deadline: float | None
    future: "Future[CacheInfo]" = field(default_factory=Future)

    @property
    def user(self) -> bytes:
        """Whose it is."""
        return self.fetched_history.history.user


@dataclass(frozen=True, slots=True, eq=False)
class DeleteJob:
    """Erase every state of a user, or of all users if that is None. Runs after all work queued before it."""

    user: bytes | None
    deadline: None = None
    future: "Future[None]" = field(default_factory=Future)


Job: TypeAlias = RankJob | PrefillJob | DeleteJob
