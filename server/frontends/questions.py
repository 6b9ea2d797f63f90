"""What a front-end says to the engine's process."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import msgspec
import numpy as np

from mfalcon.interests import InterestsRequest
from mfalcon.types import (
    EVENT_DTYPE,
    Append,
    DenseFeatures,
    HistoryRequest,
    ItemsRequest,
    RankRequest,
    Rerank,
    Retrieve,
    Returns,
    UserAppend,
)
from server.frontends.message import Message, flat


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
            flat(request.candidates, np.int64),
            request.top_k,
            request.request_time_ms,
            flat(request.recent_events, EVENT_DTYPE),
            dict(request.context),
            request.allow_partial,
            request.recompute,
            request.rerank,
            (request.dense.names, flat(request.dense.values, np.float32)),
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
    trace: dict[str, str] = msgspec.field(default_factory=dict)

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
        events = flat(request.recent_events, EVENT_DTYPE)
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
            flat(append.events, EVENT_DTYPE),
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
            flat(np.concatenate([append.events for append in every]), EVENT_DTYPE),
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
    trace: dict[str, str] = msgspec.field(default_factory=dict)


class GetItems(Message):
    """See `ItemsRequest`. item_ids: int64."""

    model: str
    item_ids: bytes
    num_sampled: int
    seed: int
    trace: dict[str, str] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, call: int, request: ItemsRequest, trace: Mapping[str, str] = MappingProxyType({})) -> "GetItems":
        """What asks for items."""
        ids = flat(request.item_ids, np.int64)
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
    trace: dict[str, str] = msgspec.field(default_factory=dict)


class DeleteUser(Message):
    """Forget a user."""

    user_id: str
    deadline: float | None
    trace: dict[str, str] = msgspec.field(default_factory=dict)


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


Call: TypeAlias = (
    Rank | AskInterests | AppendEvents | AppendBatch | GetHistory | GetItems | Prefill | DeleteUser | Scrape
)
Question: TypeAlias = Call | Cancel | Hello | Serving | Alive
