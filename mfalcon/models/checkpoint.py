"""A checkpoint is a directory of four files: config.json, model.safetensors, items.safetensors and manifest.json.

The manifest holds the format version, the sha256 of every other file and the fingerprint that keys every KV state.
No pickle anywhere; a checkpoint that is not exactly what its manifest says is refused.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from mfalcon.errors import CheckpointError
from mfalcon.models.base import Ranker
from mfalcon.models.config import Frozen, RankerConfig
from mfalcon.models.items import ItemTable
from mfalcon.models.registry import architectures, build

FORMAT: Final = 1
CONFIG, WEIGHTS, ITEMS, MANIFEST = "config.json", "model.safetensors", "items.safetensors", "manifest.json"


class Manifest(Frozen):
    """manifest.json."""

    format: Literal[1]
    files: dict[str, str]
    """sha256 of every other file."""
    fingerprint: str
    """sha256 over `files`: two checkpoints that could score differently never share one."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint."""

    model: Ranker
    items: ItemTable
    fingerprint: str


def save(directory: Path, model: Ranker, items: ItemTable) -> str:
    """Write a checkpoint in float32; replaces one that is there, whole or not at all. Returns its fingerprint.

    Raises CheckpointError if something else is there.
    """
    check_replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        (scratch / CONFIG).write_text(model.config.model_dump_json(indent=2) + "\n")
        weights = {name: tensor.float().contiguous() for name, tensor in model.state_dict().items()}
        save_tensors(weights, scratch / WEIGHTS)
        save_arrays(_pack_items(items), scratch / ITEMS)
        files = {name: _sha256(scratch / name) for name in (CONFIG, WEIGHTS, ITEMS)}
        manifest = Manifest(format=FORMAT, files=files, fingerprint=_fingerprint(files))
        (scratch / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        # The temporary directory and safetensors' files are for their owner alone; a server may be another user.
        os.chmod(scratch, 0o755)
        for path in scratch.iterdir():
            os.chmod(path, 0o644)
        _swap(scratch, directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest.fingerprint


def check_replaceable(directory: Path) -> None:
    """Raise CheckpointError if `directory` is neither free nor a checkpoint: it would be somebody else's."""
    free = not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
    if not free and not (directory / MANIFEST).is_file():
        raise CheckpointError(f"{directory}: exists and is no checkpoint (no {MANIFEST}); it is not replaced")


def _swap(new: Path, directory: Path) -> None:
    """Put `new` in the place of `directory`; if that fails the old one is there as before."""
    if not directory.exists():
        os.rename(new, directory)
        return
    aside = new.with_name(f"{new.name}.replaced")
    os.rename(directory, aside)
    try:
        os.rename(new, directory)
    except BaseException:
        os.rename(aside, directory)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def load(directory: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Checkpoint:
    """Read and verify a checkpoint. Raises CheckpointError naming the file and the reason."""
    manifest = _manifest(directory)
    for name, expected in manifest.files.items():
        _check_sum(directory / name, expected)
    if manifest.fingerprint != _fingerprint(manifest.files):
        raise CheckpointError(f"{directory / MANIFEST}: fingerprint does not match its own list of files")
    config = _config(directory / CONFIG)
    items = _unpack_items(directory / ITEMS, config)
    model = build(config)
    _load_weights(model, directory / WEIGHTS)
    model.items.load_items(items)
    model.cast(dtype)
    return Checkpoint(model.to(device).eval().requires_grad_(False), items, manifest.fingerprint)


def load_items(directory: Path) -> ItemTable:
    """Only the item table of a checkpoint, verified. Raises CheckpointError."""
    manifest = _manifest(directory)
    for name in (CONFIG, ITEMS):
        _check_sum(directory / name, manifest.files[name])
    return _unpack_items(directory / ITEMS, _config(directory / CONFIG))


def _check_sum(path: Path, expected: str) -> None:
    if _sha256(_existing(path)) != expected:
        raise CheckpointError(f"{path}: sha256 differs from {MANIFEST} (truncated or modified)")


def _manifest(directory: Path) -> Manifest:
    path = _existing(directory / MANIFEST)
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            f"{path}: format {version} is newer than this program reads (up to {FORMAT}); upgrade mfalcon"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_first(error)}") from error
    if set(manifest.files) != {CONFIG, WEIGHTS, ITEMS}:
        raise CheckpointError(f"{path}: lists {sorted(manifest.files)}, expected {sorted((CONFIG, WEIGHTS, ITEMS))}")
    return manifest


def _config(path: Path) -> RankerConfig:
    try:
        config = RankerConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_first(error)}") from error
    if config.architecture not in architectures():
        raise CheckpointError(
            f"{path}: architecture {config.architecture!r} is not one of {', '.join(architectures())}"
        )
    return config


def _load_weights(model: Ranker, path: Path) -> None:
    try:
        weights = load_tensors(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    expected = model.state_dict()
    if missing := sorted(expected.keys() - weights.keys()):
        raise CheckpointError(f"{path}: lacks {len(missing)} tensors that {CONFIG} calls for, first {missing[0]!r}")
    if extra := sorted(weights.keys() - expected.keys()):
        raise CheckpointError(f"{path}: has {len(extra)} tensors that {CONFIG} does not know, first {extra[0]!r}")
    for name, tensor in weights.items():
        if tensor.dtype != torch.float32:
            raise CheckpointError(f"{path}: {name!r} is {tensor.dtype}, weights are stored in torch.float32")
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: {name!r} is {tuple(tensor.shape)}, {CONFIG} calls for {tuple(expected[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name!r} has values that are not finite")
    model.load_state_dict(weights)


def _pack_items(items: ItemTable) -> dict[str, np.ndarray]:
    titles = [title.encode() for title in items.titles]
    arrays: dict[str, np.ndarray] = {
        "item_id": np.ascontiguousarray(items.item_id),
        "title_utf8": np.frombuffer(b"".join(titles), dtype=np.uint8),
        "title_end": np.cumsum([len(title) for title in titles], dtype=np.int64),
    }
    return arrays | {f"side.{name}": np.ascontiguousarray(column) for name, column in items.side.items()}


def _unpack_items(path: Path, config: RankerConfig) -> ItemTable:
    try:
        arrays = load_arrays(path)
        text, ends = arrays["title_utf8"].tobytes(), arrays["title_end"].tolist()
        titles = tuple(text[start:end].decode() for start, end in zip([0, *ends][:-1], ends, strict=True))
        side = {name.removeprefix("side."): column for name, column in arrays.items() if name.startswith("side.")}
        items = ItemTable(arrays["item_id"], titles, side)
        items.check(config.side_features)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not an item table of this checkpoint ({error})") from error
    if items.num_rows != config.num_items:
        raise CheckpointError(f"{path}: {items.num_rows} rows, {CONFIG} says {config.num_items}")
    return items


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    return path


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _fingerprint(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "content"
    return f"{where}: {first['msg']} (got {str(first['input'])[:60]!r})"
