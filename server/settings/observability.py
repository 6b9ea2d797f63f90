"""Settings of logs and traces."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from server.limits import MAX_TIMEOUT_MS
from server.logs import LogFormat

OFF: Final = "off"
STDERR: Final = "stderr"


@dataclass(frozen=True, slots=True)
class AccessLogOptions:
    """place: off, stderr or the path of a file. sample: the part of the requests that is logged; those that failed and
    slow ones always are. slow_s: longer than that is slow, 0 for never; slow ones are logged without a place too, on
    standard error.
    """

    place: str = OFF
    sample: float = 1.0
    slow_s: float = 0.0


class ObservabilitySettings(BaseModel):
    """What is written down of requests, where, and under which names."""

    log_user_ids: Literal["hashed", "plain"] = Field(
        default="hashed",
        description="How users appear in logs, traces and captures: hashed (by a keyed hash of the id) or plain.",
    )
    log_key_file: Path | None = Field(
        default=None,
        description="The key of that hash (16 bytes or more), read at the start, so that replicas and later servers "
        "give a user the same name; without it the key is random and ends with the server.",
    )
    access_log: str = Field(
        default=OFF,
        min_length=1,
        description="Where each request that ends is a line of JSON: off, stderr, or a file, which may be moved at any "
        "time.",
    )
    access_log_sample: float = Field(
        default=1.0, ge=0, le=1, description="The part of the answered requests that is logged; failed ones all are."
    )
    slow_log_ms: float = Field(
        default=0.0,
        ge=0,
        le=MAX_TIMEOUT_MS,
        allow_inf_nan=False,
        description="Log each request that takes longer in any case, with the times of its stages, where the access "
        "log is, or on standard error; 0 for none.",
    )

    trace_sample: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="The part of the requests that is traced, where their callers do not say whether they are; "
        "nothing is without otlp_endpoint.",
    )
    otlp_endpoint: str | None = Field(
        default=None, description="Where to send traces (OTLP over gRPC, http://HOST:PORT); needs the extra: trace."
    )
    log_format: LogFormat = Field(
        default="text", description="Form of the log on standard error: lines for people, or a JSON object a line."
    )

    @model_validator(mode="after")
    def _a_collector_knows_nobody(self) -> Self:
        if self.otlp_endpoint is not None and "@" in self.otlp_endpoint:
            raise ValueError(
                "otlp_endpoint: got an address with a user, must be http://HOST:PORT without one: gRPC sends none, and "
                "the log names the address; OTEL_EXPORTER_OTLP_HEADERS of the environment is sent"
            )
        return self

    @field_validator("access_log")
    @classmethod
    def _absolute(cls, place: str) -> str:
        """Front-ends do not run where they are started."""
        return place if place in (OFF, STDERR) else str(Path(place).absolute())

    @property
    def access_log_options(self) -> AccessLogOptions:
        """What is logged of requests, and where."""
        return AccessLogOptions(self.access_log, self.access_log_sample, self.slow_log_ms / 1000)
