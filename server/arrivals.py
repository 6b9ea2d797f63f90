"""Requests from their arrival to their end: each transport begins one at its edge and ends it there, exactly once.

What only the handler learns (the model, when the engine was asked) gets back to the edge by the context of the task,
because frameworks whose signatures are not ours lie between the two.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

import grpc
from opentelemetry.trace import Span

from mfalcon.metrics.requests import RequestMetrics
from mfalcon.metrics.stages import StageMetrics
from mfalcon.pseudonym import user_tag
from mfalcon.rank_key import rank_key
from mfalcon.scope import Scope, enter
from mfalcon.spans import Value, exemplar, stage
from mfalcon.types import RankResult
from server import tracing
from server.request_ids import request_id_of
from server.tracing import Tracing

SERVICE: Final = "mfalcon.v1.Ranking"
GRPC_CODES: Final = {code.name: code.value[0] for code in grpc.StatusCode}
NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class Arrival:
    """A request that is being answered. Times are readings of `time.perf_counter()`.

    model: the served one that is asked, "" until it is known and where there is none. arrived: when its head was here;
    began: when the whole message was, if it ever is (is_whole). asked, told: when the engine began and ended a rank.
    first_part: when the first scores of a stream were with the transport, None of any other.
    key: the affinity key that it came by, "" without one. mismatch: what is wrong with that, as
    `RequestMetrics.mismatched` has it. caller: the name of who asks, "" where nobody looks. scope: what the layers
    below note of it, with its name in logs and traces. user_id: a legal one, "" until it is known. granted_s: seconds
    that it has, None until that is known. result: of a rank that was answered. route, scheme: over HTTP. service:
    over gRPC. is_part: of another request, which is counted. parts: of a batch, how many ended with each code.
    when_closed: is called when its caller has read the answer, or has left. credentials: what the call's metadata has
    by the name authorization, None where nobody looked.
    """

    verb: str
    key: str = ""
    mismatch: str = ""
    model: str = ""
    caller: str = ""
    arrived: float = field(default_factory=time.perf_counter)
    began: float = 0.0
    asked: float | None = None
    told: float | None = None
    first_part: float | None = None
    is_whole: bool = False
    ended: bool = False
    scope: Scope = field(default_factory=Scope)
    user_id: str = ""
    num_candidates: int = 0
    num_events: int = 0
    granted_s: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    result: RankResult | None = None
    handled: float | None = None
    span: Span | None = None
    route: str = ""
    scheme: str = "http"
    service: str = SERVICE
    is_part: bool = False
    parts: Mapping[str, int] | None = None
    when_closed: Callable[[], None] = field(default=lambda: None, repr=False)
    credentials: Sequence[str | bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.began = self.arrived

    @property
    def request_id(self) -> str:
        """Its name in logs and traces; "" of what is no request of a caller."""
        return self.scope.request_id

    def received(self, num_bytes: int = 0) -> None:
        """The whole message is here, of which so many were the last: what is ours to answer for begins."""
        self.bytes_in += num_bytes
        self.began = time.perf_counter()
        self.is_whole = True

    def of(self, user_id: str) -> None:
        """This is its user, whose key it should have."""
        self.user_id = user_id
        if self.key != rank_key(user_id):
            self.mismatch = "wrong" if self.key else "none"


_current: ContextVar[Arrival | None] = ContextVar("arrival", default=None)


def current() -> Arrival:
    """The request that this task answers; one that nobody counts where no transport has begun one."""
    return _current.get() or Arrival("")


def carry_on(caller: str) -> None:
    """Answer, in this task, a request of this caller that another process of this server has taken."""
    _current.set(Arrival("", caller=caller))


def begin_part() -> None:
    """Answer, in this task, a part of the request that this task was begun for: what is noted of it is its own."""
    whole = current()
    _current.set(Arrival("", caller=whole.caller, is_part=True))
    enter(Scope(whole.request_id))


class Ends(Protocol):
    """Who wants to hear of every request that has ended."""

    def ended(self, arrival: Arrival, transport: str, code: str, took_s: float, *, answered: bool) -> None:
        """It took so long from its whole message on."""
        ...


class Arrivals:
    """Those of one transport."""

    def __init__(
        self,
        transport: str,
        requests: RequestMetrics,
        stages: StageMetrics,
        ends: Ends | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """ends: hears of each that has ended. tracing: says which are traced; none are if it is not given."""
        self._transport = transport
        self._requests = requests
        self._stages = stages
        self._ends = ends
        self._tracing = tracing

    def begin(
        self, verb: str, key: str, request_id: str | None = None, headers: Mapping[str, str] = NO_HEADERS
    ) -> Arrival:
        """A request that this task answers; its verb is "" while that is not known. key: see `Arrival`. request_id: as
        the caller names it, if it does. headers: by which it is a part of a trace.
        """
        arrival = Arrival(verb, key, scope=Scope(request_id_of(request_id)))
        _current.set(arrival)
        enter(arrival.scope)
        if self._tracing is None:
            tracing.join(headers)
        else:
            arrival.span = self._tracing.begin(headers, verb, arrival.arrived)
        return arrival

    def refused(self, code: str) -> None:
        """Count what is no request for any verb."""
        self.end(Arrival("", scope=Scope(request_id_of(None))), code)

    def end(self, arrival: Arrival, code: str, *, answered: bool = False) -> None:
        """Count a request unless it was; answered: as its caller wished."""
        if arrival.ended:
            return
        arrival.ended = True
        self._requests.count(arrival.model, arrival.verb, self._transport, code)
        for part_code, num in (arrival.parts or {}).items():
            self._requests.parts(arrival.verb, self._transport, part_code, num)
        if arrival.mismatch:
            self._requests.mismatched(self._transport, arrival.mismatch)
        now = time.perf_counter()
        if self._ends is not None or arrival.span is not None:
            # A line of the log and spans cost more than all else that is done here, and no answer waits for them.
            asyncio.get_running_loop().call_soon(self._tell, arrival, code, now, answered)
        shown = None if arrival.span is None else exemplar(arrival.span)
        if arrival.first_part is not None:
            self._requests.began_to_answer(arrival.model, self._transport, arrival.first_part - arrival.began, shown)
        if not answered:
            return
        self._requests.took(arrival.model, arrival.verb, self._transport, now - arrival.began, shown)
        if arrival.asked is not None and arrival.told is not None:
            self._stages.took(arrival.model, "admission", arrival.asked - arrival.began, shown)
            self._stages.took(arrival.model, "reply", now - arrival.told, shown)

    def _tell(self, arrival: Arrival, code: str, now: float, answered: bool) -> None:
        """Of a request that ended at `now`, once its answer is on its way."""
        if self._ends is not None:
            self._ends.ended(arrival, self._transport, code, now - arrival.began, answered=answered)
        if arrival.span is not None:
            end_span(arrival.span, arrival, self._transport, code, now)


def end_span(span: Span, arrival: Arrival, transport: str, code: str, now: float) -> None:
    """End the span of a request, after those of its parts in this process."""
    if arrival.is_whole and arrival.began > arrival.arrived:
        stage("receive", arrival.arrived, arrival.began, parent=span)
    if arrival.handled is not None:
        stage("decode", arrival.began, arrival.handled, {"mfalcon.bytes": arrival.bytes_in}, parent=span)
        if arrival.asked is not None:
            stage("admission", arrival.handled, arrival.asked, parent=span)
    if arrival.told is not None:
        stage("encode", arrival.told, now, {"mfalcon.bytes": arrival.bytes_out}, parent=span)
    attributes: dict[str, Value] = {"mfalcon.request_id": arrival.request_id}
    for name, value in (("mfalcon.model", arrival.model), ("mfalcon.caller", arrival.caller)):
        if value:
            attributes[name] = value
    if arrival.user_id:
        attributes["mfalcon.user"] = user_tag(arrival.user_id)
    if transport == "grpc":
        method = "".join(map(str.capitalize, arrival.verb.split("_")))
        name = f"{arrival.service}/{method}"
        attributes |= {"rpc.system": "grpc", "rpc.service": arrival.service, "rpc.method": method}
        attributes["rpc.grpc.status_code"] = GRPC_CODES.get(code, 2)
    else:
        name, (method, _, path) = arrival.route, arrival.route.partition(" ")
        attributes |= {"http.request.method": method, "http.route": path, "url.path": path}
        attributes["url.scheme"] = arrival.scheme
        attributes["http.response.status_code"] = int(code)
    tracing.end(span, name, attributes, code, now)
