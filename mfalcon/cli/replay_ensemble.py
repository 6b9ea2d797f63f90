"""The ensemble of a server's TOML file, as a replay needs it: the checkpoints of its members, and how they merge."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mfalcon.errors import ConfigError
from mfalcon.merging.merge import Calibration, Merge
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.heads import task_infos
from mfalcon.train.merging import check_members
from server.config import load_config


@dataclass(frozen=True, slots=True)
class ServedMerge:
    """An ensemble of a server's TOML file, with the checkpoints of its members by their names."""

    name: str
    members: Mapping[str, Checkpoint]
    weights: tuple[float, ...]
    merge: Merge


def read_ensemble(path: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> ServedMerge:
    """The one ensemble of a server's TOML file. dtype, device: as `checkpoint.load` has them. Raises ConfigError unless
    there is one, of models in the file.
    """
    config = load_config(path, {})
    if len(config.ensembles) != 1:
        raise ConfigError(f"{path}: got {len(config.ensembles)} ensembles, must be one")
    (ensemble,) = config.ensembles
    paths = {model.name: model.checkpoint for model in config.models}
    for member in ensemble.members:
        if member.address is not None or member.model not in paths:
            raise ConfigError(f"{path}: member {member.model} of {ensemble.name}: must be one of the file's [[models]]")
    members = {member.model: checkpoint.load(paths[member.model], dtype, device) for member in ensemble.members}
    check_members(members)
    first = next(iter(members.values())).model.config
    calibration = {task.task: Calibration(task.scale, task.shift) for task in ensemble.calibration}
    tasks = task_infos(first.tasks, first.blend)
    return ServedMerge(
        ensemble.name,
        members,
        tuple(member.weight for member in ensemble.members),
        Merge(ensemble.merge, tasks, tuple(calibration.get(task.name, Calibration()) for task in tasks)),
    )
