"""Damaged and hostile files of a trainer: each is refused by name and cause, in one screen, within a limit of memory,
and nothing that one names is run. docs/importing.md counts them.
"""

import json
import os
import pickle  # noqa: TID251 (what an attacker writes is a pickle)
import re
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata
from typer.testing import CliRunner

from mfalcon.cli.import_model import app
from mfalcon.errors import CheckpointError
from mfalcon.importing.caged import read_caged
from mfalcon.importing.trainer_files import DENSE, INDEX, SPARSE
from tests.importing.writer import SIDECAR, random_weights, write_checkpoint, write_dense, write_index

ITEM = "sparse_dict._embedding_collection.embeddings.item.weight"


def runs(folder: Path, function: str = "os\nsystem") -> bytes:
    """A pickle that runs a shell, which leaves a file in the folder above."""
    return f"c{function}\n(S'touch {folder.parent / 'ran'}'\ntR.".encode()


def zipped(pickled: bytes, path: Path, packing: int = zipfile.ZIP_STORED) -> None:
    """As torch.save lays it out."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def dense(content: object) -> Callable[[Path], None]:
    return lambda folder: write_dense(folder / DENSE, content)


def linked(folder: Path) -> None:
    (folder / DENSE).rename(folder.parent / f"{folder.name} dense")
    (folder / DENSE).symlink_to(folder.parent / f"{folder.name} dense")


def replaced_by_folder(folder: Path) -> None:
    (folder / DENSE).unlink()
    (folder / DENSE).mkdir()


def doubled(folder: Path) -> None:
    """A second archive member by the name of the first."""
    with warnings.catch_warnings(), zipfile.ZipFile(folder / DENSE, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(archive.infolist()[0].filename, runs(folder))


def linked_tables(folder: Path) -> None:
    (folder / SPARSE).rename(folder.parent / f"{folder.name} elsewhere")
    (folder / SPARSE).symlink_to(folder.parent / f"{folder.name} elsewhere")


def pipe(folder: Path) -> None:
    (folder / DENSE).unlink()
    os.mkfifo(folder / DENSE)


def index_bytes(content: bytes) -> Callable[[Path], None]:
    return lambda folder: replace_index(folder, content)


def replace_index(folder: Path, content: bytes) -> None:
    (folder / SPARSE / INDEX).write_bytes(content)


def chunk(content: object) -> Callable[[Path], None]:
    """A part of a table that is something else than its index says."""

    def damage(folder: Path) -> None:
        write_dense(folder / SPARSE / "other.distcp", content)
        length = (folder / SPARSE / "other.distcp").stat().st_size
        index(lambda found: place(found, relative_path="other.distcp", offset=0, length=length))(folder)

    return damage


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


KINDS: dict[str, list[tuple[Callable[[Path], object], str]]] = {
    "pickles that run code": [
        (lambda folder: (folder / DENSE).write_bytes(runs(folder)), "not weights alone"),
        (lambda folder: zipped(runs(folder), folder / DENSE), "not weights alone.*system"),
        (lambda folder: zipped(runs(folder, "builtins\neval"), folder / DENSE), "not weights alone.*eval"),
        (lambda folder: zipped(runs(folder, "torch\nload"), folder / DENSE), "not weights alone.*torch.load"),
        (lambda folder: (folder / SPARSE / INDEX).write_bytes(runs(folder)), "it names os.system"),
        (lambda folder: (folder / SPARSE / INDEX).write_bytes(runs(folder, "builtins\neval")), "builtins.eval"),
        (lambda folder: (folder / SPARSE / INDEX).write_bytes(runs(folder, "torch\nload")), "torch.load"),
        (code_in_a_table, "not weights alone"),
    ],
    "truncated, empty, overwritten or missing": [
        (cut(DENSE, 0.5), "not weights alone"),
        (cut(DENSE, 0), "not weights alone"),
        (lambda folder: (folder / DENSE).write_bytes(b"\0" * (4 << 20)), "not weights alone"),
        (lambda folder: (folder / DENSE).unlink(), "must be a file, and no link"),
        (cut(f"{SPARSE}/{INDEX}", 0.5), "no index of a distributed checkpoint"),
        (lambda folder: (folder / SPARSE / INDEX).unlink(), "must be a file, and no link"),
        (cut(f"{SPARSE}/__1_0.distcp", 0.5), "truncated"),
    ],
    "links, folders and pipes in the place of files, and names of files elsewhere": [
        (linked, "must be a file, and no link"),
        (replaced_by_folder, "must be a file, and no link"),
        (linked_tables, "must be a folder, and no link"),
        (pipe, "must be a file, and no link"),
        (index(lambda found: place(found, relative_path="../../secret")), "must be one of its own folder"),
        (index(lambda found: place(found, relative_path="__1_0\0\x1b[2J")), r"__1_0\?\?\[2J: must be a file"),
    ],
    "sizes, places, counts and types that lie": [
        (index(lambda found: place(found, length=-1)), "no place in a file"),
        (index(lambda found: found.storage_data.clear()), "lies in no file"),
        (index(lambda found: size(found, 1 << 40, 6)), "do not make up its size"),
        (index(lambda found: size(found, -1, 6)), "in the place of a size"),
        (index(overlapping), "do not make up its size"),
        (index(lambda found: setattr(found, "state_dict_metadata", {ITEM: 3})), "state_dict_metadata is not"),
        (index(lambda found: place(found, offset=1 << 40)), "truncated"),
        (index(lambda found: place(found, length=10**5000)), "no place in a file"),
        (index(lambda found: setattr(table(found), "chunks", table(found).chunks * 600)), "must have at most 1000"),
        (chunk(torch.zeros(3, 3)), r"is \(3, 3\), its index says"),
        (chunk(torch.zeros(21, 6, dtype=torch.float32)), "are of torch.float16 and of torch.float32"),
    ],
    "no tensor of numbers, or one that is there twice": [
        (dense([1, 2]), "has no 'dense_dict'"),
        (dense({"dense_dict": {"a": 3}}), "'a' is a int, must be a tensor"),
        (dense({"dense_dict": {3: torch.zeros(1)}}), "'3' is a Tensor"),
        (dense({"dense_dict": {"a": torch.zeros(3, 3).to_sparse()}}), "must be plain numbers"),
        (dense({"dense_dict": {"a": torch.zeros(3, dtype=torch.complex64)}}), "must be plain numbers"),
        (lambda folder: (folder / SPARSE / INDEX).write_bytes(pickle.dumps([1])), "it is a list"),
        (dense({"dense_dict": {"a" * (1 << 20): 3}}), "must be a tensor"),
        (dense({"dense_dict": {ITEM.removeprefix("sparse_dict."): torch.zeros(1)}}), "is both in"),
        (index_bytes(b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20) + b"."), "it is a int"),
        (index_bytes(b"(" * 100_000 + b"t" * 100_000 + b"."), "it is a tuple"),
        (chunk({"a": torch.zeros(3)}), "is dict, its index says"),
        (chunk(torch.zeros(21, 6, dtype=torch.complex64)), "must be plain numbers"),
        (doubled, "two files of one name"),
    ],
    "packed, or asking for more memory than the files account for": [
        (dense({"dense_dict": {"a": torch.zeros(1).expand(1 << 45)}}), "MiB of memory"),
        (index(lambda found: place(found, transform_descriptors=["zstd"])), "compressed"),
        (
            lambda folder: zipped(b"\0" * (64 << 20), folder / DENSE, zipfile.ZIP_DEFLATED),
            "compressed, which torch.save",
        ),
        (index_bytes(b"Nr" + struct.pack("<I", 1 << 28) + b"."), "MiB of memory, the limit for its files"),
    ],
}
DAMAGES = [damage for kind in KINDS.values() for damage in kind]
MEMORY = 256 << 20
"""Far above what these files take, and below what some of them ask for."""
SCREEN = 2_000
IN_THE_CAGE = """
import json, sys
from pathlib import Path
from mfalcon.errors import CheckpointError
from mfalcon.importing.cage import enter
from mfalcon.importing.caged import read_safely
memory = int(sys.argv[1])
enter(memory)
for folder in sys.argv[2:]:
    try:
        read_safely("dlrm-v3", Path(folder), memory)
        print(json.dumps("was read"))
    except CheckpointError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("trainer") / "theirs", random_weights()[0])


def copied(written: Path, folder: Path) -> Path:
    for path in written.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(written)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(written)).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def refusals(written: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """What one process in the cage says of all of them, one after the other, and the folder that they lie in."""
    root = tmp_path_factory.mktemp("hostile")
    folders = [copied(written, root / f"{number}") for number in range(len(DAMAGES))]
    for folder, (damage, _) in zip(folders, DAMAGES, strict=True):
        damage(folder)
    before = sorted(root.rglob("*"))
    command = [sys.executable, "-c", IN_THE_CAGE, str(MEMORY), *map(str, folders)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(root.rglob("*")) == before  # nothing is written, and nothing was run, which would leave `ran`
    return root, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_it_is_refused_in_one_screen_and_runs_nothing(refusals: tuple[Path, list[str]], number: int) -> None:
    said = refusals[1][number]
    assert re.search(DAMAGES[number][1], said)
    assert len(said) <= SCREEN and str(refusals[0] / f"{number}") in said


def test_the_page_counts_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "importing.md").read_text()
    counts = {kind: int(number) for kind, number in re.findall(r"^\| ([^|]+) \| (\d+) \|$", page, re.MULTILINE)}
    assert counts == {kind: len(damages) for kind, damages in KINDS.items()}


def test_the_attack_would_work_elsewhere(tmp_path: Path) -> None:
    """Or nothing would be held here."""
    pickle.loads(runs(tmp_path / "theirs"))  # noqa: S301 (our own attack)
    assert (tmp_path / "ran").exists()


def test_what_takes_too_long_is_ended(written: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="was not read within 0 seconds"):
        read_caged("dlrm-v3", written, tmp_path, seconds=0.01)
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_a_key_that_takes_forever_to_hash_is_ended(written: Path, tmp_path: Path) -> None:
    """A tuple of twice the same tuple, sixty deep: small in the file, and a hash of it never ends."""
    folder = copied(written, tmp_path / "theirs")
    replace_index(folder, b"}" + b")" + b"q\0h\0\x86" * 60 + b"Ns.")
    with pytest.raises(CheckpointError, match="was not read within 20 seconds"):
        read_caged("dlrm-v3", folder, tmp_path, seconds=20)


@pytest.mark.thorough
def test_a_refusal_crosses_from_the_process_and_leaves_nothing(written: Path, tmp_path: Path) -> None:
    folder = copied(written, tmp_path / "theirs")
    zipped(runs(folder), folder / DENSE)
    (tmp_path / "side.toml").write_text(SIDECAR)
    before = sorted(tmp_path.rglob("*"))
    command = [
        "dlrm-v3",
        str(folder),
        "--config",
        str(tmp_path / "side.toml"),
        "--out",
        str(tmp_path / "deep" / "ours"),
    ]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, CheckpointError) and "not weights alone" in str(result.exception)
    assert sorted(tmp_path.rglob("*")) == before
