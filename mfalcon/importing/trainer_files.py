"""The tensors of a trainer's checkpoint: `non_sparse.ckpt`, and the tables of its folder `sparse`, put together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from mfalcon.errors import CheckpointError
from mfalcon.importing.unpickling import Record, part_of, read_index, read_weights
from mfalcon.memory import available_bytes

DENSE, SPARSE, INDEX = "non_sparse.ckpt", "sparse", ".metadata"
_DENSE_KEY, _SPARSE_PREFIX = "dense_dict", "sparse_dict."
_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8)
_MOST_CHUNKS = 1_000


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by its name in the trainer. Raises CheckpointError naming the file and the cause."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: must be a folder with {DENSE} and {SPARSE}/, as the trainer writes it")
    tensors = read_dense(path / DENSE)
    if (path / SPARSE).is_symlink():
        raise CheckpointError(f"{path / SPARSE}: must be a folder, and no link")
    if (path / SPARSE).exists():
        tables = read_sparse(path / SPARSE)
        if twice := sorted(tables.keys() & tensors.keys()):
            raise CheckpointError(f"{path}: {twice[0]!r} is both in {DENSE} and in {SPARSE}")
        tensors |= tables
    return tensors


def read_dense(path: Path, key: str = _DENSE_KEY) -> dict[str, Tensor]:
    """The dense tensors of a file; optimizer and metrics are passed over. key: under which they are. Raises
    CheckpointError.
    """
    check_file(path)
    content = read_weights(path)
    dense = content.get(key) if isinstance(content, dict) else None
    if not isinstance(dense, dict):
        raise CheckpointError(f"{path}: has no {key!r}, in which the trainer keeps the dense weights")
    needed, tensors = 0, dict[str, Tensor]()
    for name, tensor in dense.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {str(name)[:80]!r} is a {type(tensor).__name__}, must be a tensor")
        needed += _checked(path, name, tensor).numel() * tensor.itemsize
        tensors[name] = tensor
    check_memory(path, needed)
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A part of a table, and where in which file it lies."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset: int
    length: int


def read_sparse(folder: Path) -> dict[str, Tensor]:
    """The tables of a distributed checkpoint. Raises CheckpointError for an index that its files do not bear out."""
    path = folder / INDEX
    check_file(path)
    fields = read_index(path).fields
    tables, places = fields.get("state_dict_metadata"), _places(path, fields.get("storage_data"))
    if not isinstance(tables, dict):
        raise CheckpointError(f"{path}: has no state_dict_metadata")
    out = dict[str, Tensor]()
    for name, table in tables.items():
        size, chunks = _table(path, name, table, places)
        if not chunks:
            raise CheckpointError(f"{path}: {name!r} is no tensor; a table is one")
        out[name.removeprefix(_SPARSE_PREFIX)] = _put_together(folder, name, size, chunks)
    return out


def _places(path: Path, stored: object) -> dict[tuple[object, object], tuple[str, int, int]]:
    """Where each chunk lies, by the name of its table and its offsets: file, first byte, length."""
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path}: has no storage_data")
    places = dict[tuple[object, object], tuple[str, int, int]]()
    for index, info in stored.items():
        if not isinstance(index, Record) or not isinstance(info, Record):
            raise CheckpointError(f"{path}: storage_data is not what the trainer's torch writes")
        file, offset, length = (info.fields.get(name) for name in ("relative_path", "offset", "length"))
        if info.fields.get("transform_descriptors"):
            raise CheckpointError(
                f"{path}: {index.fields.get('fqn')!r} is stored transformed (compressed); save it plain"
            )
        if not isinstance(file, str) or Path(file).name != file or file.startswith("."):
            raise CheckpointError(f"{path}: names the file {str(file)[:80]!r}, must be one of its own folder")
        if not _is_count(offset) or not _is_count(length):
            raise CheckpointError(f"{path}: {file}: an offset or a length of a chunk is no place in a file")
        assert isinstance(offset, int) and isinstance(length, int)
        places[index.fields.get("fqn"), index.fields.get("offset")] = file, offset, length
    return places


def _table(
    path: Path, name: object, table: object, places: Mapping[tuple[object, object], tuple[str, int, int]]
) -> tuple[tuple[int, ...], list[_Chunk]]:
    """Size and chunks of a table; none of what is no tensor."""
    if not isinstance(name, str) or not isinstance(table, Record):
        raise CheckpointError(f"{path}: state_dict_metadata is not what the trainer's torch writes")
    listed = table.fields.get("chunks")
    if not isinstance(listed, list):
        return (), []
    size, chunks = _shape(path, name, table.fields.get("size")), list[_Chunk]()
    if len(listed) > _MOST_CHUNKS:
        raise CheckpointError(f"{path}: {name!r} has {len(listed)} chunks, must have at most {_MOST_CHUNKS}")
    for one in listed:
        fields = one.fields if isinstance(one, Record) else {}
        offsets, sizes = _shape(path, name, fields.get("offsets")), _shape(path, name, fields.get("sizes"))
        place = places.get((name, offsets))
        if place is None:
            raise CheckpointError(f"{path}: {name!r} has a chunk at {offsets} that lies in no file")
        chunks.append(_Chunk(offsets, sizes, *place))
    _check_tiles(path, name, size, chunks)
    return size, chunks


def _check_tiles(path: Path, name: str, size: Sequence[int], chunks: Sequence[_Chunk]) -> None:
    """Raise CheckpointError unless the chunks fill the table, each place once."""
    inside = all(
        len(chunk.offsets) == len(chunk.sizes) == len(size)
        and all(first + num <= whole for first, num, whole in zip(chunk.offsets, chunk.sizes, size, strict=True))
        for chunk in chunks
    )
    full = [chunk for chunk in chunks if math.prod(chunk.sizes)]
    is_full = inside and sum(math.prod(chunk.sizes) for chunk in full) == math.prod(size)
    if is_full and not any(_overlap(a, b) for a, b in combinations(full, 2)):
        return
    raise CheckpointError(f"{path}: the {len(chunks)} chunks of {name!r} do not make up its size, {tuple(size)}")


def _overlap(a: _Chunk, b: _Chunk) -> bool:
    sides = zip(a.offsets, a.sizes, b.offsets, b.sizes, strict=True)
    return all(first < other + num_other and other < first + num for first, num, other, num_other in sides)


def _put_together(folder: Path, name: str, size: tuple[int, ...], chunks: Sequence[_Chunk]) -> Tensor:
    whole: Tensor | None = None
    for chunk in chunks:
        path = folder / chunk.file
        check_file(path)
        check_memory(path, chunk.length)
        part = read_weights(path, part_of(path, chunk.offset, chunk.length))
        if not isinstance(part, Tensor) or tuple(part.shape) != chunk.sizes:
            found = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise CheckpointError(f"{path}: a chunk of {name!r} is {found}, its index says {chunk.sizes}")
        _checked(path, name, part)
        if whole is None:
            check_memory(path, math.prod(size) * part.itemsize)
            whole = part.new_empty(size)
        if part.dtype != whole.dtype:
            raise CheckpointError(f"{path}: chunks of {name!r} are of {part.dtype} and of {whole.dtype}")
        whole[tuple(slice(a, a + num) for a, num in zip(chunk.offsets, chunk.sizes, strict=True))] = part
    assert whole is not None
    return whole


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
        raise CheckpointError(
            f"{path}: {name!r} is {tensor.dtype}, {tensor.layout}, on {tensor.device.type}: must be plain numbers"
        )
    return tensor


def check_file(path: Path) -> None:
    """Raise CheckpointError unless it is a file of its own folder."""
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(f"{path}: must be a file, and no link")


def check_memory(path: Path, needed: int) -> None:
    """Raise CheckpointError unless so many bytes are available."""
    if needed > (available := available_bytes()):
        raise CheckpointError(f"{path}: needs {needed >> 20} MiB of memory, {available >> 20} MiB are available")


def _shape(path: Path, name: str, found: object) -> tuple[int, ...]:
    if not isinstance(found, tuple) or not all(_is_count(number) for number in found):
        raise CheckpointError(f"{path}: {name!r} has {str(found)[:80]} in the place of a size")
    return found


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 62
