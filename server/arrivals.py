"""Requests from their arrival to their end: each transport begins one at its edge and ends it there, exactly once.

What only the handler learns (the model, when the engine was asked) gets back to the edge by the context of the task,
because frameworks whose signatures are not ours lie between the two.
"""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from mfalcon.metrics.requests import RequestMetrics
from mfalcon.metrics.stages import StageMetrics
from mfalcon.rank_key import rank_key
from mfalcon.scope import Scope, enter
from server.request_ids import request_id_of


@dataclass(slots=True, eq=False)
class Arrival:
    """A request that is being answered. Times are readings of `time.perf_counter()`.

    model: the served one that is asked, "" until it is known and where there is none. began: when the whole message
    was here, if it ever is (is_whole). asked, told: when the engine began and ended a rank. key: the affinity key that
    it came by, "" without one. mismatch: what is wrong with that, as `RequestMetrics.mismatched` has it. caller: the
    name of who asks, "" where nobody looks. scope: what the layers below note of it, with its name in logs and traces.
    """

    verb: str
    key: str = ""
    mismatch: str = ""
    model: str = ""
    caller: str = ""
    began: float = field(default_factory=time.perf_counter)
    asked: float | None = None
    told: float | None = None
    is_whole: bool = False
    ended: bool = False
    scope: Scope = field(default_factory=Scope)

    @property
    def request_id(self) -> str:
        """Its name in logs and traces; "" of what is no request of a caller."""
        return self.scope.request_id

    def received(self) -> None:
        """The whole message is here: what is ours to answer for begins."""
        self.began = time.perf_counter()
        self.is_whole = True

    def of(self, user_id: str) -> None:
        """This is its user, whose key it should have."""
        if self.key != rank_key(user_id):
            self.mismatch = "wrong" if self.key else "none"


_current: ContextVar[Arrival | None] = ContextVar("arrival", default=None)


def current() -> Arrival:
    """The request that this task answers; one that nobody counts where no transport has begun one."""
    return _current.get() or Arrival("")


def carry_on(caller: str) -> None:
    """Answer, in this task, a request of this caller that another process of this server has taken."""
    _current.set(Arrival("", caller=caller))


class Arrivals:
    """Those of one transport."""

    def __init__(self, transport: str, requests: RequestMetrics, stages: StageMetrics) -> None:
        self._transport = transport
        self._requests = requests
        self._stages = stages

    def begin(self, verb: str, key: str, request_id: str | None = None) -> Arrival:
        """A request that this task answers; its verb is "" while that is not known. key: see `Arrival`. request_id: as
        the caller names it, if it does.
        """
        arrival = Arrival(verb, key, scope=Scope(request_id_of(request_id)))
        _current.set(arrival)
        enter(arrival.scope)
        return arrival

    def refused(self, code: str) -> None:
        """Count what is no request for any verb."""
        self.end(Arrival(""), code)

    def end(self, arrival: Arrival, code: str, *, answered: bool = False) -> None:
        """Count a request unless it was; answered: as its caller wished."""
        if arrival.ended:
            return
        arrival.ended = True
        self._requests.count(arrival.model, arrival.verb, self._transport, code)
        if arrival.mismatch:
            self._requests.mismatched(self._transport, arrival.mismatch)
        if not answered:
            return
        now = time.perf_counter()
        self._requests.took(arrival.model, arrival.verb, self._transport, now - arrival.began)
        if arrival.asked is not None and arrival.told is not None:
            self._stages.took(arrival.model, "admission", arrival.asked - arrival.began)
            self._stages.took(arrival.model, "reply", now - arrival.told)
