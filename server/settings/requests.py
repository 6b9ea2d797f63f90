"""Settings that bound one request."""

from typing import Self

from pydantic import BaseModel, Field, model_validator

from mfalcon.types import MAX_USER_ID_BYTES
from server.limits import MAX_TIMEOUT_MS
from server.settings.kinds import AtLeastOne


class RequestSettings(BaseModel):
    """Its time, its parts and its bytes, over either transport."""

    request_timeout_ms: int = Field(
        default=10_000,
        ge=1,
        le=MAX_TIMEOUT_MS,
        description="Longest time for one request, in ms; callers may ask for less.",
    )
    max_refusals_per_s: float = Field(
        default=500.0,
        ge=1,
        le=10**6,
        description="Answers a second that name a fault of the caller, over each transport and in each process; more "
        "wait for their turn, 2 s at most, so that a flood of wrong requests leaves time for right ones.",
    )
    max_candidates: AtLeastOne = Field(default=16_384, description="Most candidates of one request.")
    max_ranks_per_batch: AtLeastOne = Field(default=256, description="Most ranks of one batch of ranks.")
    max_appends_per_batch: AtLeastOne = Field(default=1_000, description="Most users of one batch of appends.")
    max_events_per_append: AtLeastOne = Field(default=10_000, description="Most events of one append.")
    max_recent_events: int = Field(default=1_024, ge=0, description="Most events that ride with one rank request.")
    max_events_per_page: int = Field(
        default=1_000, ge=1, le=10_000, description="Most events of one page of a history (GetHistory)."
    )
    max_user_id_bytes: int = Field(
        default=MAX_USER_ID_BYTES, ge=1, le=MAX_USER_ID_BYTES, description="Longest user id, in bytes of UTF-8."
    )
    max_message_bytes: int = Field(
        default=4 * 2**20, ge=1_024, le=2**30, description="Largest request and answer, in bytes, on either transport."
    )
    max_metadata_bytes: int = Field(
        default=16 * 2**10,
        ge=1_024,
        le=2**20,
        description="Largest metadata of a gRPC call, and head of an HTTP request, in bytes.",
    )

    @model_validator(mode="after")
    def _candidates_fit_a_message(self) -> Self:
        if self.max_candidates * 8 > self.max_message_bytes:
            raise ValueError(
                f"max_candidates: got {self.max_candidates}, must be at most {self.max_message_bytes // 8} "
                f"(8 bytes each) while max_message_bytes is {self.max_message_bytes}"
            )
        return self
