"""A delta as files: its columns as safetensors, and a manifest beside it that says what they are. No pickle.

The manifest comes last and by a rename, so who sees it sees a whole delta; its sha256 tells a torn one.
"""

import os
import tempfile
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mfalcon.errors import InvalidInput
from mfalcon.items.delta import Delta
from mfalcon.memory import available_bytes
from mfalcon.models.config import Frozen
from mfalcon.models.manifest import sha256_of

FORMAT: Final = 1
SUFFIX: Final = ".delta.json"
"""Of manifests."""
MOST_MANIFEST_BYTES: Final = 1 << 16
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
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{delta.checkpoint[:12]}-{delta.number:012d}"
    arrays: dict[str, NDArray[np.generic] | None] = {
        _ITEM_ID: delta.item_id,
        _VECTOR: delta.vector,
        _BIAS: delta.bias,
    }
    arrays |= {_SIDE + name: column for name, column in delta.side.items()}
    with tempfile.TemporaryDirectory(prefix=".delta.", dir=directory) as scratch:
        columns, manifest = Path(scratch) / "columns", Path(scratch) / "manifest"
        save_file({name: np.ascontiguousarray(one) for name, one in arrays.items() if one is not None}, columns)
        name = f"{stem}.safetensors"
        said = DeltaManifest(
            number=delta.number,
            checkpoint=delta.checkpoint,
            file=name,
            sha256=sha256_of(columns),
            replaces=delta.replaces,
        )
        manifest.write_text(said.model_dump_json(indent=2) + "\n")
        for path, to in ((columns, name), (manifest, stem + SUFFIX)):
            path.chmod(0o644)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.rename(directory / to)
    return directory / (stem + SUFFIX)


def read_manifest(path: Path) -> DeltaManifest:
    """Raises InvalidInput for what is no manifest of a delta."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_MANIFEST_BYTES + 1)
        if len(text) > MOST_MANIFEST_BYTES:
            raise InvalidInput(
                "manifest", f"{path.name} of {path.stat().st_size} bytes", f"{MOST_MANIFEST_BYTES} at most"
            )
        return DeltaManifest.model_validate_json(text)
    except OSError as error:
        raise InvalidInput("manifest", path.name, f"readable ({error.strerror})") from error
    except ValidationError as error:
        raise InvalidInput("manifest", path.name, f"one of a delta ({error.errors()[0]['msg']})") from error


def read_delta(path: Path, manifest: DeltaManifest) -> Delta:
    """The delta of a manifest. Raises InvalidInput for files that are not what it says."""
    columns = path.parent / manifest.file
    if columns.name != manifest.file or columns.is_symlink() or not columns.is_file():
        raise InvalidInput("file", manifest.file, f"the name of a file beside {path.name}")
    size, available = columns.stat().st_size, available_bytes()
    if 2 * size > available:
        raise InvalidInput("file", f"{size >> 20} MiB", f"at most half of the {available >> 20} MiB that are available")
    if sha256_of(columns) != manifest.sha256:
        raise InvalidInput("file", manifest.file, "what its manifest says (sha256 differs: truncated or modified)")
    try:
        arrays = load_file(columns)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidInput("file", manifest.file, f"a safetensors file ({error})") from error
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
