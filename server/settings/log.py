"""Settings of the event log: where histories live, what they survive, and how long they are kept."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from mfalcon.types import LateEvents
from server.settings.kinds import NotNegative
from server.settings.redis import RedisSettings


class LogSettings(RedisSettings):
    """Of a log in this process, in a file or in Redis. docs/state.md explains."""

    event_log: Literal["auto", "memory", "file", "redis"] = Field(
        default="auto",
        description="Where histories live: in this process, in a file on this machine's disk, or in Redis. auto is "
        "Redis where there is a redis_url, the file where there is a log_dir, else memory.",
    )
    log_dir: Path | None = Field(
        default=None, description="Directory of the event log in a file, which belongs to this server alone."
    )
    append_durability: Literal["auto", "memory", "fsync", "replica"] = Field(
        default="auto",
        description="What an acknowledged event survives: the end of this process (memory), of the machine of the log "
        "too (fsync), or its loss, because a replica of Redis has it (replica). auto is fsync for a file, and memory "
        "elsewhere, which in Redis is as much as Redis keeps by itself.",
    )
    log_budget_mb: Literal["auto"] | NotNegative = Field(
        default="auto",
        description="What histories in this process or in a file may take, in MiB; 0 for no bound. auto is a quarter "
        "of the memory that is left at start, or 80 % of the disk.",
    )
    log_max_users: int = Field(
        default=0, ge=0, description="Most users with a history in this process or in a file; 0 for no bound."
    )
    log_max_idle_s: float = Field(
        default=0.0,
        ge=0,
        le=10**9,
        description="Seconds after which a user whom nobody asked for is deleted from the log in this process or in a "
        "file; 0 keeps users for ever.",
    )
    log_when_full: Literal["refuse", "evict"] = Field(
        default="refuse",
        description="At log_budget_mb or log_max_users: refuse new users, or delete those who were not asked for "
        "longest.",
    )
    log_unreachable: Literal["refuse", "stale"] = Field(
        default="refuse",
        description="While the log in Redis cannot be asked: refuse to rank, or rank from the last history verified "
        "and say so.",
    )
    damaged_log: Literal["refuse", "start-empty"] = Field(
        default="refuse",
        description="Where something else lies in the place of a user's log, in Redis or a file: refuse what is asked "
        "for him until somebody restores or deletes it, or move it away and begin an empty log. The first gives up no "
        "acknowledged event.",
    )
    quarantine_days: float = Field(
        default=7.0, gt=0, le=3_650, description="Days that a damaged log which was moved away is kept."
    )
    log_max_age_days: float = Field(
        default=0.0,
        ge=0,
        le=36_500,
        description="Days after its last append that a log in Redis is deleted, with states and counters, as by "
        "DeleteUser; 0 keeps logs for ever.",
    )
    require_signed_logs: bool = Field(
        default=False,
        description="Take an event log that is not signed for damaged; needs redis_secret_file. Every append signs.",
    )
    late_events: LateEvents = Field(
        default="insert",
        description="What becomes of an event that is older than the newest of its user, if the append does not say: "
        "insert (it goes where its time belongs), clamp (it is given that one's time) or reject (its append fails).",
    )
    max_clock_skew_s: float = Field(
        default=300,
        ge=0,
        le=10**9,
        description="Seconds by which times in requests may lie in the future of this server's clock; others are "
        "refused. 0 for any time.",
    )
    log_max_events: int = Field(
        default=16_384,
        ge=1,
        le=10**6,
        description="Newest events of a user that a log keeps for certain: at least the longest window served, with "
        "room for the windows of models to come.",
    )
    log_slack_events: int = Field(
        default=1_024, ge=0, description="Events that a log keeps beyond log_max_events before it is cut."
    )
    counters_max_items: int = Field(
        default=10_000_000,
        ge=1,
        le=10**9,
        description="Items whose events are counted, where a model reads streaming counters; others are left out.",
    )
    log_cache_mb: int = Field(
        default=256, ge=0, description="Memory for verified copies of histories in Redis or in a file, in MiB."
    )

    @property
    def log_place(self) -> Literal["memory", "file", "redis"]:
        """Where histories live."""
        if self.event_log != "auto":
            return self.event_log
        if self.redis_url is not None:
            return "redis"
        return "memory" if self.log_dir is None else "file"

    @property
    def durability(self) -> Literal["memory", "fsync", "replica"]:
        """What an acknowledged event survives."""
        if self.append_durability != "auto":
            return self.append_durability
        return "fsync" if self.log_place == "file" else "memory"

    @model_validator(mode="after")
    def _the_log_has_one_place(self) -> Self:
        if self.event_log == "auto" and self.redis_url is not None and self.log_dir is not None:
            raise ValueError("event_log: got auto, must be file or redis while both redis_url and log_dir are given")
        if self.event_log == "file" and self.log_dir is None:
            raise ValueError("event_log: got file, must not be file while log_dir is not given")
        if self.log_dir is not None and self.log_place != "file":
            raise ValueError(f"log_dir: got {self.log_dir}, must not be given while event_log is {self.event_log}")
        if self.log_place == "file" and self.durability == "replica":
            raise ValueError(
                "append_durability: got replica, must be memory or fsync while the event log is in a file: no other "
                "machine has a copy of it"
            )
        if self.log_place == "memory" and self.durability != "memory":
            raise ValueError(
                f"append_durability: got {self.durability}, must be memory while the event log is in this process"
            )
        return self

    @model_validator(mode="after")
    def _a_log_in_redis_has_one(self) -> Self:
        if self.event_log == "redis" and self.redis_url is None:
            raise ValueError("event_log: got redis, must be memory, file or auto while redis_url is not given")
        if self.redis_secret_file is not None and self.redis_url is None:
            raise ValueError("redis_secret_file: got a file, must not be given without redis_url")
        if self.redis_secret_file is None:
            if self.require_signed_logs:
                raise ValueError("require_signed_logs: got true, must be false while redis_secret_file is not given")
            if self.redis_former_secret_file is not None:
                raise ValueError("redis_former_secret_file: got a file, must not be given without redis_secret_file")
        return self
