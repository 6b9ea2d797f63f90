"""Every setting of the server, in one place: flags over environment (MFALCON_...) over a TOML file over defaults."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from mfalcon.errors import ConfigError
from server.explain import refusal
from server.settings.access import AccessSettings
from server.settings.capture import CaptureSettings
from server.settings.compute import ComputeSettings
from server.settings.console import ConsoleSettings
from server.settings.items import ItemSettings
from server.settings.kinds import Port
from server.settings.llm import LlmSettings
from server.settings.log import LogSettings
from server.settings.models import EnsembleConfig, ModelConfig
from server.settings.observability import ObservabilitySettings
from server.settings.requests import RequestSettings
from server.settings.tls import TlsSettings, is_loopback
from server.settings.transports import TransportSettings

PREFIX = "MFALCON_"
OTHER_VARIABLES = frozenset({"config", "token_file"})
"""Variables of ours that are no setting: MFALCON_CONFIG names the TOML file, MFALCON_TOKEN_FILE is of commands that
call a server."""
KUBERNETES_LINK = re.compile(r"(service_(host|port)|port)(_.*)?")
"""Kubernetes sets MFALCON_SERVICE_HOST, MFALCON_PORT_50051_TCP and so on beside a Service called mfalcon."""


class ServerConfig(
    AccessSettings,
    CaptureSettings,
    ComputeSettings,
    ConsoleSettings,
    ItemSettings,
    LlmSettings,
    LogSettings,
    ObservabilitySettings,
    RequestSettings,
    TlsSettings,
    TransportSettings,
    BaseSettings,
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
