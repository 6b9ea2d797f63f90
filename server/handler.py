"""The one handler behind both transports: check, admit, set the deadline, ask the engine."""

import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from mfalcon.clock import now_ms
from mfalcon.errors import (
    InvalidInput,
    NotReady,
    Overloaded,
    ShuttingDown,
    TooFewMembers,
)
from mfalcon.interests import Interests, InterestsRequest
from mfalcon.load import Load
from mfalcon.types import (
    Append,
    Appended,
    AppendOutcome,
    CacheInfo,
    Events,
    HistoryPage,
    HistoryRequest,
    Items,
    ItemsRequest,
    ModelInfo,
    ModelRank,
    RankOutcome,
    RankPart,
    RankRequest,
    RankResult,
    UserAppend,
)
from server import arrivals, limits
from server.access.gate import Gate
from server.batches import rank_each
from server.in_flight import InFlight
from server.limits import Limits
from server.parts import Write, in_parts
from server.ranking_engine import RankingEngine

_log = logging.getLogger(__name__)

LOADING: Final = "loading"
WAITING: Final = "waiting for Redis"


class Handler:
    """Answers requests in the project's words; `time_left` is what the caller grants, in seconds.

    It refuses every request with NotReady until it is given an engine.
    """

    def __init__(self, limits: Limits, gate: Gate | None = None) -> None:
        """gate: is told who was refused for a limit of his own."""
        self._gate = gate or Gate()
        self._serving: RankingEngine | None = None
        self._starts_by = LOADING
        self._limits = limits
        self._leaving = False
        self._in_flight = InFlight()

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self.serves and not self.leaving

    @property
    def serves(self) -> bool:
        """Whether there is an engine that answers."""
        return self._serving is not None and self._serving.ready

    @property
    def leaving(self) -> bool:
        """Whether callers should look elsewhere for their next request."""
        return self._leaving or self._in_flight.draining

    @property
    def status(self) -> str:
        """What the server does, in a word or two."""
        if self.leaving:
            return "draining"
        if self._serving is None:
            return self._starts_by
        return "ready" if self._serving.ready else "not ready"

    @property
    def load(self) -> Load:
        """How busy the engine is; not at all before there is one."""
        return Load() if self._serving is None else self._serving.load

    def wait_for_redis(self) -> None:
        """Say from now on that this is what an engine waits for."""
        self._starts_by = WAITING

    def serve(self, engine: RankingEngine) -> None:
        """Answer requests from now on."""
        self._serving = engine

    def leave(self) -> None:
        """Want no more requests from now on, and answer those that come."""
        self._leaving = True

    def drain(self) -> None:
        """Refuse new requests from now on; those in flight go on."""
        self._in_flight.draining = True

    async def wait_idle(self) -> None:
        """Return when no request is in flight."""
        await self._in_flight.wait_idle()

    def abort(self) -> None:
        """Answer the requests in flight with ShuttingDown, now."""
        self._in_flight.abort()

    def model(self, name: str = "") -> ModelInfo:
        """The model of a name, the default one for "". Raises UnknownModel."""
        return self._found(name, self.models())

    def models(self) -> tuple[ModelInfo, ...]:
        """Every served model, with the candidate limit that this server enforces; the default one first."""
        limit = self._limits.max_candidates
        return tuple(dataclasses.replace(info, max_candidates=limit) for info in self._engine.models)

    def admit(self, time_left: float | None) -> None:
        """Refuse a rank that must come too late before anything is made of its body. Raises Overloaded."""
        if self._serving is not None:
            self._serving.load.admit(time.monotonic() + self._granted(time_left))

    async def rank(self, request: RankRequest, model: str, time_left: float | None) -> RankResult:
        """Score the candidates; `model` is the name that the caller asks for ("" is the default one)."""
        request, info = self._checked_rank(request, model)
        return await self._ranked(time_left, lambda deadline: self._engine.rank(request, deadline, info.name))

    async def rank_stream(self, request: RankRequest, model: str, time_left: float | None, write: Write) -> RankResult:
        """Score the candidates, and write their scores as they come, in order. Returns the answer, all of whose scores
        are written. What it raises comes after the parts that are right; the deadline is that of the last one.
        """
        request, info = self._checked_rank(request, model)
        limits.check_streams(request)

        async def write_part(part: RankPart) -> None:
            await write(part)
            arrival = arrivals.current()
            if arrival.first_part is None:
                arrival.first_part = time.perf_counter()

        def rank(deadline: float) -> Coroutine[None, None, RankResult]:
            return in_parts(lambda tell: self._engine.rank(request, deadline, info.name, tell), write_part)

        return await self._ranked(time_left, rank)

    async def _ranked(
        self, time_left: float | None, rank: Callable[[float], Coroutine[None, None, RankResult]]
    ) -> RankResult:
        """What `rank` answers by a deadline."""
        async with self._admitted(time_left) as deadline:
            arrival = arrivals.current()
            arrival.asked = time.perf_counter()
            arrival.result = result = await rank(deadline)
            arrival.told = time.perf_counter()
            return result

    def _checked_rank(self, request: RankRequest, model: str) -> tuple[RankRequest, ModelInfo]:
        """A legal request, with the model that it asks."""
        arrivals.current().handled = time.perf_counter()
        info = self._found(model, self._engine.models)
        if info.ensemble is not None and not info.tasks:  # nobody knows yet what is legal
            raise TooFewMembers(f"no member of {info.name} has been reached yet; ask another replica")
        self._check_user(request.user_id)
        limits.check_ranks(info)
        if request.retrieve is None:
            arrivals.current().num_candidates = len(request.candidates)
            limits.check_candidates(request.candidates, self._limits.max_candidates)
        else:
            arrivals.current().num_candidates = request.retrieve.num_items
            proposes = limits.check_asks(request.retrieve.model, self._engine.models)
            limits.check_retrieve(request, proposes, self._limits.max_candidates)
            wish = dataclasses.replace(request.retrieve, model=proposes.name)
            request = dataclasses.replace(request, retrieve=wish)
        limits.check_returns(request)
        self._check_moment(request.request_time_ms, request.recent_events, info)
        limits.check_context(request.context, info.context_features)
        if request.rerank is not None:
            limits.check_rerank(request.rerank, info)
        limits.check_dense(request.dense, info.dense_features, len(request.candidates), info.counters)
        if request.returns == "scores":
            request = dataclasses.replace(request, top_k=0)
        if request.request_time_ms == 0:
            request = dataclasses.replace(request, request_time_ms=now_ms())
        return request, info

    async def rank_batch(self, ranks: Sequence[ModelRank | InvalidInput], time_left: float | None) -> list[RankOutcome]:
        """Rank for several users, each by itself: what `rank` would return or raise for it. One that could not even be
        read is its own outcome. Raises what concerns all of them.
        """
        arrivals.current().handled = time.perf_counter()
        limits.check_num_ranks(ranks, self._limits)
        readable = [each for each in ranks if isinstance(each, ModelRank)]
        num_candidates = sum(map(_num_candidates, readable))
        arrivals.current().num_candidates = num_candidates
        limits.check_ranked_together(num_candidates, self._limits)
        due = time.monotonic() + self._granted(time_left)
        self._engine.load.admit(due)
        with self._in_flight.batch():
            return await rank_each(ranks, lambda each, left: self.rank(each.request, each.model, left), due)

    async def interests(self, request: InterestsRequest, model: str, time_left: float | None) -> Interests:
        """A user's interests; no conditions are all of the model's."""
        arrivals.current().handled = time.perf_counter()
        info = limits.check_asks(model, self._engine.models)
        arrivals.current().model = info.name
        self._check_user(request.user_id)
        limits.check_conditions(request.conditions, info)
        request = dataclasses.replace(request, conditions=request.conditions or info.conditions)
        arrivals.current().num_candidates = len(request.conditions)
        limits.check_top_items(request.top_items, len(request.conditions))
        self._check_moment(request.request_time_ms, request.recent_events, info)
        if request.request_time_ms == 0:
            request = dataclasses.replace(request, request_time_ms=now_ms())
        async with self._admitted(time_left) as deadline:
            arrival = arrivals.current()
            arrival.asked = time.perf_counter()
            found = await self._engine.interests(request, deadline, info.name)
            arrival.told = time.perf_counter()
            return found

    async def append_events(self, user_id: str, append: Append, time_left: float | None) -> Appended:
        """Add the events to the user's history."""
        arrivals.current().handled = time.perf_counter()
        self._check_user(user_id)
        arrivals.current().num_events = len(append.events)
        append = self._checked(append, self._most_actions)
        async with self._admitted(time_left, writes=True) as deadline:
            return await self._engine.append_events(user_id, append, deadline)

    async def append_batch(
        self, appends: Sequence[UserAppend | InvalidInput], time_left: float | None
    ) -> list[AppendOutcome]:
        """Add events to the histories of different users, each append by itself: what `append_events` would return or
        raise for it. One that could not even be read is its own outcome.
        """
        arrivals.current().handled = time.perf_counter()
        arrivals.current().num_events = limits.check_batch(appends, self._limits)
        most_actions = self._most_actions
        outcomes: list[AppendOutcome | None] = []
        legal: list[UserAppend] = []
        for each in appends:
            try:
                if isinstance(each, InvalidInput):
                    raise each
                limits.check_user_id(each.user_id, self._limits.max_user_id_bytes)
                legal.append(UserAppend(each.user_id, self._checked(each.append, most_actions)))
                outcomes.append(None)
            except InvalidInput as error:
                outcomes.append(error)
        if legal:
            async with self._admitted(time_left, writes=True) as deadline:
                told = iter(await self._engine.append_batch(legal, deadline))
        return [next(told) if outcome is None else outcome for outcome in outcomes]

    async def get_history(self, request: HistoryRequest, time_left: float | None) -> HistoryPage:
        """A page of the user's history; `limit` 0 is for as many events as a page may have."""
        self._check_user(request.user_id)
        limits.check_history_request(request, self._limits.max_events_per_page)
        request = dataclasses.replace(request, limit=request.limit or self._limits.max_events_per_page)
        async with self._admitted(time_left) as deadline:
            return await self._engine.get_history(request, deadline)

    async def items(self, request: ItemsRequest) -> Items:
        """Items of a model with their titles; the model is one that the caller asks for ("" is the default one)."""
        info = self._found(request.model, self._engine.models)
        async with self._admitted(None):
            return await self._engine.items(dataclasses.replace(request, model=info.name))

    async def prefill(
        self,
        user_id: str,
        model: str,
        time_left: float | None,
        conditions: Sequence[str] = (),
        request_time_ms: int = 0,
    ) -> CacheInfo:
        """Encode the user's history now, by a model, and compute interests ahead that it has."""
        if not conditions:
            info = self._found(model, self._engine.models)
        else:
            info = limits.check_asks(model, self._engine.models)
            arrivals.current().model = info.name
            limits.check_conditions(conditions, info)
        self._check_user(user_id)
        limits.check_request_time(request_time_ms, self._limits.max_clock_skew_ms)
        async with self._admitted(time_left) as deadline:
            if not conditions:
                return await self._engine.prefill(user_id, deadline, info.name)
            return await self._engine.prefill(user_id, deadline, info.name, conditions, request_time_ms or now_ms())

    async def delete_user(self, user_id: str, time_left: float | None) -> None:
        """Forget the user."""
        self._check_user(user_id)
        async with self._admitted(time_left, writes=True) as deadline:
            await self._engine.delete_user(user_id, deadline)

    def _checked(self, append: Append, most_actions: int) -> Append:
        """A legal append, with what becomes of its late events. Raises InvalidInput."""
        limits.check_num_events("events", append.events, 1, self._limits.max_events_per_append)
        limits.check_append(append)
        append = dataclasses.replace(append, late_events=append.late_events or self._limits.late_events)
        skew, in_order = self._limits.max_clock_skew_ms, append.late_events == "reject"
        limits.check_events("events", append.events, most_actions, skew, in_order=in_order)
        return append

    @property
    def action_bits(self) -> Mapping[str, int]:
        """The bit of each action that all models which have it number alike, by name. Raises NotReady."""
        bits: dict[str, set[int]] = {}
        for info in self._engine.models:
            for bit, name in enumerate(info.actions):
                bits.setdefault(name, set()).add(bit)
        return {name: found.pop() for name, found in bits.items() if len(found) == 1}

    @property
    def _most_actions(self) -> int:
        """Of any served model: their events share a history."""
        return max(len(info.actions) for info in self._engine.models)

    def _check_moment(self, request_time_ms: int, recent_events: Events, info: ModelInfo) -> None:
        """When a request is, and what it brings of the user."""
        skew = self._limits.max_clock_skew_ms
        limits.check_request_time(request_time_ms, skew)
        limits.check_num_events("recent_events", recent_events, 0, self._limits.max_recent_events)
        limits.check_events("recent_events", recent_events, len(info.actions), skew)

    def _check_user(self, user_id: str) -> None:
        limits.check_user_id(user_id, self._limits.max_user_id_bytes)
        arrivals.current().of(user_id)

    @staticmethod
    def _found(name: str, models: Sequence[ModelInfo]) -> ModelInfo:
        """The model of a name, which the request is counted under from now on. Raises UnknownModel."""
        info = limits.check_model(name, models)
        arrivals.current().model = info.name
        return info

    @property
    def _engine(self) -> RankingEngine:
        """The engine. Raises NotReady before there is one."""
        if self._serving is None:
            if self._in_flight.draining:
                raise ShuttingDown("the server is shutting down; ask another one")
            raise NotReady(f"the server is still {self._starts_by}; ask another one")
        return self._serving

    def _granted(self, time_left: float | None) -> float:
        """Seconds that a request has: the sooner of the caller's deadline and ours."""
        longest = self._limits.request_timeout_ms / 1000
        return longest if time_left is None else min(longest, time_left)

    @asynccontextmanager
    async def _admitted(self, time_left: float | None, *, writes: bool = False) -> AsyncIterator[float]:
        """Count the request as in flight and bound it. writes: what is cut off may be done all the same."""
        arrival, seconds = arrivals.current(), self._granted(time_left)
        arrival.granted_s = seconds
        try:
            async with self._in_flight.admitted(seconds, writes=writes, of_batch=arrival.is_part) as deadline:
                yield deadline
        except Overloaded as error:
            self._gate.close(arrival.caller, error)
            raise


def _num_candidates(rank: ModelRank) -> int:
    wish = rank.request.retrieve
    return len(rank.request.candidates) if wish is None else wish.num_items
