"""Arrays as a safetensors file beside a manifest that says what they are. No pickle.

The manifest comes last and by a rename, so who sees it sees all of it; its sha256 tells a torn file.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mfalcon.errors import InvalidInput
from mfalcon.memory import available_bytes
from mfalcon.models.config_kinds import Frozen
from mfalcon.models.manifest import sha256_of

MOST_MANIFEST_BYTES: Final = 1 << 16

Manifest = TypeVar("Manifest", bound=Frozen)


def write_sealed(
    directory: Path,
    stem: str,
    suffix: str,
    arrays: Mapping[str, NDArray[np.generic]],
    manifest_of: Callable[[str, str], Frozen],
) -> Path:
    """Add STEM.safetensors and then STEM + suffix, its manifest, to a directory; returns the path of the latter.
    manifest_of: makes it of the name of the file and its sha256.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sealed.", dir=directory) as scratch:
        columns, manifest = Path(scratch) / "columns", Path(scratch) / "manifest"
        save_file({name: np.ascontiguousarray(one) for name, one in arrays.items()}, columns)
        name = f"{stem}.safetensors"
        manifest.write_text(manifest_of(name, sha256_of(columns)).model_dump_json(indent=2) + "\n")
        for path, to in ((columns, name), (manifest, stem + suffix)):
            path.chmod(0o644)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.rename(directory / to)
    return directory / (stem + suffix)


def read_manifest(path: Path, kind: type[Manifest], of: str) -> Manifest:
    """of: what it is to be one of, for a person. Raises InvalidInput for what is no manifest of that."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_MANIFEST_BYTES + 1)
        if len(text) > MOST_MANIFEST_BYTES:
            raise InvalidInput(
                "manifest", f"{path.name} of {path.stat().st_size} bytes", f"{MOST_MANIFEST_BYTES} at most"
            )
        return kind.model_validate_json(text)
    except OSError as error:
        raise InvalidInput("manifest", path.name, f"readable ({error.strerror})") from error
    except ValidationError as error:
        raise InvalidInput("manifest", path.name, f"one of {of} ({error.errors()[0]['msg']})") from error


def read_sealed(path: Path, name: str, sha256: str) -> dict[str, NDArray[np.generic]]:
    """The arrays of a manifest's file. path: of the manifest. Raises InvalidInput for what is not what it says."""
    columns = path.parent / name
    if columns.name != name or columns.is_symlink() or not columns.is_file():
        raise InvalidInput("file", name, f"the name of a file beside {path.name}")
    size, available = columns.stat().st_size, available_bytes()
    if 2 * size > available:
        raise InvalidInput("file", f"{size >> 20} MiB", f"at most half of the {available >> 20} MiB that are available")
    if sha256_of(columns) != sha256:
        raise InvalidInput("file", name, "what its manifest says (sha256 differs: truncated or modified)")
    try:
        arrays: dict[str, NDArray[np.generic]] = load_file(columns)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidInput("file", name, f"a safetensors file ({error})") from error
    return arrays
