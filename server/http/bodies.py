"""JSON bodies of requests: their fields, and how one is read at a cost that the limits bound, not its sender.

Field names are those of proto/ranking.proto; 64-bit integers are JSON numbers. An item id may be text, and a number as
text is that number: who reads JSON in doubles writes one beyond 2**53 so. Counts come before values: what holds
more signs than any legal request is not parsed, a list that is too long is not looked at, and only the first thing that
is wrong is described. Lists are checked by pydantic some elements at a time, since nothing else runs during a call of
it, and become arrays.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    GetPydanticSchema,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
)
from pydantic_core import core_schema

from mfalcon.errors import InvalidInput
from mfalcon.interests import InterestsRequest
from mfalcon.types import (
    EVENT_DTYPE,
    Append,
    DenseFeatures,
    Events,
    Floats,
    Ids,
    RankRequest,
    Rerank,
    Retrieve,
    UserAppend,
    no_events,
    no_ids,
)
from server import limits
from server.explain import VERSION_PATTERN, refusal, unknown_field
from server.limits import MAX_CONDITIONS, MAX_CONTEXT_ENTRIES, MAX_DENSE_FEATURES, Limits
from server.text_ids import TextIds

MAX_FLOAT32 = float(np.finfo(np.float32).max)
ELEMENTS_AT_ONCE = 1_000
COMMA, OPENING_SIGNS = b",", b":[{"
"""A field, a list or an object costs ten times what another number of a list does."""
SIGNS_OF_AN_EVENT = 9
SIGNS_OF_A_CANDIDATE = 3
"""A comma, and two that its text may hold ("urn:isbn:0451450523")."""
DENSE_PER_CANDIDATE = 16
"""Numbers of a candidate, where there are as many candidates as may be. Who has more asks over gRPC."""
SLACK = 1.25
"""Requests of so many times what is legal are still told which of their lists is too long."""

Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Uint64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
Uint32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
Version = Annotated[str, Field(pattern=VERSION_PATTERN)]
"""Of a history."""
Float32 = Annotated[float, Field(ge=-MAX_FLOAT32, le=MAX_FLOAT32)]

BodyT = TypeVar("BodyT", bound="RequestBody")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a body is read by."""

    limits: Limits
    text_ids: TextIds = field(default_factory=TextIds)


def item_number(item_id: object, info: ValidationInfo[Reading | None]) -> object:
    """The number of an id that is text; anything else as it is. Raises ValueError, with what it must be."""
    if isinstance(item_id, str) and info.context is not None:
        return info.context.text_ids.one(item_id)
    return item_id


ItemId = Annotated[
    Int64,
    BeforeValidator(item_number),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, {"type": "string"}]}),
]
"""A number of 64 bits, or text."""


class Body(BaseModel):
    """No "7" or true for an integer, no NaN, no field that we do not know."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class EventBody(Body):
    """One user action on one item."""

    item_id: ItemId
    actions: Uint32 = Field(default=0, description="Bitmask over the model's actions: bit i is actions[i].")
    value: Float32 = Field(default=0.0, description="A rating, a dwell time: whatever the model was trained on.")
    time_ms: Int64 = Field(description="Milliseconds since 1970-01-01T00:00:00Z.")


def list_as_array(
    element: object,
    convert: Callable[[Any], NDArray[Any]],
    check_num: Callable[[list[object], Limits], None],
    within: tuple[str, ...] = (),
) -> GetPydanticSchema:
    """The annotation of an array that is a list of `element` in JSON; its number is checked first. within: the fields
    of the body that it is in.
    """

    def checked(value: object, check: ValidatorFunctionWrapHandler, info: ValidationInfo[Reading | None]) -> object:
        name = info.field_name
        assert name is not None
        if not isinstance(value, list):
            return check(value)  # which refuses it
        if info.context is not None:
            check_num(value, info.context.limits)
        parts = []
        for start in range(0, len(value), ELEMENTS_AT_ONCE):
            part = value[start : start + ELEMENTS_AT_ONCE]
            if element is ItemId and info.context is not None and set(map(type, part)) == {str}:
                parts.append(info.context.text_ids.all(part, ".".join((*within, name)), start))
                continue
            if element is EventBody:
                for number, fields in enumerate(part, start):
                    refuse_unknown(fields, EventBody.model_fields, (name, number))
            try:
                parts.append(convert(check(part)))
            except ValidationError as error:
                details = error.errors(include_url=False)[0]
                at, *path = details["loc"]
                assert isinstance(at, int)
                raise refusal(details, (*within, name, start + at, *path)) from error
        return np.concatenate(parts) if parts else convert([])

    return GetPydanticSchema(
        lambda source, schema_of: core_schema.with_info_wrap_validator_function(
            checked,
            schema_of(Annotated[list[element], FailFast()]),  # type: ignore[valid-type]
        )
    )


def refuse_unknown(fields: object, known: Collection[str], path: tuple[str | int, ...] = ()) -> None:
    """InvalidInput for the first unknown field of an object that has more than there are; pydantic would describe
    each.
    """
    if isinstance(fields, dict) and len(fields) > len(known):
        name = next(name for name in fields if name not in known)
        raise unknown_field((*path, name), fields[name])


def to_ids(values: list[int]) -> Ids:
    """[num_values]."""
    return np.array(values, dtype=np.int64)


def to_events(bodies: list[EventBody]) -> Events:
    """[num_events] of EVENT_DTYPE, not yet checked against limits."""
    return np.array([(b.item_id, b.actions, b.value, b.time_ms) for b in bodies], dtype=EVENT_DTYPE)


def to_floats(values: list[float]) -> Floats:
    """[num_values]."""
    return np.array(values, dtype=np.float32)


def check_names(names: object) -> object:
    """Their number."""
    if isinstance(names, list):
        limits.check_num_names(names)
    return names


def check_num_conditions(names: object) -> object:
    """Their number."""
    if isinstance(names, list):
        limits.check_num_conditions(names)
    return names


def check_context(context: object) -> object:
    """Its number of entries."""
    if isinstance(context, dict):
        limits.check_num_context(context)
    return context


def only_known(kind: type[Body]) -> Callable[[object, ValidationInfo[Reading | None]], object]:
    """A check of an object within a body before pydantic's own."""

    def check(fields: object, info: ValidationInfo[Reading | None]) -> object:
        assert info.field_name is not None
        refuse_unknown(fields, kind.model_fields, (info.field_name,))
        return fields

    return check


class RequestBody(Body):
    """A body that has a longest legal form."""

    @classmethod
    def num_signs(cls, most: Limits) -> int:
        """Commas, colons and opening brackets of a body with the longest legal lists, at most."""
        raise NotImplementedError

    @classmethod
    def num_commas(cls, most: Limits) -> int:
        """Further commas, between numbers."""
        return 0


class RerankBody(Body):
    """A wish for a top of candidates that are less alike."""

    method: str = Field(description="mmr, dpp, msd, or llm, a language model if the server has one.")
    strength: Float32 = Field(description="From 0, the order of the scores, to 1, diversity alone; 0 for llm.")
    depth: Uint32 = Field(
        default=0, description="How many of the best-scored candidates may change their places; 0 for 200, llm 20."
    )
    tail_weight: Float32 = Field(
        default=0.0,
        description="From 0 to 1, how much items that were seldom acted on are lifted; for a model that counts_items.",
    )

    def wish(self) -> Rerank:
        """The same, its values not yet checked against limits."""
        return Rerank(self.method, self.strength, self.depth, self.tail_weight)


class DenseBody(Body):
    """Numbers of each candidate that the model reads beside its id."""

    names: Annotated[list[str], BeforeValidator(check_names)] = Field(
        description="Some of the model's dense_features, in any order."
    )
    values: Annotated[
        Floats,
        list_as_array(
            Float32,
            to_floats,
            lambda values, most: limits.check_num_values(values, DENSE_PER_CANDIDATE * most.max_candidates),
            within=("features",),
        ),
    ] = Field(description="Feature f of candidate c is at c * len(names) + f.")


class RetrieveBody(Body):
    """What proposes the candidates of a request."""

    conditions: Annotated[list[str], BeforeValidator(check_num_conditions)] = Field(
        description="Some of the model's conditions: the nearest items of each in turn, each item once."
    )
    k: Uint32 = Field(description="Most candidates.")
    model: str = Field(default="", description="A model that has conditions; empty is the first one of those.")

    def wish(self) -> Retrieve:
        """The same, its values not yet checked against limits."""
        return Retrieve(self.model, tuple(self.conditions), self.k)


class RankBody(RequestBody):
    """Candidates to score for a user."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "user_id": "186",
                    "candidates": [50, 181, 258],
                    "top_k": 2,
                    "recent_events": [{"item_id": 7, "actions": 8, "value": 4.0, "time_ms": 893286638000}],
                    "context": {"gender": 1},
                }
            ]
        }
    )

    user_id: str
    candidates: Annotated[
        Ids, list_as_array(ItemId, to_ids, lambda ids, most: limits.check_candidates(ids, most.max_candidates))
    ] = Field(
        default_factory=no_ids,
        description="Item ids, numbers or text, any order, duplicates allowed; none with `retrieve`.",
        json_schema_extra={"default": []},
    )
    top_k: Uint32 = Field(default=0, description="How many positions `top` names; 0 for none.")
    request_time_ms: Int64 = Field(default=0, description="The time that the model sees as now; 0 is the server's.")
    recent_events: Annotated[
        Events,
        list_as_array(
            EventBody,
            to_events,
            lambda events, most: limits.check_num_events("recent_events", events, 0, most.max_recent_events),
        ),
    ] = Field(
        default_factory=no_events,
        description="Events after the stored history that this request alone sees, in time order.",
        json_schema_extra={"default": []},
    )
    context: Annotated[dict[str, Int64], BeforeValidator(check_context)] = Field(
        default={}, description="Request-context features by name."
    )
    features: Annotated[DenseBody | None, BeforeValidator(only_known(DenseBody))] = Field(
        default=None, description="Numbers of the candidates, for a model that reads any."
    )
    model: str = Field(default="", description="The model's name; empty is the default one.")
    allow_partial: bool = Field(
        default=False,
        description="Where time is short the scores of the first candidates are welcome, as many as `num_scored` says.",
    )
    recompute: bool = Field(
        default=False,
        description="Encode the history anew; no KV state is used or changed, and the scores are the same.",
    )
    rerank: Annotated[RerankBody | None, BeforeValidator(only_known(RerankBody))] = Field(
        default=None, description="Another order of `top`; without it that is the order of the scores."
    )
    retrieve: Annotated[RetrieveBody | None, BeforeValidator(only_known(RetrieveBody))] = Field(
        default=None, description="Rank what a model with conditions proposes; the answer says which items they were."
    )

    @classmethod
    def num_signs(cls, most: Limits) -> int:
        """Of candidates, names of features, events, context, and texts that hold nothing else."""
        texts = 2 * most.max_user_id_bytes + MAX_DENSE_FEATURES + 2 * MAX_CONDITIONS
        candidates = SIGNS_OF_A_CANDIDATE * most.max_candidates
        return candidates + SIGNS_OF_AN_EVENT * most.max_recent_events + 2 * MAX_CONTEXT_ENTRIES + texts

    @classmethod
    def num_commas(cls, most: Limits) -> int:
        """Of the candidates' features."""
        return DENSE_PER_CANDIDATE * most.max_candidates

    def request(self) -> RankRequest:
        """The request, its values not yet checked against limits."""
        return RankRequest(
            user_id=self.user_id,
            candidates=self.candidates,
            top_k=self.top_k,
            request_time_ms=self.request_time_ms,
            recent_events=self.recent_events,
            context=self.context,
            allow_partial=self.allow_partial,
            recompute=self.recompute,
            rerank=self.rerank.wish() if self.rerank else None,
            dense=DenseFeatures(tuple(self.features.names), self.features.values) if self.features else DenseFeatures(),
            retrieve=self.retrieve.wish() if self.retrieve else None,
        )


class InterestsBody(RequestBody):
    """Conditions to ask of a user."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_id": "186", "conditions": ["like", "like:Comedy"], "top_items": 10}]}
    )

    user_id: str
    conditions: Annotated[list[str], BeforeValidator(check_num_conditions)] = Field(
        default=[], description="Some of the model's conditions, any order, duplicates allowed; none for all of them."
    )
    top_items: Uint32 = Field(default=0, description="How many of the nearest items to tell of each; 0 for none.")
    request_time_ms: Int64 = Field(default=0, description="The time that the model sees as now; 0 is the server's.")
    recent_events: Annotated[
        Events,
        list_as_array(
            EventBody,
            to_events,
            lambda events, most: limits.check_num_events("recent_events", events, 0, most.max_recent_events),
        ),
    ] = Field(
        default_factory=no_events,
        description="Events after the stored history that this request alone sees, in time order.",
        json_schema_extra={"default": []},
    )
    model: str = Field(default="", description="A model that has conditions; empty is the first one of those.")

    @classmethod
    def num_signs(cls, most: Limits) -> int:
        """Of events and conditions, and texts that hold nothing else."""
        return SIGNS_OF_AN_EVENT * most.max_recent_events + 2 * MAX_CONDITIONS + 2 * most.max_user_id_bytes

    def request(self) -> InterestsRequest:
        """The request, its values not yet checked against limits."""
        asked = self.user_id, tuple(self.conditions), self.top_items
        return InterestsRequest(*asked, self.request_time_ms, self.recent_events)


class AppendEventsBody(RequestBody):
    """Events to add to a user's history."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"events": [{"item_id": 50, "actions": 16, "value": 5.0, "time_ms": 893286700000}], "expected_len": 12}
            ]
        }
    )

    events: Annotated[
        Events,
        list_as_array(
            EventBody,
            to_events,
            lambda events, most: limits.check_num_events("events", events, 1, most.max_events_per_append),
        ),
    ] = Field(description="In time order; see late_events.")
    expected_len: Uint64 | None = Field(
        default=None, description="Length of the history that you know; if it is another, nothing is written."
    )
    expected_version: Version | None = Field(
        default=None, description="Version of the history that you know; if it is another, nothing is written."
    )
    append_id: str = Field(default="", description="Your name of this append: asked again, it is not written twice.")
    late_events: str = Field(
        default="", description="What becomes of events older than the newest: reject, clamp or insert."
    )

    def append(self) -> Append:
        """In the project's words."""
        version = None if self.expected_version is None else bytes.fromhex(self.expected_version)
        return Append(self.events, self.expected_len, version, self.append_id, self.late_events)

    @classmethod
    def num_signs(cls, most: Limits) -> int:
        """Of the events, and of the names around them."""
        return SIGNS_OF_AN_EVENT * most.max_events_per_append + SIGNS_OF_AN_EVENT


class UserAppendBody(AppendEventsBody):
    """An append of a batch."""

    user_id: str

    def user_append(self) -> UserAppend:
        """In the project's words."""
        return UserAppend(self.user_id, self.append())


def each_append(
    appends: object, check: ValidatorFunctionWrapHandler, info: ValidationInfo[Reading | None]
) -> Sequence[UserAppend | InvalidInput]:
    """The appends of a batch, each read by itself: what is wrong with one is told of it alone. Their numbers, and those
    of their events, are checked first.
    """
    if not isinstance(appends, list) or info.context is None:
        check(appends)  # which refuses it
        return []
    limits.check_num_appends(appends, info.context.limits)
    events = [part["events"] for part in appends if isinstance(part, dict) and isinstance(part.get("events"), list)]
    limits.check_num_batched(sum(map(len, events)), info.context.limits)
    read: list[UserAppend | InvalidInput] = []
    for part in appends:
        try:
            refuse_unknown(part, UserAppendBody.model_fields)
            read.append(UserAppendBody.model_validate(part, context=info.context).user_append())
        except ValidationError as error:
            details = error.errors(include_url=False)[0]
            read.append(refusal(details, tuple(details["loc"])))
        except InvalidInput as error:
            read.append(error)
    return read


class AppendBatchBody(RequestBody):
    """Events to add to the histories of several users."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "appends": [
                        {"user_id": "186", "events": [{"item_id": 50, "actions": 16, "time_ms": 893286700000}]},
                        {"user_id": "187", "events": [{"item_id": 7, "actions": 8, "time_ms": 893286701000}]},
                    ]
                }
            ]
        }
    )

    appends: Annotated[
        Sequence[UserAppend | InvalidInput],
        GetPydanticSchema(
            lambda source, schema_of: core_schema.with_info_wrap_validator_function(
                each_append, schema_of(list[UserAppendBody])
            )
        ),
    ] = Field(description="Of different users.")

    @classmethod
    def num_signs(cls, most: Limits) -> int:
        """Of all events, and of the names around each append."""
        return AppendEventsBody.num_signs(most) + 2 * SIGNS_OF_AN_EVENT * most.max_appends_per_batch


def parse(kind: type[BodyT], raw: bytes, reading: Reading) -> BodyT:
    """A body of a kind, its counts checked. InvalidInput says what is wrong first."""
    most = reading.limits
    max_signs, max_commas = int(SLACK * kind.num_signs(most)), int(SLACK * kind.num_commas(most))
    if len(raw) > max_signs:
        num_commas, num_opening = raw.count(COMMA), sum(map(raw.count, OPENING_SIGNS))
        if num_opening + max(0, num_commas - max_commas) > max_signs:
            more = f" and {max_commas} commas" if max_commas else ""
            limit = f"at most {max_signs} commas, colons and brackets{more}: no legal request has more"
            raise InvalidInput("body", num_commas + num_opening, limit)
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("Not enough memory"):  # orjson has no other way to say it
            raise MemoryError from error
        # and says that it failed to allocate where lists within lists do not end, of a kilobyte too
        why = "unexpected end of data" if error.msg == "failed to allocate memory" else error.msg
        raise InvalidInput("body", why, f"JSON (character {error.pos})") from error
    refuse_unknown(fields, kind.model_fields)
    try:
        return kind.model_validate(fields, context=reading)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        raise refusal(details, tuple(details["loc"])) from error
