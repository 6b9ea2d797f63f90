"""Any bytes as one of the files of a checkpoint, which its manifest says are right. The first byte is the file."""

import shutil
from functools import cache
from pathlib import Path

import torch

from loadtest.faults.bad_checkpoints import sign
from mfalcon.errors import CheckpointError
from mfalcon.models.checkpoint import load, save
from mfalcon.models.manifest import CONFIG, ITEMS, MANIFEST, WEIGHTS
from mfalcon.models.registry import build
from tests.fuzz.files import directory
from tests.small import small_config, small_items

FILES = (CONFIG, ITEMS, MANIFEST, WEIGHTS)


@cache
def good() -> Path:
    """A checkpoint as small as they are."""
    path = directory("checkpoint") / "good"
    torch.manual_seed(0)
    save(path, build(small_config(num_layers=1)), small_items())
    return path


def seeds() -> list[bytes]:
    """The files as they are written; of the weights the header, which a target puts before weights of zero."""
    weights = (good() / WEIGHTS).read_bytes()
    header = weights[: 8 + int.from_bytes(weights[:8], "little")]
    return [bytes((number,)) + (good() / name).read_bytes() for number, name in enumerate(FILES[:3])] + [b"\3" + header]


def target(data: bytes) -> None:
    """A checkpoint or a CheckpointError."""
    if not data:
        return
    name, content = FILES[data[0] % len(FILES)], data[1:]
    path = directory("checkpoint") / "fuzzed"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(good(), path)
    if name == WEIGHTS:
        content += bytes(max(0, (good() / WEIGHTS).stat().st_size - len(content)))
    (path / name).write_bytes(content)
    if name != MANIFEST:
        sign(path)
    try:
        load(path)
    except CheckpointError:
        return
