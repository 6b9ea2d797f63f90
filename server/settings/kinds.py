"""Kinds of values that several groups of settings have."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

File = Annotated[Path, AfterValidator(Path.absolute)]
"""Front-ends have another working directory."""
Port = Annotated[int, Field(ge=0, le=65_535)]
AtLeastOne = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
