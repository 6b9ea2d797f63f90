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

[[reach]]               # what a layer sees of the history; fields of models.config_layers.ReachConfig
layer = 2               # from 1 on; layers that are not named see all of it
tokens = 256
targets = 1024

[blend]                 # weight of each task in the one score that ranks; not given: every binary task alike
click = 1.0
"""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from mfalcon.errors import ConfigError
from mfalcon.models.config import RankerConfig, Task
from mfalcon.models.config_features import EmbeddingConfig, EmbeddingKind
from mfalcon.models.config_kinds import Frozen
from mfalcon.models.config_layers import ReachConfig
from mfalcon.train.recipes import TrainConfig
from mfalcon.train.text_file import shown


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


class ReachSettings(ReachConfig):
    """What one layer sees of a history: see `ReachConfig`."""

    layer: int = Field(gt=0, le=256)
    """Counted from 1."""


class TrainFile(Frozen):
    """The content of a training file."""

    training: TrainConfig = TrainConfig()
    blend: Annotated[dict[str, float], Field(min_length=1)] | None = None
    tasks: tuple[Task, ...] = ()
    embedding: EmbeddingSettings = EmbeddingSettings()
    reach: tuple[ReachSettings, ...] = ()

    def with_reach(self, config: RankerConfig) -> RankerConfig:
        """A ranker whose layers see what is said here. Raises ConfigError for layers that it has not."""
        if not self.reach:
            return config
        layers, num_layers = [of.layer for of in self.reach], config.num_layers or 0
        if len(set(layers)) != len(layers) or max(layers) > num_layers:
            raise ConfigError(f"reach: got layers {layers}, must be different ones of the {num_layers} of the model")
        of_layers = {of.layer: of.model_dump(exclude={"layer"}) for of in self.reach}
        reach = [of_layers.get(layer) for layer in range(1, num_layers + 1)]
        return RankerConfig.model_validate(config.model_dump() | {"reach": reach})


_TABLES: Mapping[str, type[Frozen]] = {
    "training": TrainConfig,
    "tasks": Task,
    "embedding": EmbeddingSettings,
    "reach": ReachSettings,
}


def read_train_file(path: Path) -> TrainFile:
    """Raises ConfigError naming file, line and key."""
    try:
        text = path.read_bytes().decode()
        return TrainFile.model_validate(tomllib.loads(text))
    except ValidationError as error:
        loc = error.errors()[0]["loc"]
        kind = _TABLES.get(str(loc[0]), TrainFile) if len(loc) > 1 else TrainFile
        raise ConfigError(f"{path}: {_line_of_key(text, loc)}{problem(error, kind)}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}{_quoted_line(text, str(error))}") from error
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        raise ConfigError(
            f"{path}: cannot be read as TOML: line {before.count(10) + 1}: byte {error.object[error.start]:#04x} is "
            "not UTF-8; save the file as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error.strerror}") from error


def _quoted_line(text: str, error: str) -> str:
    """The line that a syntax error names."""
    found, lines = re.search(r"at line (\d+)", error), text.splitlines()
    if not lines:
        return ""
    number = min(int(found[1]), len(lines)) if found else len(lines)
    return f": {shown(lines[number - 1])}" if found else f", line {number}: {shown(lines[-1])}"


def _line_of_key(text: str, loc: Sequence[int | str]) -> str:
    """`line N: ` of the first place that has the names of a key in order, of a list the entry that it counts."""
    lines, at = text.splitlines(), 0
    table = rf"\s*\[+\s*{re.escape(str(loc[0]))}\b"
    tables = [number for number, line in enumerate(lines) if re.match(table, line)]
    entry = next((part for part in loc if isinstance(part, int)), 0)
    if entry < len(tables):
        at = tables[entry]
    elif len(loc) > 1:
        return ""
    key = rf"\s*[\[\"']*{re.escape(str(loc[-1]))}\b"
    here = next((number for number in range(at, len(lines)) if re.match(key, lines[number])), at)
    return f"line {here + 1}: "


def problem(error: ValidationError, kind: type[Frozen]) -> str:
    """The first thing that is wrong, in a user's words; kind: what holds the offending name."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), kind.model_fields, 1)
        perhaps = f" ({near[0]}, perhaps)" if near else ""
        return f"{where}: unknown name{perhaps}; known names are {', '.join(kind.model_fields)}"
    got = f" (got {shown(first['input'])})" if isinstance(first["input"], int | float | str) else ""
    return ": ".join(part for part in (where, first["msg"].removeprefix("Value error, ") + got) if part)


def equal_blend(tasks: Sequence[Task]) -> dict[str, float]:
    """Every binary task alike; every task where none is binary."""
    return dict.fromkeys([task.name for task in tasks if task.kind == "binary"] or [task.name for task in tasks], 1.0)
