"""What the device thread is asked to do: one job per accepted request, answered exactly once through its future."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mfalcon.counters.sets import Counted
from mfalcon.engine.parts import Parts
from mfalcon.engine.progress import Progress, Slice
from mfalcon.kvcache.fetch import Fetched
from mfalcon.scope import request_id
from mfalcon.types import RankRequest, RankResult, no_events

_REPLY_S = 0.002
_REPLY_SHARE = 0.05
"""Of a caller's time, what remains for the reply to an answer that is cut short for it."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a job will be, as far as one knows when it is queued.

    seconds: of the device. batch: jobs of an equal one are better done at once than one after the other; None: this one
    is done alone. twin: jobs of one user and model share a batch only if they have an equal one, which is not None.
    least_s: seconds until the first candidates have a score. slowness: how many times as long as usual all that takes
    now.
    """

    seconds: float = 0.0
    batch: object = None
    twin: object = None
    least_s: float = 0.0
    slowness: float = 1.0


@dataclass(slots=True, eq=False)
class RankJob:
    """Rank candidates; without any, bring the user's KV state up to the acknowledged history.

    fetched_history: the acknowledged history, before the request's own recent events, and what was found of it. model:
    by name. counted: of the items of the candidates. accepted: when the engine was asked. beside: jobs of an equal one,
    which is not None, are parts of one request, and have a core each where there is one for each. The rest is the
    scheduler's and the device thread's: forecast; the predicted seconds that are left, and of them those that others
    need not wait for; whether it takes no state that is cached; how far it is. so_far: the answer if nothing more is
    scored, for one that may be partial. reserve_s: what the stages behind need of the time before the deadline.
    request_id: its name in the log. slices: of one that is traced, those that are done, else None. parts: of one that
    tells its scores as they come. The future stays pending until there is an answer, so that a caller may leave at any
    time.
    """

    request: RankRequest
    fetched_history: Fetched
    deadline: float | None
    model: str = ""
    counted: Counted = field(default_factory=Counted)
    future: "Future[RankResult]" = field(default_factory=Future)
    accepted: float = field(default_factory=time.monotonic)
    beside: object = None
    queued: float = field(default_factory=time.monotonic)
    forecast: Forecast = field(default_factory=Forecast)
    left_s: float = 0.0
    extra_s: float = 0.0
    is_cold: bool = False
    is_short: bool = True
    progress: Progress | None = None
    so_far: RankResult | None = None
    reserve_s: float = 0.0
    request_id: str = field(default_factory=request_id)
    slices: list[Slice] | None = None
    parts: Parts | None = None

    @property
    def user(self) -> bytes:
        """Whose it is."""
        return self.fetched_history.history.user

    @property
    def due(self) -> float:
        """The deadline, infinity without one."""
        return math.inf if self.deadline is None else self.deadline

    @property
    def wanted_by(self) -> float:
        """When the stages behind want it; those who wait for the device go by that. It is no error to come later."""
        return self.due - self.reserve_s

    @property
    def cut_at(self) -> float:
        """When it is answered with what is scored by then; infinity if it wants all."""
        return self.reply_by - self.reserve_s if self.request.allow_partial else math.inf

    @property
    def reply_by(self) -> float:
        """When the answer must be there, infinity without a deadline: the reply needs time too."""
        return reply_by(self.deadline, self.accepted)

    @property
    def owed_s(self) -> float:
        """Predicted seconds that are left of what others wait for."""
        return max(0.0, self.left_s - self.extra_s)

    def cut(self) -> None:
        """Have the caller take what is scored so far, if anything is. Any thread may say so."""
        if self.so_far is not None:
            self.future.cancel()


def reply_by(deadline: float | None, accepted: float) -> float:
    """When the answer to what was accepted then must be there, infinity without a deadline."""
    if deadline is None:
        return math.inf
    return deadline - max(_REPLY_S, _REPLY_SHARE * (deadline - accepted))


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
