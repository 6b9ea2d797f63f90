"""Damaged and hostile files of a trainer: each is refused by name and cause, and nothing that one names is run."""

import os
import pickle  # noqa: TID251 (what an attacker writes is a pickle)
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from mfalcon.errors import CheckpointError
from mfalcon.importing.caged import read_caged
from mfalcon.importing.trainer_files import DENSE, INDEX, SPARSE, read_checkpoint
from tests.importing.writer import random_weights, write_checkpoint, write_dense, write_index

ITEM = "sparse_dict._embedding_collection.embeddings.item.weight"


def runs(folder: Path, function: str = "os\nsystem") -> bytes:
    """A pickle that runs a shell, which leaves a file in the folder above."""
    return f"c{function}\n(S'touch {folder.parent / 'ran'}'\ntR.".encode()


def zipped(pickled: bytes, path: Path) -> None:
    """As torch.save lays it out."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def dense(content: object) -> Callable[[Path], None]:
    return lambda folder: write_dense(folder / DENSE, content)


def linked(folder: Path) -> None:
    (folder / DENSE).rename(folder.parent / "elsewhere")
    (folder / DENSE).symlink_to(folder.parent / "elsewhere")


def replaced_by_folder(folder: Path) -> None:
    (folder / DENSE).unlink()
    (folder / DENSE).mkdir()


def cut(name: str, share: float) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, int(share * (folder / name).stat().st_size))


def index(change: Callable[[Metadata], object]) -> Callable[[Path], None]:
    """The index as it is, with something changed."""

    def damage(folder: Path) -> None:
        found: Metadata = pickle.loads((folder / SPARSE / INDEX).read_bytes())  # noqa: S301 (our own writer's)
        change(found)
        write_index(folder / SPARSE, found)

    return damage


def place(found: Metadata, **changes: Any) -> None:
    info = found.storage_data[MetadataIndex(ITEM, torch.Size([0, 0]), 0)]
    for name, value in changes.items():
        object.__setattr__(info, name, value)


def table(found: Metadata) -> TensorStorageMetadata:
    item = found.state_dict_metadata[ITEM]
    assert isinstance(item, TensorStorageMetadata)
    return item


def size(found: Metadata, *numbers: int) -> None:
    table(found).size = torch.Size(numbers)


def overlapping(found: Metadata) -> None:
    first, second = table(found).chunks
    table(found).chunks = [first, ChunkStorageMetadata(torch.Size([1, 0]), second.sizes)]
    found.storage_data[MetadataIndex(ITEM, torch.Size([1, 0]), 1)] = found.storage_data[
        MetadataIndex(ITEM, torch.Size([0, 0]), 0)
    ]


def code_in_a_table(folder: Path) -> None:
    zipped(runs(folder), folder / SPARSE / "code.distcp")
    length = (folder / SPARSE / "code.distcp").stat().st_size
    index(lambda found: place(found, relative_path="code.distcp", offset=0, length=length))(folder)


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / DENSE).write_bytes(runs(folder)), "not weights alone"),
    (lambda folder: zipped(runs(folder), folder / DENSE), "not weights alone.*system"),
    (lambda folder: zipped(runs(folder, "builtins\neval"), folder / DENSE), "not weights alone.*eval"),
    (lambda folder: zipped(runs(folder, "torch\nload"), folder / DENSE), "not weights alone.*torch.load"),
    (cut(DENSE, 0.5), "not weights alone"),
    (cut(DENSE, 0), "not weights alone"),
    (lambda folder: (folder / DENSE).write_bytes(b"\0" * (4 << 20)), "not weights alone"),
    (lambda folder: (folder / DENSE).unlink(), "must be a file, and no link"),
    (linked, "must be a file, and no link"),
    (replaced_by_folder, "must be a file, and no link"),
    (dense([1, 2]), "has no 'dense_dict'"),
    (dense({"dense_dict": {"a": 3}}), "'a' is a int, must be a tensor"),
    (dense({"dense_dict": {3: torch.zeros(1)}}), "'3' is a Tensor"),
    (dense({"dense_dict": {"a": torch.zeros(1).expand(1 << 45)}}), "MiB of memory"),
    (dense({"dense_dict": {"a": torch.zeros(3, 3).to_sparse()}}), "must be plain numbers"),
    (dense({"dense_dict": {"a": torch.zeros(3, dtype=torch.complex64)}}), "must be plain numbers"),
    (lambda folder: (folder / SPARSE / INDEX).write_bytes(runs(folder)), "it names os.system"),
    (lambda folder: (folder / SPARSE / INDEX).write_bytes(runs(folder, "builtins\neval")), "builtins.eval"),
    (lambda folder: (folder / SPARSE / INDEX).write_bytes(runs(folder, "torch\nload")), "torch.load"),
    (cut(f"{SPARSE}/{INDEX}", 0.5), "no index of a distributed checkpoint"),
    (lambda folder: (folder / SPARSE / INDEX).write_bytes(pickle.dumps([1])), "it is a list"),
    (lambda folder: (folder / SPARSE / INDEX).unlink(), "must be a file, and no link"),
    (code_in_a_table, "not weights alone"),
    (cut(f"{SPARSE}/__1_0.distcp", 0.5), "truncated"),
    (index(lambda found: place(found, relative_path="../../secret")), "must be one of its own folder"),
    (index(lambda found: place(found, length=-1)), "no place in a file"),
    (index(lambda found: place(found, transform_descriptors=["zstd"])), "compressed"),
    (index(lambda found: found.storage_data.clear()), "lies in no file"),
    (index(lambda found: size(found, 1 << 40, 6)), "do not make up its size"),
    (index(lambda found: size(found, -1, 6)), "in the place of a size"),
    (index(overlapping), "do not make up its size"),
    (index(lambda found: setattr(found, "state_dict_metadata", {ITEM: 3})), "state_dict_metadata is not"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("trainer") / "theirs", random_weights()[0])


def copied(written: Path, folder: Path) -> Path:
    for path in written.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(written)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(written)).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(("damage", "cause"), DAMAGES)
def test_it_is_refused_and_runs_nothing(
    written: Path, tmp_path: Path, damage: Callable[[Path], object], cause: str
) -> None:
    folder = copied(written, tmp_path / "theirs")
    damage(folder)
    with pytest.raises(CheckpointError, match=cause):
        read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_the_attack_would_work_elsewhere(tmp_path: Path) -> None:
    """Or nothing would be held here."""
    pickle.loads(runs(tmp_path / "theirs"))  # noqa: S301 (our own attack)
    assert (tmp_path / "ran").exists()


@pytest.mark.thorough
def test_a_refusal_crosses_from_the_process_without_network(written: Path, tmp_path: Path) -> None:
    folder = copied(written, tmp_path / "theirs")
    zipped(runs(folder), folder / DENSE)
    with pytest.raises(CheckpointError, match="not weights alone"):
        read_caged(folder, tmp_path)
    assert not (tmp_path / "ran").exists()
