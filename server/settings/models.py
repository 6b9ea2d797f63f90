"""Tables of the TOML file: the models of a server, and several that answer as one."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mfalcon.types import MergeMethod
from server.limits import MAX_TIMEOUT_MS
from server.settings.kinds import File

MOST_MEMBERS = 16


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


class MemberConfig(BaseModel):
    """A table of [[ensembles.members]]: a model of this server, or with an address of another replica."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=128)
    address: str | None = Field(default=None, min_length=1, max_length=512)
    weight: float = Field(default=1.0, gt=0, le=1e6)
    token_file: File | None = None
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
