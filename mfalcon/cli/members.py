"""The members of a merge as the command line has them: checkpoint directories, a method, weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mfalcon.errors import ConfigError
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import MERGE_METHODS, MergeMethod


def load_members(paths: Sequence[Path]) -> Mapping[str, Checkpoint]:
    """Checkpoints by the names of their directories, by the whole path where two have one name. Raises ConfigError for
    one that is given twice.
    """
    places = [path.resolve() for path in paths]
    for at, place in enumerate(places):
        if place in places[:at]:
            raise ConfigError(f"CHECKPOINT: {paths[at]} is given twice")
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        names = [str(place) for place in places]
    return {name: checkpoint.load(path) for name, path in zip(names, paths, strict=True)}


def merge_method(text: str) -> MergeMethod:
    """A method by its name. Raises ConfigError."""
    for method in MERGE_METHODS:
        if text == method:
            return method
    raise ConfigError(f"--merge: got {text!r}, must be {' or '.join(map(repr, MERGE_METHODS))}")


_LARGEST_WEIGHT = 1e6
"""As in [[ensembles.members]]: the sum of numbers near the largest float is none."""


def member_weights(text: str, num_members: int) -> list[float]:
    """Comma-separated weights above 0; equal ones for no text. Raises ConfigError."""
    if not text:
        return [1.0] * num_members
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != num_members or not all(0 < weight <= _LARGEST_WEIGHT for weight in weights):
        raise ConfigError(
            f"--weights: got {text!r}, must be {num_members} numbers above 0, at most {_LARGEST_WEIGHT:,.0f}, "
            "comma-separated"
        )
    return weights
