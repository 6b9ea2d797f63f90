"""What the device thread is asked to do: one job per accepted request, answered exactly once through its future."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mfalcon.engine.progress import Progress
from mfalcon.kvcache.fetch import Fetched
from mfalcon.types import RankRequest, RankResult, no_events


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a job will be, as far as one knows when it is queued.

    seconds: of the device. batch: jobs of an equal one are better done at once than one after the other; None: this one
    is done alone. twin: jobs of one user share a batch only if they have an equal one, which is not None.
    """

    seconds: float = 0.0
    batch: object = None
    twin: object = None


@dataclass(slots=True, eq=False)
class RankJob:
    """Rank candidates; without any, bring the user's KV state up to the acknowledged history.

    fetched_history: the acknowledged history, before the request's own recent events, and what was found of it. model:
    by name. accepted: when the engine was asked. The rest is the scheduler's and the device thread's: forecast; the
    predicted seconds that are left; whether it takes no state that is cached; how far it is. The future stays pending
    until there is an answer, so that a caller may leave at any time.
    """

    request: RankRequest
    fetched_history: Fetched
    deadline: float | None
    model: str = ""
    future: "Future[RankResult]" = field(default_factory=Future)
    accepted: float = field(default_factory=time.monotonic)
    queued: float = field(default_factory=time.monotonic)
    forecast: Forecast = field(default_factory=Forecast)
    left_s: float = 0.0
    is_cold: bool = False
    is_short: bool = True
    progress: Progress | None = None

    @property
    def user(self) -> bytes:
        """Whose it is."""
        return self.fetched_history.history.user

    @property
    def due(self) -> float:
        """The deadline, infinity without one."""
        return math.inf if self.deadline is None else self.deadline


def prefill_job(fetched_history: Fetched, deadline: float | None, model: str = "") -> RankJob:
    """A job that ranks nothing: the user's KV state is all that is wanted of it."""
    user_id = fetched_history.history.user_id
    request = RankRequest(user_id, np.empty(0, dtype=np.int64), 0, 0, no_events(), {})
    return RankJob(request, fetched_history, deadline, model)


@dataclass(frozen=True, slots=True, eq=False)
class CallJob:
    """Do something else on the device thread, before the next step: a deletion, say. It waits for no other job."""

    work: Callable[[], object]
    future: "Future[Any]" = field(default_factory=Future)
