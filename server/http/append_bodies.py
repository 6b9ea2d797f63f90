"""JSON bodies of appends, one class each. Their parts are in `server/http/fields.py`."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import (
    ConfigDict,
    Field,
    GetPydanticSchema,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import core_schema

from mfalcon.errors import InvalidInput
from mfalcon.types import (
    Append,
    Events,
    UserAppend,
)
from server import limits
from server.http.fields import (
    SIGNS_OF_AN_EVENT,
    EventBody,
    Reading,
    RequestBody,
    Uint64,
    Version,
    each_alone,
    list_as_array,
    to_events,
)
from server.limits import Limits


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
    """The appends of a batch (`each_alone`). Their numbers, and those of their events, are checked first."""
    if not isinstance(appends, list) or info.context is None:
        check(appends)  # which refuses it
        return []
    limits.check_num_appends(appends, info.context.limits)
    events = [part["events"] for part in appends if isinstance(part, dict) and isinstance(part.get("events"), list)]
    limits.check_num_batched(sum(map(len, events)), info.context.limits)

    def read(part: object) -> UserAppend:
        return UserAppendBody.model_validate(part, context=info.context).user_append()

    return each_alone(appends, UserAppendBody.model_fields, read)


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
