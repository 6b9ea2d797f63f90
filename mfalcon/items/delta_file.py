"""A delta as files: its columns, and a manifest beside them that says what they are (`models/sealed_file.py`)."""

from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mfalcon.errors import InvalidInput
from mfalcon.items.delta import Delta
from mfalcon.models import sealed_file
from mfalcon.models.config_kinds import Frozen
from mfalcon.models.sealed_file import read_sealed, write_sealed

SUFFIX: Final = ".delta.json"
"""Of manifests."""
_ITEM_ID, _VECTOR, _BIAS, _SIDE = "item_id", "vector", "bias", "side."


class DeltaManifest(Frozen):
    """NAME.delta.json. number, checkpoint, replaces: see `Delta`. file: in the same directory. sha256: of that."""

    format: Literal[1] = 1
    number: int
    checkpoint: str
    file: str
    sha256: str
    replaces: bool = False


def write_delta(directory: Path, delta: Delta) -> Path:
    """Add a delta with its number to a directory; returns the path of its manifest."""
    assert delta.number
    arrays: dict[str, NDArray[np.generic] | None] = {
        _ITEM_ID: delta.item_id,
        _VECTOR: delta.vector,
        _BIAS: delta.bias,
    }
    arrays |= {_SIDE + name: column for name, column in delta.side.items()}

    def manifest(file: str, sha256: str) -> DeltaManifest:
        return DeltaManifest(
            number=delta.number, checkpoint=delta.checkpoint, file=file, sha256=sha256, replaces=delta.replaces
        )

    stem = f"{delta.checkpoint[:12]}-{delta.number:012d}"
    given = {name: one for name, one in arrays.items() if one is not None}
    return write_sealed(directory, stem, SUFFIX, given, manifest)


def read_manifest(path: Path) -> DeltaManifest:
    """Raises InvalidInput for what is no manifest of a delta."""
    return sealed_file.read_manifest(path, DeltaManifest, "a delta")


def read_delta(path: Path, manifest: DeltaManifest) -> Delta:
    """The delta of a manifest. Raises InvalidInput for files that are not what it says."""
    arrays: dict[str, NDArray[Any]] = read_sealed(path, manifest.file, manifest.sha256)
    known = {_ITEM_ID, _VECTOR, _BIAS}
    if _ITEM_ID not in arrays:
        raise InvalidInput("file", manifest.file, f"one with {_ITEM_ID}")
    for name in arrays:
        if name not in known and not name.startswith(_SIDE):
            raise InvalidInput("file", name, f"a column of {', '.join(sorted(known))} or {_SIDE}NAME")
    return Delta(
        manifest.number,
        manifest.checkpoint,
        arrays[_ITEM_ID],
        arrays.get(_VECTOR),
        arrays.get(_BIAS),
        {name.removeprefix(_SIDE): column for name, column in arrays.items() if name.startswith(_SIDE)},
        manifest.replaces,
    )
