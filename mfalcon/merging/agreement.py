"""Which rankers may be merged: those that say the same about the same, and read the same events."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from mfalcon.errors import ConfigError
from mfalcon.types import ContextFeatureInfo, ModelInfo, TaskInfo


@dataclass(frozen=True, slots=True)
class Contract:
    """What the members of an ensemble have in common. context: the features that it reads; another one may read others,
    but those of one name must be the same.
    """

    tasks: tuple[TaskInfo, ...]
    actions: tuple[str, ...]
    context: tuple[ContextFeatureInfo, ...] = ()

    @classmethod
    def of(cls, info: ModelInfo) -> "Contract":
        """Of a served model."""
        return cls(info.task_infos, info.actions, info.context_features)


def check_agreement(members: Mapping[str, Contract]) -> None:
    """Raise ConfigError that names two members and what they differ in. members: by a name that an operator knows."""
    for (first, one), (second, other) in pairwise(members.items()):
        if one.tasks != other.tasks:
            raise ConfigError(
                f"{first} and {second} cannot be merged: their tasks must be the same, in order, kind and blend; got "
                f"{_tasks(one)} and {_tasks(other)}"
            )
        if one.actions != other.actions:
            raise ConfigError(
                f"{first} and {second} cannot be merged: their actions must be the same, in order; got "
                f"{', '.join(one.actions)} and {', '.join(other.actions)}"
            )
    features: dict[str, tuple[str, ContextFeatureInfo]] = {}
    for name, contract in members.items():
        for feature in contract.context:
            first, known = features.setdefault(feature.name, (name, feature))
            if known != feature:
                raise ConfigError(
                    f"{first} and {name} cannot be merged: context feature {feature.name} has {known.num_values} and "
                    f"{feature.num_values} values, or other names of them; must be the same"
                )


def _tasks(contract: Contract) -> str:
    return ", ".join(f"{task.name} ({task.kind}, blend {task.weight:g})" for task in contract.tasks)
