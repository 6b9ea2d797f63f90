"""Graph vectors as files: what a server's watched directory holds (`models/sealed_file.py`)."""

from pathlib import Path
from typing import Any, Final, Literal

from numpy.typing import NDArray

from mfalcon.errors import InvalidInput
from mfalcon.graph.vectors import GraphRefresh
from mfalcon.models import sealed_file
from mfalcon.models.config_kinds import Frozen
from mfalcon.models.sealed_file import read_sealed, write_sealed

SUFFIX: Final = ".vectors.json"
"""Of manifests."""
_COLUMNS: Final = ("item_id", "vector")


class VectorsManifest(Frozen):
    """NAME.vectors.json. number, checkpoint: see `GraphRefresh`. file: in the same directory. sha256: of that."""

    format: Literal[1] = 1
    number: int
    checkpoint: str
    file: str
    sha256: str

    @property
    def replaces(self) -> bool:
        """A refresh is of all items, so only the newest one is of any use."""
        return True


def write_vectors(directory: Path, refresh: GraphRefresh) -> Path:
    """Add a refresh to a directory; returns the path of its manifest."""

    def manifest(file: str, sha256: str) -> VectorsManifest:
        return VectorsManifest(number=refresh.number, checkpoint=refresh.checkpoint, file=file, sha256=sha256)

    stem = f"{refresh.checkpoint[:12]}-{refresh.number:012d}"
    return write_sealed(directory, stem, SUFFIX, {"item_id": refresh.item_id, "vector": refresh.vector}, manifest)


def read_manifest(path: Path) -> VectorsManifest:
    """Raises InvalidInput for what is no manifest of graph vectors."""
    return sealed_file.read_manifest(path, VectorsManifest, "graph vectors")


def read_vectors(path: Path, manifest: VectorsManifest) -> GraphRefresh:
    """The refresh of a manifest. Raises InvalidInput for files that are not what it says."""
    arrays: dict[str, NDArray[Any]] = read_sealed(path, manifest.file, manifest.sha256)
    if tuple(sorted(arrays)) != _COLUMNS:
        raise InvalidInput("file", f"columns {sorted(arrays)}", f"one with {' and '.join(_COLUMNS)} and no other")
    return GraphRefresh(manifest.number, manifest.checkpoint, arrays["item_id"], arrays["vector"])
