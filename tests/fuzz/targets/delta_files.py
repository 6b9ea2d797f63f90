"""Any bytes as the manifest of a delta of item rows, or as its columns, which the manifest says are right.

The first byte is which.
"""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np

from mfalcon.errors import CheckpointError, InvalidInput
from mfalcon.items.delta import Delta
from mfalcon.items.delta_file import SUFFIX, DeltaManifest, read_delta, read_manifest, write_delta
from tests.fuzz.files import directory
from tests.small import small_config

CONFIG = small_config()
FINGERPRINT = "0123456789abcdef" * 4


@cache
def good() -> Path:
    """The manifest of a delta with every column."""
    ids, side = np.arange(2), {}
    for feature in CONFIG.side_features:
        shape = (2,) if feature.kind == "category" else (2, len(feature.vocabulary))
        side[feature.name] = np.ones(shape, np.int64 if feature.kind == "category" else np.uint8)
    vector, bias = np.ones((2, CONFIG.dim), np.float32), np.zeros((2, len(CONFIG.tasks)), np.float32)
    return write_delta(directory("delta"), Delta(1, FINGERPRINT, ids, vector, bias, side))


def seeds() -> list[bytes]:
    """Both files as they are written, and columns of other shapes and types."""
    manifest = read_manifest(good())
    columns = (good().parent / manifest.file).read_bytes()
    return [b"\0" + good().read_bytes(), b"\1" + columns, *(b"\1" + odd(dtype) for dtype in ("I64", "BF16", "F4"))]


def odd(dtype: str) -> bytes:
    """Columns of no dimension and of types that numpy may lack."""
    header = (
        b'{"item_id":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
        b'"side.decade":{"dtype":"%s","shape":[1,1],"data_offsets":[8,16]}}' % dtype.encode()
    )
    return len(header).to_bytes(8, "little") + header + bytes(16)


def target(data: bytes) -> None:
    """A delta that fits the model, or the error that says why there is none."""
    if not data:
        return
    path, content = directory("delta") / f"fuzzed{SUFFIX}", data[1:]
    if data[0] % 2:
        columns = path.with_name("fuzzed.safetensors")
        columns.write_bytes(content)
        said = DeltaManifest(
            number=1, checkpoint=FINGERPRINT, file=columns.name, sha256=hashlib.sha256(content).hexdigest()
        )
        content = said.model_dump_json().encode()
    path.write_bytes(content)
    try:
        delta = read_delta(path, read_manifest(path)).fitted(CONFIG)
        delta.check(CONFIG, FINGERPRINT)
        delta.digest(b"")
    except (InvalidInput, CheckpointError):
        return
