"""JSON bodies of requests: their fields, and how one is read at a cost that the limits bound, not its sender.

Field names are those of proto/ranking.proto; 64-bit integers are JSON numbers. An item id may be text, and a number as
text is that number: who reads JSON in doubles writes one beyond 2**53 so. Counts come before values: what holds
more signs than any legal request is not parsed, a list that is too long is not looked at, and only the first thing that
is wrong is described. Lists are checked by pydantic some elements at a time, since nothing else runs during a call of
it, and become arrays.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
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
from mfalcon.text_ids import TextIds, compiled_hash
from mfalcon.types import (
    EVENT_DTYPE,
    Events,
    Floats,
    Ids,
)
from server import limits
from server.explain import VERSION_PATTERN, brief, refusal, unknown_field
from server.limits import Limits

MAX_FLOAT32 = float(np.finfo(np.float32).max)
ELEMENTS_AT_ONCE = 1_000
COMMA, OPENING_SIGNS = b",", b":[{"
"""A field, a list or an object costs ten times what another number of a list does."""
SIGNS_OF_AN_EVENT = 12
SIGNS_OF_A_CANDIDATE = 3
"""A comma, and two that its text may hold ("urn:isbn:0451450523")."""
DENSE_PER_CANDIDATE = 16
"""Numbers of a candidate, where there are as many candidates as may be. Who has more asks over gRPC."""
MAX_SHOWN_NAMES = 400
"""Signs of a message that names actions."""
SLACK = 1.25
"""Requests of so many times what is legal are still told which of their lists is too long."""

Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Uint64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
Uint32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
Version = Annotated[str, Field(pattern=VERSION_PATTERN)]
"""Of a history."""
Float32 = Annotated[float, Field(ge=-MAX_FLOAT32, le=MAX_FLOAT32)]

BodyT = TypeVar("BodyT", bound="RequestBody")
Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a body is read by. actions: the bits of actions, by name."""

    limits: Limits
    text_ids: TextIds = field(default_factory=lambda: TextIds(compiled_hash()))
    actions: Callable[[], Mapping[str, int]] = dict


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


def action_bits(actions: object, info: ValidationInfo[Reading | None]) -> object:
    """The bitmask of actions that go by their names; anything else as it is. Raises ValueError for another name."""
    if not isinstance(actions, list) or info.context is None:
        return actions
    known, bits = info.context.actions(), 0
    for name in actions:
        bit = known.get(name) if isinstance(name, str) else None
        if bit is None:
            names = ", ".join(known) or "none that all models number alike: give the bitmask"
            of_which = f"of which {brief(name)!r} is none ({names})"
            raise ValueError(f"a bitmask, or a list of names of actions, {of_which}"[:MAX_SHOWN_NAMES])
        bits |= 1 << bit
    return bits


Actions = Annotated[
    Uint32,
    BeforeValidator(action_bits),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
                {"type": "array", "items": {"type": "string"}},
            ]
        }
    ),
]
"""A bitmask, or names."""


class Body(BaseModel):
    """No "7" or true for an integer, no NaN, no field that we do not know."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class EventBody(Body):
    """One user action on one item."""

    item_id: ItemId
    actions: Actions = Field(
        default=0, description="Names of the model's actions, or a bitmask over them: bit i is actions[i]."
    )
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


def known_fields(kind: type[Body]) -> frozenset[str]:
    """The fields of an object, by their names in JSON."""
    return frozenset(field.alias or name for name, field in kind.model_fields.items())


def refuse_unknown(fields: object, known: Collection[str], path: tuple[str | int, ...] = ()) -> None:
    """InvalidInput for the first unknown field of an object that has more than there are; pydantic would describe
    each.
    """
    if isinstance(fields, dict) and len(fields) > len(known):
        name = next(name for name in fields if name not in known)
        raise unknown_field((*path, name), fields[name])


def each_alone(
    parts: Iterable[object], known: Collection[str], read: Callable[[object], Part]
) -> list[Part | InvalidInput]:
    """The parts of a batch, each read by itself: what is wrong with one is told of it alone. known: fields of each."""
    outcomes: list[Part | InvalidInput] = []
    for part in parts:
        try:
            refuse_unknown(part, known)
            outcomes.append(read(part))
        except ValidationError as error:
            details = error.errors(include_url=False)[0]
            outcomes.append(refusal(details, tuple(details["loc"])))
        except InvalidInput as error:
            outcomes.append(error)
    return outcomes


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
    refuse_unknown(fields, known_fields(kind))
    try:
        return kind.model_validate(fields, context=reading)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        raise refusal(details, tuple(details["loc"])) from error
