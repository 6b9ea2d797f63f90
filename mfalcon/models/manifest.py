"""What of a checkpoint is read without torch: its manifest, its configuration and its item table."""

import hashlib
import json
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays

from mfalcon.errors import CheckpointError
from mfalcon.models.config import Frozen, RankerConfig
from mfalcon.models.items import ItemTable

FORMAT: Final = 1
CONFIG, WEIGHTS, ITEMS, MANIFEST = "config.json", "model.safetensors", "items.safetensors", "manifest.json"


class Manifest(Frozen):
    """manifest.json."""

    format: Literal[1]
    files: dict[str, str]
    """sha256 of every other file."""
    fingerprint: str
    """sha256 over `files`: two checkpoints that could score differently never share one."""


def load_items(directory: Path) -> ItemTable:
    """Only the item table of a checkpoint, verified. Raises CheckpointError."""
    manifest = read_manifest(directory)
    for name in (CONFIG, ITEMS):
        check_sum(directory / name, manifest.files[name])
    return read_items(directory / ITEMS, read_config(directory / CONFIG))


def check_sum(path: Path, expected: str) -> None:
    """Raise CheckpointError unless a file is there and has this sha256."""
    if sha256_of(_existing(path)) != expected:
        raise CheckpointError(f"{path}: sha256 differs from {MANIFEST} (truncated or modified)")


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError."""
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


def read_config(path: Path) -> RankerConfig:
    """A checkpoint's configuration. Raises CheckpointError."""
    try:
        config = RankerConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_first(error)}") from error
    return config


def read_items(path: Path, config: RankerConfig) -> ItemTable:
    """A checkpoint's item table, held against its configuration. Raises CheckpointError."""
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


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def fingerprint_of(files: dict[str, str]) -> str:
    """The fingerprint that a manifest with this list of files has."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "content"
    return f"{where}: {first['msg']} (got {str(first['input'])[:60]!r})"
