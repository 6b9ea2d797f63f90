"""Where a training writes: known to be free, writable and large enough before the first epoch, not after the last."""

import shutil
import tempfile
from pathlib import Path

from mfalcon.errors import CheckpointError
from mfalcon.models import checkpoint
from mfalcon.models.config import RankerConfig
from mfalcon.models.manifest import MANIFEST
from mfalcon.models.registry import build
from mfalcon.models.unfilled import unfilled
from mfalcon.train.run import PROGRESS

_COPIES = 6
"""Of the weights, in a run's progress: the model, its average, its best epoch, two moments; and in the checkpoint."""
_BYTES = 4


def progress_of(out: Path) -> Path:
    """Where the state of a run after each epoch is kept: beside its checkpoint."""
    return out.parent / f".{out.name}.progress"


def count_parameters(config: RankerConfig) -> int:
    """Of a model, without its memory."""
    with unfilled():
        return sum(parameter.numel() for parameter in build(config).parameters())


def check_place(out: Path, num_parameters: int, *, overwrite: bool) -> None:
    """Raises CheckpointError if `out` is taken, cannot be written to, or has too little room. Leaves nothing there."""
    checkpoint.check_replaceable(out)
    if (out / MANIFEST).is_file() and not overwrite:
        raise CheckpointError(f"{out}: there is a checkpoint already; --overwrite replaces it, or name another --out")
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CheckpointError(
            f"{out}: {folder} cannot be written to ({error.strerror}); name an --out that can"
        ) from error
    kept = progress_of(out) / PROGRESS
    needed = _COPIES * _BYTES * num_parameters - (kept.stat().st_size if kept.is_file() else 0)
    if free < needed:
        raise CheckpointError(
            f"{out}: the disk has {free / 1e6:,.1f} MB left, this training needs about {needed / 1e6:,.1f} MB; "
            "free some, or name an --out on another disk"
        )
