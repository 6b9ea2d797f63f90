"""Settings of Redis, and of the KV states that are kept there."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr

from server.settings.kinds import AtLeastOne


class RedisSettings(BaseModel):
    """One connection for the event log and for KV states. docs/state.md explains."""

    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis for the event log and KV states (redis, rediss, redis+sentinel, redis+cluster); "
        "everything stays on this machine if not given.",
    )
    ready_without_redis: bool = Field(
        default=False, description="Serve before Redis has answered for the first time, if there is one."
    )
    redis_prefix: str = Field(
        default="mfalcon", pattern=r"^[^{}\s]{1,64}$", description="First part of every key in Redis."
    )
    redis_timeout_ms: int = Field(
        default=40,
        ge=5,
        le=10_000,
        description="Longest wait for Redis while ranking, in ms; a request in a hurry waits less.",
    )
    redis_write_timeout_ms: int = Field(
        default=1_000, ge=5, le=60_000, description="Longest wait for Redis while appending or deleting, in ms."
    )
    redis_connections: AtLeastOne = Field(default=32, description="Most calls to Redis at once, all nodes together.")
    redis_state_dtype: Literal["auto", "bfloat16", "int8", "float16", "float32", "float64"] = Field(
        default="auto",
        description="Type of the KV states in Redis; auto is the type of dtype, and a narrower one moves scores.",
    )
    redis_state_ttl_s: float = Field(
        default=86_400.0, ge=1, le=10**8, description="Seconds that a KV state in Redis lives after its last use."
    )
    redis_budget_mb: int = Field(
        default=0, ge=0, description="Memory of Redis, in MiB, past which no KV state is written; 0 leaves it to Redis."
    )
    redis_secret_file: Path | None = Field(
        default=None,
        description="File with a secret that signs event logs and KV states, for a Redis that others can write to.",
    )
    redis_former_secret_file: Path | None = Field(
        default=None,
        description="File with the secret before: logs that it signed are read too, and signed anew by appends.",
    )
    write_behind_mb: int = Field(
        default=256, ge=0, description="Memory for KV states that wait to be written to Redis, in MiB."
    )
