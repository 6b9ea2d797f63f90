"""What front-ends and the engine's process say to each other: one MessagePack message each, with numbers as bytes.

Both ends are of one version and on one machine: byte order is the machine's, and a deadline is a reading of
`time.monotonic()`, whose clock on Linux is one for all processes. Nothing is pickled. An error travels as the name of
its class in mfalcon/errors.py, its text and its attributes, and is raised as the very same on the other side.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from mfalcon import errors
from mfalcon.errors import EngineFailure, MFalconError
from mfalcon.interests import Interests, InterestsRequest, Nearest
from mfalcon.load import Load
from mfalcon.scope import Scope
from mfalcon.types import (
    EVENT_DTYPE,
    Append,
    Appended,
    AppendOutcome,
    CacheInfo,
    DenseFeatures,
    HistoryPage,
    HistoryRequest,
    Items,
    ItemsRequest,
    KeptState,
    MemberResult,
    ModelInfo,
    RankPart,
    RankRequest,
    RankResult,
    Rerank,
    RerankSkipped,
    Retrieve,
    Returns,
    Timings,
    UserAppend,
)

Attribute: TypeAlias = str | int | float | bool | None

ERRORS: Mapping[str, type[MFalconError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MFalconError)
}


class Message(msgspec.Struct, tag=True, array_like=True, gc=False):
    """One message. call: which call of the front-end it is about."""

    call: int


class Rank(Message):
    """See `RankRequest`. candidates: int64; recent_events: EVENT_DTYPE; dense: the names, and the values as float32.
    trace: see `server.frontends.carried`, as of every call. in_parts: `Part`s are welcome before the answer.
    """

    user_id: str
    candidates: bytes
    top_k: int
    request_time_ms: int
    recent_events: bytes
    context: dict[str, int]
    allow_partial: bool
    recompute: bool
    rerank: Rerank | None
    dense: tuple[tuple[str, ...], bytes]
    retrieve: Retrieve | None
    returns: Returns
    exclude_unknown: bool
    exclude_seen: bool
    deadline: float | None
    model: str
    trace: dict[str, str]
    in_parts: bool = False

    @classmethod
    def of(
        cls,
        call: int,
        request: RankRequest,
        deadline: float | None,
        model: str,
        trace: Mapping[str, str] = MappingProxyType({}),
        *,
        in_parts: bool = False,
    ) -> "Rank":
        """What asks for the scores of a request."""
        return cls(
            call,
            request.user_id,
            _flat(request.candidates, np.int64),
            request.top_k,
            request.request_time_ms,
            _flat(request.recent_events, EVENT_DTYPE),
            dict(request.context),
            request.allow_partial,
            request.recompute,
            request.rerank,
            (request.dense.names, _flat(request.dense.values, np.float32)),
            request.retrieve,
            request.returns,
            request.exclude_unknown,
            request.exclude_seen,
            deadline,
            model,
            dict(trace),
            in_parts,
        )

    def request(self) -> RankRequest:
        """The request, checked by the front-end."""
        names, values = self.dense
        return RankRequest(
            user_id=self.user_id,
            candidates=np.frombuffer(self.candidates, np.int64),
            top_k=self.top_k,
            request_time_ms=self.request_time_ms,
            recent_events=np.frombuffer(self.recent_events, EVENT_DTYPE),
            context=self.context,
            allow_partial=self.allow_partial,
            recompute=self.recompute,
            rerank=self.rerank,
            dense=DenseFeatures(names, np.frombuffer(values, np.float32)),
            retrieve=self.retrieve,
            returns=self.returns,
            exclude_unknown=self.exclude_unknown,
            exclude_seen=self.exclude_seen,
        )


class AskInterests(Message):
    """See `InterestsRequest`. recent_events: EVENT_DTYPE."""

    user_id: str
    conditions: tuple[str, ...]
    top_items: int
    request_time_ms: int
    recent_events: bytes
    deadline: float | None
    model: str
    trace: dict[str, str] = {}

    @classmethod
    def of(
        cls,
        call: int,
        request: InterestsRequest,
        deadline: float | None,
        model: str,
        trace: Mapping[str, str] = MappingProxyType({}),
    ) -> "AskInterests":
        """What asks for interests."""
        events = _flat(request.recent_events, EVENT_DTYPE)
        asked = request.user_id, request.conditions, request.top_items, request.request_time_ms, events
        return cls(call, *asked, deadline, model, dict(trace))

    def request(self) -> InterestsRequest:
        """The request, checked by the front-end."""
        events = np.frombuffer(self.recent_events, EVENT_DTYPE)
        return InterestsRequest(self.user_id, self.conditions, self.top_items, self.request_time_ms, events)


class AppendEvents(Message):
    """The fields of an `Append`. events: EVENT_DTYPE."""

    user_id: str
    events: bytes
    expected_len: int | None
    expected_version: bytes | None
    append_id: str
    late_events: str
    deadline: float | None
    trace: dict[str, str]

    @classmethod
    def of(
        cls,
        call: int,
        user_id: str,
        append: Append,
        deadline: float | None,
        trace: Mapping[str, str] = MappingProxyType({}),
    ) -> "AppendEvents":
        """What adds events to a history."""
        return cls(
            call,
            user_id,
            _flat(append.events, EVENT_DTYPE),
            append.expected_len,
            append.expected_version,
            append.append_id,
            append.late_events,
            deadline,
            dict(trace),
        )

    def append(self) -> Append:
        """The append, checked by the front-end."""
        events = np.frombuffer(self.events, EVENT_DTYPE)
        return Append(events, self.expected_len, self.expected_version, self.append_id, self.late_events)


class AppendBatch(Message):
    """Appends of several users. events: of all of them, EVENT_DTYPE; num_events: of each. options: of each, the other
    fields of an `Append` in their order.
    """

    user_ids: tuple[str, ...]
    events: bytes
    num_events: tuple[int, ...]
    options: tuple[tuple[int | None, bytes | None, str, str], ...]
    deadline: float | None
    trace: dict[str, str]

    @classmethod
    def of(
        cls, call: int, appends: Sequence[UserAppend], deadline: float | None, trace: Mapping[str, str]
    ) -> "AppendBatch":
        """What adds events to histories."""
        every = [each.append for each in appends]
        return cls(
            call,
            tuple(each.user_id for each in appends),
            _flat(np.concatenate([append.events for append in every]), EVENT_DTYPE),
            tuple(len(append.events) for append in every),
            tuple((a.expected_len, a.expected_version, a.append_id, a.late_events) for a in every),
            deadline,
            dict(trace),
        )

    def appends(self) -> list[UserAppend]:
        """The appends, checked by the front-end."""
        events = np.split(np.frombuffer(self.events, EVENT_DTYPE), np.cumsum(self.num_events)[:-1])
        return [
            UserAppend(user_id, Append(own, *options))
            for user_id, own, options in zip(self.user_ids, events, self.options, strict=True)
        ]


class GetHistory(Message):
    """See `HistoryRequest`."""

    request: HistoryRequest
    deadline: float | None
    trace: dict[str, str] = {}


class GetItems(Message):
    """See `ItemsRequest`. item_ids: int64."""

    model: str
    item_ids: bytes
    num_sampled: int
    seed: int
    trace: dict[str, str] = {}

    @classmethod
    def of(cls, call: int, request: ItemsRequest, trace: Mapping[str, str] = MappingProxyType({})) -> "GetItems":
        """What asks for items."""
        ids = _flat(request.item_ids, np.int64)
        return cls(call, request.model, ids, request.num_sampled, request.seed, dict(trace))

    def request(self) -> ItemsRequest:
        """The request, checked by the front-end."""
        return ItemsRequest(self.model, np.frombuffer(self.item_ids, np.int64), self.num_sampled, self.seed)


class Prefill(Message):
    """Encode a user's history."""

    user_id: str
    deadline: float | None
    model: str
    conditions: tuple[str, ...] = ()
    request_time_ms: int = 0
    trace: dict[str, str] = {}


class DeleteUser(Message):
    """Forget a user."""

    user_id: str
    deadline: float | None
    trace: dict[str, str] = {}


class Cancel(Message):
    """The caller of a call has left."""


class Scrape(Message):
    """Show the metrics of all processes."""

    open_metrics: bool = False


class Hello(Message):
    """A front-end has come and listens, and wants to know the status; it is about no call."""


class Alive(Message):
    """A front-end's loop turns: said every `BEAT_SECONDS`; it is about no call."""


class Serving(Message):
    """A front-end answers requests from now on; it is about no call."""


Notes: TypeAlias = tuple[int, float, float, float, str]
"""What the engine noted in the `Scope` of a request: history_len, log_s, fetch_s, device_s, decision."""


def notes_of(scope: Scope | None) -> Notes | None:
    """What is to be told of a scope; None if nothing was noted."""
    if scope is None or (scope.history_len < 0 and not scope.device_s):
        return None
    return scope.history_len, scope.log_s, scope.fetch_s, scope.device_s, scope.decision


def note(scope: Scope | None, notes: Notes | None) -> None:
    """Take over what another process has noted."""
    if scope is not None and notes is not None:
        scope.history_len, scope.log_s, scope.fetch_s, scope.device_s, scope.decision = notes


class Ranked(Message):
    """See `RankResult`. scores: float32; task_scores: float32, task by task; top, unknown, failed: uint32."""

    scores: bytes
    tasks: tuple[str, ...]
    task_scores: bytes
    top: bytes
    model_version: str
    cache: CacheInfo
    timings: Timings
    history_len: int
    unknown: bytes
    stale: bool
    failed: bytes
    rerank_skipped: RerankSkipped | Literal[""]
    members: tuple[MemberResult, ...]
    partial_merge: bool
    counters_version: int
    counters_stale: bool
    history_version: bytes
    items_version: str
    candidates: bytes
    candidate_texts: tuple[str, ...] = ()
    graph_version: str = ""
    notes: Notes | None = None

    @classmethod
    def of(cls, call: int, result: RankResult) -> "Ranked":
        """What answers with a result."""
        return cls(
            call,
            _flat(result.scores, np.float32),
            result.tasks,
            _flat(result.task_scores, np.float32),
            _flat(result.top, np.uint32),
            result.model_version,
            result.cache,
            result.timings,
            result.history_len,
            _flat(result.unknown, np.uint32),
            result.stale,
            _flat(result.failed, np.uint32),
            result.rerank_skipped,
            result.members,
            result.partial_merge,
            result.counters_version,
            result.counters_stale,
            result.history_version,
            result.items_version,
            _flat(result.candidates, np.int64),
            result.candidate_texts,
            result.graph_version,
        )

    def result(self) -> RankResult:
        """The result, as the engine gave it."""
        scores = np.frombuffer(self.scores, np.float32)
        return RankResult(
            scores=scores,
            tasks=self.tasks,
            task_scores=np.frombuffer(self.task_scores, np.float32).reshape(len(self.tasks), len(scores)),
            top=np.frombuffer(self.top, np.uint32),
            model_version=self.model_version,
            cache=self.cache,
            timings=self.timings,
            history_len=self.history_len,
            unknown=np.frombuffer(self.unknown, np.uint32),
            stale=self.stale,
            failed=np.frombuffer(self.failed, np.uint32),
            rerank_skipped=self.rerank_skipped,
            members=self.members,
            partial_merge=self.partial_merge,
            counters_version=self.counters_version,
            counters_stale=self.counters_stale,
            history_version=self.history_version,
            items_version=self.items_version,
            candidates=np.frombuffer(self.candidates, np.int64),
            candidate_texts=self.candidate_texts,
            graph_version=self.graph_version,
        )


class Part(Message):
    """See `RankPart`: of a call that has no answer yet. scores, task_scores: float32; unknown, failed: uint32."""

    first: int
    scores: bytes
    task_scores: bytes
    unknown: bytes
    failed: bytes
    tasks: tuple[str, ...]
    model_version: str

    @classmethod
    def of(cls, call: int, part: RankPart) -> "Part":
        """What tells scores."""
        return cls(
            call,
            part.first,
            _flat(part.scores, np.float32),
            _flat(part.task_scores, np.float32),
            _flat(part.unknown, np.uint32),
            _flat(part.failed, np.uint32),
            part.tasks,
            part.model_version,
        )

    def part(self) -> RankPart:
        """The part, as the engine gave it."""
        scores = np.frombuffer(self.scores, np.float32)
        return RankPart(
            first=self.first,
            scores=scores,
            task_scores=np.frombuffer(self.task_scores, np.float32).reshape(len(self.tasks), len(scores)),
            unknown=np.frombuffer(self.unknown, np.uint32),
            failed=np.frombuffer(self.failed, np.uint32),
            tasks=self.tasks,
            model_version=self.model_version,
        )


class Interested(Message):
    """See `Interests`. vectors: float32; nearest: of each condition int64, float32, and texts."""

    conditions: tuple[str, ...]
    vectors: bytes
    nearest: tuple[tuple[bytes, bytes, tuple[str, ...]], ...]
    model_version: str
    cache: CacheInfo
    timings: Timings
    history_len: int
    history_version: bytes
    stale: bool
    computed_ahead: bool

    @classmethod
    def of(cls, call: int, found: Interests) -> "Interested":
        """What answers with interests."""
        return cls(
            call,
            found.conditions,
            _flat(found.vectors, np.float32),
            tuple(
                (_flat(each.item_ids, np.int64), _flat(each.scores, np.float32), each.texts) for each in found.nearest
            ),
            found.model_version,
            found.cache,
            found.timings,
            found.history_len,
            found.history_version,
            found.stale,
            found.computed_ahead,
        )

    def interests(self) -> Interests:
        """The interests, as the engine gave them."""
        return Interests(
            conditions=self.conditions,
            vectors=np.frombuffer(self.vectors, np.float32).reshape(len(self.conditions), -1),
            nearest=tuple(
                Nearest(np.frombuffer(ids, np.int64), np.frombuffer(scores, np.float32), texts)
                for ids, scores, texts in self.nearest
            ),
            model_version=self.model_version,
            cache=self.cache,
            timings=self.timings,
            history_len=self.history_len,
            history_version=self.history_version,
            stale=self.stale,
            computed_ahead=self.computed_ahead,
        )


class Written(Message):
    """What an append is told."""

    told: Appended


class WrittenEach(Message):
    """What each append of a batch is told: None of one that failed, whose error is the next of `failed`."""

    told: tuple[Appended | None, ...]
    failed: "tuple[Failed, ...]"

    @classmethod
    def of(cls, call: int, outcomes: Sequence[AppendOutcome]) -> "WrittenEach":
        """What answers with outcomes."""
        told = tuple(outcome if isinstance(outcome, Appended) else None for outcome in outcomes)
        failed = tuple(Failed.of(call, outcome) for outcome in outcomes if isinstance(outcome, MFalconError))
        return cls(call, told, failed)

    def outcomes(self) -> list[AppendOutcome]:
        """The outcomes, as the engine gave them."""
        failed = iter(self.failed)
        return [next(failed).error() if told is None else told for told in self.told]


class Page(Message):
    """See `HistoryPage`. events: EVENT_DTYPE."""

    history_len: int
    version: bytes
    base: int
    first: int
    events: bytes
    page_version: bytes
    stale: bool
    states: tuple[KeptState, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, call: int, page: HistoryPage) -> "Page":
        """What answers with a page."""
        return cls(
            call,
            page.history_len,
            page.version,
            page.base,
            page.first,
            _flat(page.events, EVENT_DTYPE),
            page.page_version,
            page.stale,
            page.states,
            page.texts,
        )

    def page(self) -> HistoryPage:
        """The page, as the engine gave it."""
        return HistoryPage(
            self.history_len,
            self.version,
            self.base,
            self.first,
            np.frombuffer(self.events, EVENT_DTYPE),
            self.page_version,
            self.stale,
            self.states,
            self.texts,
        )


class Listed(Message):
    """See `Items`. item_ids: int64."""

    item_ids: bytes
    titles: tuple[str, ...]
    num_items: int
    texts: tuple[str, ...]

    @classmethod
    def of(cls, call: int, items: Items) -> "Listed":
        """What answers with items."""
        return cls(call, _flat(items.item_ids, np.int64), items.titles, items.num_items, items.texts)

    def items(self) -> Items:
        """The items, as the engine gave them."""
        return Items(np.frombuffer(self.item_ids, np.int64), self.titles, self.num_items, self.texts)


class Prefilled(Message):
    """What there was of the state."""

    cache: CacheInfo


class Deleted(Message):
    """The user is forgotten."""


class Scraped(Message):
    """The metrics, in the format that was asked for."""

    text: bytes


class Failed(Message):
    """The error of a call. name: its class; attributes: what it carries beside its text."""

    name: str
    text: str
    attributes: dict[str, Attribute]
    notes: Notes | None = None

    @classmethod
    def of(cls, call: int, error: MFalconError) -> "Failed":
        """What answers with an error; one of a class that is not in mfalcon/errors.py travels as that which it is a
        kind of.
        """
        name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ERRORS)
        attributes = {key: value for key, value in vars(error).items() if isinstance(value, Attribute)}
        return cls(call, name, str(error), attributes)

    def error(self) -> MFalconError:
        """The error, to be raised."""
        kind = ERRORS.get(self.name, EngineFailure)
        error = kind.__new__(kind, self.text)
        vars(error).update(self.attributes)
        return error


class Status(Message):
    """How the engine's process does. phase: LOADING or WAITING of server/handler.py, or SERVING. ready, load: see
    `RankingEngine`. models: the default one first, none before it serves.
    """

    phase: str
    ready: bool
    models: tuple[ModelInfo, ...]
    load: Load


SERVING: Final = "serving"
BEAT_SECONDS: Final = 1.0
"""Time after which either side says that it lives."""

Call: TypeAlias = (
    Rank | AskInterests | AppendEvents | AppendBatch | GetHistory | GetItems | Prefill | DeleteUser | Scrape
)
Question: TypeAlias = Call | Cancel | Hello | Serving | Alive
Answer: TypeAlias = (
    Ranked | Part | Interested | Written | WrittenEach | Page | Listed | Prefilled | Deleted | Scraped | Failed | Status
)

encode = msgspec.msgpack.Encoder().encode
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


def _flat(array: NDArray[Any], dtype: DTypeLike) -> bytes:
    return np.asarray(array, dtype=dtype).tobytes()
