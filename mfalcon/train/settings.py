"""A training file: what a user sets beside the flags of `mfalcon train`, as TOML.

[training]              # fields of TrainConfig
batch_size = 32

[[tasks]]               # in place of the data set's own; fields of models.config.Task
name = "click"
kind = "binary"
any_action = ["click"]

[embedding]             # where the vectors of items are; fields of EmbeddingSettings below
kind = "robe-mix"
memory_mb = 10.0

[blend]                 # weight of each task in the one score that ranks; not given: every binary task alike
click = 1.0
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from mfalcon.errors import ConfigError
from mfalcon.models.config import EmbeddingConfig, EmbeddingKind, Frozen, Task
from mfalcon.train.recipes import TrainConfig


class EmbeddingSettings(Frozen):
    """Where the vectors of items are to be: see `EmbeddingConfig`."""

    kind: EmbeddingKind = "table"
    memory_mb: float | None = None
    block: int = EmbeddingConfig.model_fields["block"].default
    features: tuple[str, ...] = ()
    list_items: bool = True
    """Whether the checkpoint names its items: for titles, side features and counts, which take memory by the item. A
    table must."""

    def config(self) -> EmbeddingConfig:
        """Raises ValidationError."""
        return EmbeddingConfig.model_validate(self.model_dump(exclude={"list_items"}))


class TrainFile(Frozen):
    """The content of a training file."""

    training: TrainConfig = TrainConfig()
    blend: Annotated[dict[str, float], Field(min_length=1)] | None = None
    tasks: tuple[Task, ...] = ()
    embedding: EmbeddingSettings = EmbeddingSettings()


_TABLES: Mapping[str, type[Frozen]] = {"training": TrainConfig, "tasks": Task, "embedding": EmbeddingSettings}


def read_train_file(path: Path) -> TrainFile:
    """Raises ConfigError naming file and key."""
    try:
        return TrainFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        loc = error.errors()[0]["loc"]
        kind = _TABLES.get(str(loc[0]), TrainFile) if len(loc) > 1 else TrainFile
        raise ConfigError(f"{path}: {problem(error, kind)}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error


def problem(error: ValidationError, kind: type[Frozen]) -> str:
    """The first thing that is wrong, in a user's words; kind: what holds the offending name."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown name; known names are {', '.join(kind.model_fields)}"
    return ": ".join(part for part in (where, first["msg"].removeprefix("Value error, ")) if part)


def equal_blend(tasks: Sequence[Task]) -> dict[str, float]:
    """Every binary task alike; every task where none is binary."""
    return dict.fromkeys([task.name for task in tasks if task.kind == "binary"] or [task.name for task in tasks], 1.0)
