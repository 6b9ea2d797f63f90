"""What the device thread is asked to do: one job per accepted request, answered exactly once through its future."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeAlias

from mfalcon.state.history import History
from mfalcon.types import CacheInfo, RankRequest, RankResult


@dataclass(frozen=True, slots=True, eq=False)
class RankJob:
    """Rank candidates. log: the acknowledged history, before the request's own recent events."""

    request: RankRequest
    log: History
    deadline: float | None
    future: "Future[RankResult]" = field(default_factory=Future)
    accepted: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True, eq=False)
class PrefillJob:
    """Bring the user's KV state up to the acknowledged history."""

    log: History
    deadline: float | None
    future: "Future[CacheInfo]" = field(default_factory=Future)


@dataclass(frozen=True, slots=True, eq=False)
class ForgetJob:
    """Erase every state of a user. Runs after all work accepted before it, so none of that can bring one back."""

    user_id: str
    deadline: None = None
    future: "Future[None]" = field(default_factory=Future)


Job: TypeAlias = RankJob | PrefillJob | ForgetJob
