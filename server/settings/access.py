"""Settings of who may ask."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

File = Annotated[Path, AfterValidator(Path.absolute)]
"""Front-ends have another working directory."""


class AccessSettings(BaseModel):
    """Who may ask, and what proves who it is."""

    tokens_file: File | None = Field(
        default=None,
        description="TOML file of callers: their rights, hashes of their tokens, names of their certificates; it is "
        "read again when it changes. If not given, everybody may do everything. docs/security.md explains.",
    )
