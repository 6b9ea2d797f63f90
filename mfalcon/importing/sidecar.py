"""What a trainer's files do not say: a TOML file beside them, of the user; that of DLRM-v3 too."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from mfalcon.errors import ConfigError
from mfalcon.models.config import Task
from mfalcon.models.config_kinds import Frozen, Name, Positive

_MOST_BYTES = 1 << 20
_Kind = TypeVar("_Kind", bound=Frozen)


class UserFeature(Frozen):
    """A contextual feature of the trainer, in its order there: a request gives it by this name in its `context`."""

    name: Name
    table: str = Field(min_length=1, max_length=128)
    min_history: int = Field(ge=0, le=1 << 30)
    """Of `contextual_feature_to_min_uih_length`; 0 where it is not there."""


class Stabilise(Frozen):
    """Where positions and ages are counted from in the form whose states outlive a request (`--stabilise`)."""

    history: Positive
    """A history of so many events keeps the trainer's positions: the length that most have."""
    time_s: int = Field(ge=0, lt=1 << 40)
    """Seconds since 1970. A request at this time keeps the trainer's ages."""
    window_chunk: Positive | None = None
    """Events by which a window moves that is full; an eighth of max_history if it is not there."""


class Sidecar(Frozen):
    """`mfalcon import dlrm-v3 --config`. All that has no default must be said: nothing is guessed."""

    name: str = Field(min_length=1, max_length=128)
    num_heads: Positive
    attention_norm: float = Field(gt=0)
    """What divides attention, a constant. The trainer divides by the longest sequence of a batch: features of the user,
    events and candidates.
    """
    counted_candidates: int = Field(ge=0)
    """Candidates of a training sample: the trainer counts them where it holds a length against min_history."""
    last_age: int = Field(ge=0)
    """The bucket of time that all older events share: 2048 with the trainer's Triton kernels, one less than the width
    with its PyTorch ones.
    """
    max_history: Positive
    item_table: str = Field(min_length=1, max_length=128)
    actions: tuple[str, ...] = Field(min_length=1, max_length=32)
    """Names of the trainer's `action_weights`, in their order."""
    user_features: tuple[UserFeature, ...] = ()
    tasks: tuple[Task, ...] = Field(min_length=1)
    """In the order of `multitask_configs`: binary tasks first."""
    blend: dict[str, Annotated[float, Field(ge=-1e6, le=1e6)]]
    postprocessor: Literal["l2"] | None = None
    """Only of a model that has none with weights (`enable_postprocessor = False`)."""
    prefix: str = Field(default="", max_length=128)
    """What stands before every name in the trainer's files, where the model was wrapped: `module.`."""
    stabilise: Stabilise | None = None
    """Only read with `--stabilise`."""


def read_sidecar(path: Path, kind: type[_Kind]) -> _Kind:
    """Raises ConfigError naming the file, the key and what is wrong with it."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path}: has {path.stat().st_size} bytes, must have at most {_MOST_BYTES}")
        return kind.model_validate(tomllib.loads(path.read_text()))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg'].lower()}" for one in error.errors()[:8]]
        raise ConfigError(f"{path}: {'; '.join(problems)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error})") from error
