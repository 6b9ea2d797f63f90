"""The one place that reads pickles: a trainer's checkpoint, a stranger's, in a process without network (`cage.py`).

Nothing that a file names is run: torch's reader takes weights alone, and of a distributed checkpoint's index every
class becomes a record of ours.
"""

import io
import pickle  # noqa: TID251 (an unpickler that knows twenty names and runs none)
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import torch

from mfalcon.errors import CheckpointError
from mfalcon.memory import is_out_of_memory


class Record:
    """What an index holds in the place of an object: what it would have been made of."""

    def __init__(self, *args: object) -> None:
        self.args = args
        self.fields: Mapping[str, object] = {}
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        fields = state[1] if isinstance(state, tuple) and len(state) == 2 and state[0] is None else state
        if isinstance(fields, dict):
            self.fields = fields
        self.state = state


def _size(*args: object) -> tuple[object, ...]:
    """torch.Size, of one sequence."""
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], tuple | list) else args


_DTYPES: Final = ("float16", "bfloat16", "float32", "float64", "int64", "int32", "uint8")
_OF_METADATA: Final = (
    *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
    *("MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
)
_OF_FILES: Final = ("_StorageInfo", "_StoragePrefix")


class _Index(pickle.Unpickler):
    """Records, sizes and names of dtypes; whatever else a pickle names is refused."""

    def find_class(self, module: str, name: str) -> object:
        if module == "torch.distributed.checkpoint.metadata" and name in _OF_METADATA:
            return Record
        if module == "torch.distributed.checkpoint.filesystem" and name in _OF_FILES:
            return Record
        if (module, name) in {("pathlib", "PosixPath"), ("torch.serialization", "_get_layout")}:
            return Record
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) == ("torch", "Size"):
            return _size
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no index of a checkpoint has")


def read_index(path: Path) -> Record:
    """`.metadata` of a distributed checkpoint. Raises CheckpointError naming what it should not have."""
    with _refusing(path, "no index of a distributed checkpoint"), path.open("rb") as file:
        index = _Index(file).load()
    if not isinstance(index, Record):
        raise CheckpointError(f"{path}: no index of a distributed checkpoint (it is a {type(index).__name__})")
    return index


def read_weights(path: Path, source: BinaryIO | None = None) -> object:
    """What `torch.save` wrote: tensors and plain containers alone. source: its bytes, if they are a part of the file.
    Raises CheckpointError naming what else there is.
    """
    with _refusing(path, "not weights alone, as torch.save writes them"):
        if source is not None:
            return _load(path, source)
        with path.open("rb") as file:
            return _load(path, file)


def _load(path: Path, file: BinaryIO) -> object:
    _check_archive(path, file)
    return torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251 (weights alone)


def _check_archive(path: Path, file: BinaryIO) -> None:
    """Raise CheckpointError for an archive that is larger unpacked, or that has two files of one name."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
        if packed := [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED]:
            raise CheckpointError(f"{path}: {packed[0][:80]!r} in it is compressed, which torch.save never does")
        if len({info.filename for info in infos}) != len(infos):
            raise CheckpointError(f"{path}: has two files of one name")
    file.seek(0)


@contextmanager
def _refusing(path: Path, what: str) -> Iterator[None]:
    """Whatever reading a stranger's bytes raises, but the end of memory, says what they are not."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{path}: {what} ({_line(error)})") from error


def part_of(path: Path, offset: int, length: int) -> io.BytesIO:
    """Bytes of a file. Raises CheckpointError if it has not so many."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    if len(data) != length:
        raise CheckpointError(f"{path}: has {offset + len(data)} bytes, its index says {offset + length} (truncated)")
    return io.BytesIO(data)


def _line(error: Exception) -> str:
    """The line of a text that says most: torch's own begin with a page of advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "nsupported" in line]
    return f"{type(error).__name__}: {(named or lines or [''])[0][:300]}"
