"""What the device thread is asked to do: one job per accepted request, answered exactly once through its future."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mfalcon.kvcache.fetch import Fetched
from mfalcon.types import CacheInfo, RankRequest, RankResult


@dataclass(frozen=True, slots=True, eq=False)
class RankJob:
    """Rank candidates. fetched_history: the acknowledged history, before the request's own recent events, and what was
    found of it. model: by name. accepted: when the engine was asked.
    """

    request: RankRequest
    fetched_history: Fetched
    deadline: float | None
    model: str = ""
    future: "Future[RankResult]" = field(default_factory=Future)
    accepted: float = field(default_factory=time.monotonic)
    queued: float = field(default_factory=time.monotonic)

    @property
    def user(self) -> bytes:
        """Whose it is."""
        return self.fetched_history.history.user


@dataclass(frozen=True, slots=True, eq=False)
class PrefillJob:
    """Bring the user's KV state of a model up to the acknowledged history."""

    fetched_history: Fetched
    deadline: float | None
    model: str = ""
    future: "Future[CacheInfo]" = field(default_factory=Future)

    @property
    def user(self) -> bytes:
        """Whose it is."""
        return self.fetched_history.history.user


@dataclass(frozen=True, slots=True, eq=False)
class DeleteJob:
    """Delete every state of a user in every model, or of all users if that is None. Runs after what was queued."""

    user: bytes | None
    deadline: None = None
    future: "Future[None]" = field(default_factory=Future)


@dataclass(frozen=True, slots=True, eq=False)
class CallJob:
    """Do something else on the device thread."""

    work: Callable[[], object]
    user: None = None
    deadline: None = None
    future: "Future[Any]" = field(default_factory=Future)


Job: TypeAlias = RankJob | PrefillJob | DeleteJob | CallJob
