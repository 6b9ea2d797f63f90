"""Every setting of the server, in one place: flags over environment (MFALCON_...) over a TOML file over defaults."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from mfalcon.errors import ConfigError
from mfalcon.types import MAX_USER_ID_BYTES, LateEvents, MergeMethod
from server.explain import refusal
from server.limits import MAX_TIMEOUT_MS
from server.logs import LogFormat
from server.settings.access import AccessSettings
from server.settings.capture import CaptureSettings
from server.settings.console import ConsoleSettings
from server.settings.items import ItemSettings
from server.settings.observability import ObservabilitySettings
from server.settings.tls import File, TlsSettings, is_loopback

PREFIX = "MFALCON_"
OTHER_VARIABLES = frozenset({"config", "token_file"})
"""Variables of ours that are no setting: MFALCON_CONFIG names the TOML file, MFALCON_TOKEN_FILE is of commands that
call a server."""
KUBERNETES_LINK = re.compile(r"(service_(host|port)|port)(_.*)?")
"""Kubernetes sets MFALCON_SERVICE_HOST, MFALCON_PORT_50051_TCP and so on beside a Service called mfalcon."""

Port = Annotated[int, Field(ge=0, le=65_535)]
AtLeastOne = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


class ModelConfig(BaseModel):
    """A table of [[models]]: one model of several."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str | None = Field(default=None, min_length=1, max_length=128)
    checkpoint: Path
    share: float | None = Field(default=None, gt=0, le=1)
    """Of the memory budgets; an equal part of what the others leave if not given."""
    items_dir: Path | None = None
    """Of deltas of its item rows."""
    graph_dir: Path | None = None
    """Of its graph vectors."""


MOST_MEMBERS = 16


class MemberConfig(BaseModel):
    """A table of [[ensembles.members]]: a model of this server, or with an address of another replica."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=128)
    address: str | None = Field(default=None, min_length=1, max_length=512)
    weight: float = Field(default=1.0, gt=0, le=1e6)
    token_file: Annotated[Path, AfterValidator(Path.absolute)] | None = None
    """Holds the bearer token for that replica, which may be exchanged."""
    tls_ca_file: File | None = None
    """PEM of the authorities that sign that replica's certificate: TLS is spoken to it then."""
    tls_cert_file: File | None = None
    """PEM of this server's certificate as a client of that replica, where it asks for one; with its key."""
    tls_key_file: File | None = None

    @model_validator(mode="after")
    def _tls_is_for_somebody_else(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError(
                f"members: {self.model}: tls_cert_file, tls_key_file: got one of them, must be both or none"
            )
        if self.tls_cert_file is not None and self.tls_ca_file is None:
            raise ValueError(f"members: {self.model}: tls_cert_file: got a file, must not be given without tls_ca_file")
        if self.tls_ca_file is not None and self.address is None:
            raise ValueError(f"members: {self.model}: tls_ca_file: got a file, must not be given without an address")
        return self

    @model_validator(mode="after")
    def _a_token_is_for_somebody_else(self) -> Self:
        if self.token_file is not None and self.address is None:
            raise ValueError(
                f"ensembles: members: {self.model}: token_file: got a file, must not be given without address"
            )
        return self


class CalibrationConfig(BaseModel):
    """A table of [[ensembles.calibration]]: what becomes of a task behind the merge."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: str = Field(min_length=1, max_length=64)
    scale: float = Field(default=1.0, gt=0, le=1e6)
    shift: float = Field(default=0.0, ge=-1e6, le=1e6)


class EnsembleConfig(BaseModel):
    """A table of [[ensembles]]: several models that answer as one, asked by this name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=128)
    members: tuple[MemberConfig, ...]
    merge: MergeMethod = "logit"
    merge_budget_ms: int = Field(default=100, ge=1, le=MAX_TIMEOUT_MS)
    """After so long the merge takes what has arrived."""
    min_members: int = Field(default=1, ge=1)
    """Fewer are no answer."""
    calibration: tuple[CalibrationConfig, ...] = Field(default=(), max_length=256)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not 2 <= len(self.members) <= MOST_MEMBERS:
            raise ValueError(
                f"ensembles: {self.name}: members: got {len(self.members)}, must be 2 to {MOST_MEMBERS} of them"
            )
        if self.min_members > len(self.members):
            raise ValueError(
                f"ensembles: {self.name}: min_members: got {self.min_members}, must be at most {len(self.members)}, "
                "the number of its members"
            )
        tasks = [calibration.task for calibration in self.calibration]
        if twice := [task for task in tasks if tasks.count(task) > 1]:
            raise ValueError(f"ensembles: {self.name}: calibration: got task {twice[0]!r} twice, must be once")
        return self


class ServerConfig(
    AccessSettings, CaptureSettings, ConsoleSettings, ItemSettings, ObservabilitySettings, TlsSettings, BaseSettings
):
    """The settings of `mfalcon serve`. Immutable; a name that is none of these is an error."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    checkpoint: Path | None = Field(
        default=None, description="Directory of the checkpoint to serve; several are [[models]] in the TOML file."
    )
    models: tuple[ModelConfig, ...] = Field(
        default=(), max_length=64, description="Several models: tables of name, checkpoint and share of the memory."
    )
    ensembles: tuple[EnsembleConfig, ...] = Field(
        default=(),
        max_length=64,
        description="Several models that answer as one: tables of name, members (model, address, weight), merge, "
        "merge_budget_ms, min_members and calibration; docs/merging.md explains.",
    )
    model_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Name under which the model is served; the checkpoint's own name if not given.",
    )

    grpc_host: str = Field(default="127.0.0.1", min_length=1, description="Address that gRPC listens on.")
    grpc_port: Port = Field(default=50_051, description="Port of gRPC; 0 takes any free one.")
    http_host: str = Field(default="127.0.0.1", min_length=1, description="Address that HTTP listens on.")
    http_port: Port = Field(default=8_080, description="Port of HTTP; 0 takes any free one.")
    http_connections: AtLeastOne = Field(
        default=4_096,
        description="Most HTTP connections, and at most half of the files that the process may open. Where one more "
        "comes, the one that has waited longest for its client is closed.",
    )
    http_header_timeout_s: float = Field(
        default=10.0, ge=0.01, le=3_600, description="Longest time for the head of an HTTP request to arrive, in s."
    )
    http_body_timeout_s: float = Field(
        default=30.0,
        ge=0.01,
        le=3_600,
        description="Longest time for the body of an HTTP request to arrive, and for its answer to be read, in s.",
    )

    frontends: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Processes that speak gRPC and HTTP in front of the one that computes; 0 does both in one process.",
    )

    frontend_stall_s: float = Field(
        default=10.0,
        ge=0,
        le=3_600,
        description="Seconds after which a front-end that is not heard counts as hung: it is killed and started again. "
        "0 waits for ever.",
    )

    admin_host: str = Field(default="127.0.0.1", min_length=1, description="Address that Admin (gRPC) listens on.")
    admin_port: Port | None = Field(
        default=None,
        description="Port of Admin, which reloads models and takes deltas of items; 0 takes any free one. Off if not "
        "given.",
    )
    watch_seconds: float = Field(
        default=0.0,
        ge=0,
        le=86_400,
        description="Seconds between looks at the checkpoints' directories: a changed symlink or manifest is a reload. "
        "0 does not look; SIGHUP reloads at any time.",
    )
    reload_warm_users: int = Field(
        default=1_000, ge=0, le=10_000, description="Users, the last seen first, encoded before a reload swaps."
    )
    reload_warm_s: float = Field(
        default=10.0, ge=0, le=3_600, description="Longest time for that, in seconds, of the device's idle time."
    )

    device: str = Field(
        default="cpu", pattern=r"^(cpu|cuda(:\d{1,2})?)$", description="Device that computes: cpu, cuda or cuda:N."
    )
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        default="float32", description="Type that it computes in."
    )
    backend: Literal[
        "auto",
        "reference",
        "fused",
        "triton",
        "triton_plain",
        "avx512_bf16",
        "avx512_f32",
        "avx2_f32",
        "portable_f32",
        "portable_bf16",
    ] = Field(default="auto", description="What computes; auto is the fastest that passes its self-check here.")
    kv_dtype: Literal["auto", "int8", "fp8", "fp8-products"] = Field(
        default="auto",
        description="Type of the KV states in this process: that of dtype, or 8-bit codes; fp8-products has a Hopper "
        "GPU multiply them as they are.",
    )
    threads: int = Field(default=0, ge=0, description="Threads that compute; 0 is one for each core that we own.")
    microbatch: Literal["auto"] | AtLeastOne = Field(
        default="auto", description="Candidates scored in one forward; auto measures the best size once, at start."
    )
    kv_budget_mb: Literal["auto"] | NotNegative = Field(
        default="auto",
        description="Host memory for KV states, in MiB; the least recently used go. auto is 1024, or under a "
        "container's memory limit half of what that leaves once the weights are loaded.",
    )
    device_budget_mb: int = Field(
        default=0, ge=0, description="Memory of the GPU for KV states, in MiB; 0 takes most of what is free at start."
    )

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
    llm_url: str | None = Field(
        default=None,
        description="API of an OpenAI-compatible language model, up to and with /v1, that may reorder the top; needs "
        "the extra: llm. It is sent titles and what users did, never who they are. Off if not given.",
    )
    llm_model: str | None = Field(
        default=None, min_length=1, max_length=256, description="Name of the language model at llm_url."
    )
    llm_key_file: Path | None = Field(
        default=None, description="File with the key that is sent to llm_url as a bearer token."
    )
    llm_timeout_ms: int = Field(
        default=2_000,
        ge=10,
        le=60_000,
        description="Longest wait for the language model, both passes together, in ms; who is in a hurry waits less.",
    )
    llm_concurrency: int = Field(
        default=8, ge=1, le=256, description="Requests that may wait for the language model; others keep their order."
    )
    otlp_endpoint: str | None = Field(
        default=None, description="Where to send traces (OTLP over gRPC, http://HOST:PORT); needs the extra: trace."
    )

    log_format: LogFormat = Field(
        default="text", description="Form of the log on standard error: lines for people, or a JSON object a line."
    )
    slice_ms: float = Field(
        default=8.0,
        ge=0.5,
        le=1_000,
        description="Predicted time, in ms, after which a large request lets others go first; what takes less goes "
        "before it.",
    )
    queue_size: AtLeastOne = Field(
        default=1_024, description="Requests that may wait for the device; more are refused as overload."
    )
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
    reflection: bool = Field(default=True, description="Tell over gRPC which services and messages there are.")
    grpc_max_connections: AtLeastOne = Field(
        default=1_024, description="Most gRPC connections at once; more are closed as they come."
    )
    grpc_max_streams: AtLeastOne = Field(
        default=256, description="Most calls at once on one gRPC connection; a client waits with more."
    )
    grpc_max_calls: AtLeastOne = Field(
        default=4_096, description="Most gRPC calls at once, health watches included; more are refused as overload."
    )
    grpc_max_watches: int = Field(
        default=1_024, ge=0, description="Most health watches at once; more are refused as overload."
    )
    grpc_connection_age_s: float = Field(
        default=0.0,
        ge=0,
        le=10**6,
        description="Seconds after which a gRPC connection is asked to end, so that clients spread over new replicas; "
        "its calls get request_timeout_ms. 0 keeps connections.",
    )
    grpc_listen: Literal["always", "ready"] = Field(
        default="always",
        description="When gRPC connections are taken: always, so that a server that starts or drains says so; or while "
        "requests are answered (ready), for balancers that do not read a gRPC status, as nginx.",
    )
    device_stall_s: float = Field(
        default=60.0,
        ge=0,
        le=3_600,
        description="Seconds after which a step of the device counts as hung: the server drains and ends with exit "
        "code 1, as when its device is lost. 0 waits for ever.",
    )
    handover_s: float = Field(
        default=2.0,
        ge=0,
        le=600,
        description="Longest time after SIGTERM for Redis to be given what it lacks of the KV states used last, in s; "
        "requests go on, and the drain begins then. 0 leaves that out.",
    )
    handover_mb: int = Field(
        default=1_024, ge=0, description="Most that is written to Redis for that, in MiB, of each model."
    )
    drain_linger_s: float = Field(
        default=0.0,
        ge=0,
        le=600,
        description="Seconds after SIGTERM for which requests are still answered while health says NOT_SERVING: for "
        "balancers that lag. Draining begins then.",
    )
    drain_seconds: float = Field(
        default=10.0, ge=0, le=3_600, description="Longest time that requests in flight get to finish on shutdown."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """First wins."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _models_are_given_once(self) -> Self:
        if (self.checkpoint is None) == (not self.models):
            given = "neither" if self.checkpoint is None else "both"
            raise ValueError(f"checkpoint, models: got {given}, must be a checkpoint or [[models]] in the TOML file")
        if self.models and self.model_name is not None:
            raise ValueError("model_name: got a name, must not be given beside [[models]], which have their own")
        for name, place in (("items_dir", self.items_dir), ("graph_dir", self.graph_dir)):
            if self.models and place is not None:
                raise ValueError(f"{name}: got a directory, must not be given beside [[models]], which have their own")
        shares = round(sum(model.share or 0 for model in self.models), 9)
        if shares > 1 or (shares == 1 and any(model.share is None for model in self.models)):
            raise ValueError(f"models: got shares of {shares:g} in all, must leave every model a part of 1")
        return self

    @property
    def served(self) -> tuple[ModelConfig, ...]:
        """Every model with its share of the memory budgets, the default one first."""
        if self.checkpoint is not None:
            own = {"items_dir": self.items_dir, "graph_dir": self.graph_dir}
            return (ModelConfig(name=self.model_name, checkpoint=self.checkpoint, share=1.0, **own),)
        left = 1 - sum(model.share or 0 for model in self.models)
        rest = left / max(1, sum(model.share is None for model in self.models))
        return tuple(model.model_copy(update={"share": model.share or rest}) for model in self.models)

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

    @model_validator(mode="after")
    def _a_collector_knows_nobody(self) -> Self:
        if self.otlp_endpoint is not None and "@" in self.otlp_endpoint:
            raise ValueError(
                "otlp_endpoint: got an address with a user, must be http://HOST:PORT without one: gRPC sends none, and "
                "the log names the address; OTEL_EXPORTER_OTLP_HEADERS of the environment is sent"
            )
        return self

    @model_validator(mode="after")
    def _replicas_read_one_log(self) -> Self:
        if self.log_place == "redis":
            return self
        for ensemble in self.ensembles:
            for member in ensemble.members:
                if member.address is not None:
                    raise ValueError(
                        f"ensembles: {ensemble.name}: members: got address {member.address!r}, must not be given "
                        "unless the event log is in Redis, where both replicas read it"
                    )
        return self

    @model_validator(mode="after")
    def _a_language_model_has_an_address_and_a_name(self) -> Self:
        if self.llm_url is None:
            for name in ("llm_model", "llm_key_file"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: got {getattr(self, name)!s}, must not be given without llm_url")
            return self
        if self.llm_model is None:
            raise ValueError("llm_model: got nothing, must be given with llm_url")
        try:
            url = urlsplit(self.llm_url)
            is_good = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            is_good = False
        if not is_good or url.username is not None or url.query or url.fragment or not self.llm_url.isprintable():
            shown = "an address with a user" if "@" in self.llm_url else repr(self.llm_url[:80])
            raise ValueError(
                f"llm_url: got {shown}, must be http://HOST:PORT/v1 or https with no user, query or fragment; the key "
                "is in llm_key_file"
            )
        return self

    @property
    def asks_who_calls(self) -> bool:
        """Whether nobody is served whose identity is not known."""
        by_token = self.tokens_file is not None or self.jwks_file is not None
        return by_token or self.requires_client_certs

    @property
    def answers_anybody(self) -> bool:
        """Whether whoever reaches a port in clear is served, though nobody said that he may."""
        return not (self.insecure or self.asks_who_calls or self.has_tls)

    @model_validator(mode="after")
    def _who_is_not_asked_for_is_on_this_machine(self) -> Self:
        if self.insecure or self.asks_who_calls:
            return self
        hosts = {"grpc_host": self.grpc_host, "http_host": self.http_host}
        if self.admin_port is not None:
            hosts["admin_host"] = self.admin_host
        if self.metrics_port is not None:
            hosts["metrics_host"] = self.metrics_host
        for setting, host in hosts.items():
            if not is_loopback(host):
                raise ValueError(
                    f"{setting}: got {host!r}, must be of loopback while nobody is asked who they are: give "
                    "tokens_file, jwks_file or tls_client_ca_file; or insecure says that everybody who reaches it may "
                    "do everything"
                )
        return self

    @model_validator(mode="after")
    def _candidates_fit_a_message(self) -> Self:
        if self.max_candidates * 8 > self.max_message_bytes:
            raise ValueError(
                f"max_candidates: got {self.max_candidates}, must be at most {self.max_message_bytes // 8} "
                f"(8 bytes each) while max_message_bytes is {self.max_message_bytes}"
            )
        return self


def load_config(config_file: Path | None, flags: Mapping[str, object]) -> ServerConfig:
    """Read the sources once; a flag that is None was not given. ConfigError names setting, value and limit."""
    refuse_unknown_variables(os.environ)

    class SourcedConfig(ServerConfig):
        model_config = SettingsConfigDict(toml_file=config_file)

    if config_file is not None and not config_file.is_file():
        raise ConfigError(f"{config_file}: there is no such file")
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    try:
        return SourcedConfig(**given)
    except ValidationError as error:
        raise ConfigError("; ".join(complaints(error))) from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"{config_file or 'the environment'}: not readable: {error}") from error


def complaints(error: ValidationError) -> list[str]:
    """One sentence for each setting that is wrong."""
    sentences = []
    for details in error.errors(include_url=False):
        match details["type"], details["loc"]:
            case "extra_forbidden", (_, _, *_) as path:
                sentences.append(f"{'.'.join(map(str, path))}: there is no such setting")
            case "extra_forbidden", (str(name), *_):
                sentences.append(f"{name}: there is no such setting{did_you_mean(name)}")
            case "value_error", _:
                sentences.append(str(details["ctx"]["error"]))
            case "string_pattern_mismatch", ("device",):
                sentences.append(f"device: got {details['input']!r}, must be cpu, cuda or cuda:N")
            case "string_pattern_mismatch", ("redis_prefix",):
                sentences.append(
                    f"redis_prefix: got {details['input']!r}, must be 1 to 64 characters, no braces and no white space"
                )
            # pydantic complains once for each member of the union.
            case _, (("microbatch" | "kv_budget_mb" | "log_budget_mb") as name, *_):
                least = 1 if name == "microbatch" else 0
                sentences.append(f"{name}: got {details['input']!r}, must be auto or a number of at least {least}")
            case _, path:
                sentences.append(str(refusal(details, path)))
    return list(dict.fromkeys(sentences))


def refuse_unknown_variables(names: Iterable[str]) -> None:
    """pydantic-settings passes over a mistyped variable in silence; we do not."""
    for variable in sorted(names):
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in ServerConfig.model_fields or name in OTHER_VARIABLES or KUBERNETES_LINK.fullmatch(name):
            continue
        raise ConfigError(f"{variable}: there is no such setting{did_you_mean(name)}")


def did_you_mean(name: str) -> str:
    """The closest setting as a hint, or nothing."""
    close = difflib.get_close_matches(name, ServerConfig.model_fields, n=1)
    return f"; did you mean {close[0]}?" if close else ""
