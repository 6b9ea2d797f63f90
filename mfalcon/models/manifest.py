"""What of a checkpoint is read without torch: its manifest, its configuration and its item table."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_arrays

from mfalcon.errors import CheckpointError
from mfalcon.memory import available_bytes
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_kinds import Frozen
from mfalcon.models.items import ItemTable
from mfalcon.models.texts import Texts

FORMAT: Final = 1
CONFIG, WEIGHTS, ITEMS, MANIFEST = "config.json", "model.safetensors", "items.safetensors", "manifest.json"
NUM_EVENTS: Final = "num_events"
TEXT_UTF8, TEXT_END = "text_utf8", "text_end"
"""Arrays of an item table that a checkpoint may lack, the last two together. An older program passes over them."""
MOST_MANIFEST_BYTES: Final = 1 << 20
_MOST_BYTES: Final = {MANIFEST: MOST_MANIFEST_BYTES, CONFIG: 64 << 20}
"""Of the files that are parsed as text."""


class Manifest(Frozen):
    """manifest.json."""

    format: Literal[1]
    files: dict[str, str]
    """sha256 of every other file."""
    fingerprint: str
    """sha256 over `files`: two checkpoints that could score differently never share one."""


def load_items(directory: Path) -> ItemTable:
    """Only the item table of a checkpoint, verified. Raises CheckpointError."""
    verified(directory, (CONFIG, ITEMS))
    config = read_config(directory / CONFIG)
    check_num_items(directory / ITEMS, config)
    return read_items(directory / ITEMS, config)


def verified(directory: Path, names: Iterable[str]) -> Manifest:
    """The manifest, if these files are in the directory, fit into memory and are what it says.

    Raises CheckpointError.
    """
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory}: is no directory; a checkpoint is one with a {MANIFEST}")
    manifest = read_manifest(directory)
    if manifest.fingerprint != fingerprint_of(manifest.files):
        raise CheckpointError(f"{directory / MANIFEST}: fingerprint does not match its own list of files")
    paths = {name: _existing(directory, name) for name in names}
    for path in paths.values():
        check_memory(path, path.stat().st_size)
    for name, path in paths.items():
        if sha256_of(path) != manifest.files[name]:
            raise CheckpointError(f"{path}: sha256 differs from {MANIFEST} (truncated or modified)")
    return manifest


def check_memory(path: Path, needed: int) -> None:
    """Raise CheckpointError unless so many bytes, which a file needs, are available."""
    available = available_bytes()
    if needed > available:
        raise CheckpointError(f"{path}: needs {needed >> 20} MiB of memory, {available >> 20} MiB are available")


def check_num_items(path: Path, config: RankerConfig) -> None:
    """Raise CheckpointError unless an item table has as many rows as the configuration says, by its header alone."""
    shape = headers_of(path).get("item_id", Header("", ())).shape
    if len(shape) == 1 and shape[0] + 1 != config.num_items:
        raise CheckpointError(f"{path}: {shape[0] + 1} rows, {CONFIG} says {config.num_items}")


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of a tensor. dtype: "F32" and so on."""

    dtype: str
    shape: tuple[int, ...]


def headers_of(path: Path) -> dict[str, Header]:
    """Every tensor of a safetensors file, of which the header alone is read. Raises CheckpointError."""
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {name: Header(one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint. Raises CheckpointError."""
    path = _existing(directory, MANIFEST)
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
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
        if any(stop < start for start, stop in zip([0, *ends], [*ends, len(text)], strict=True)):
            raise ValueError("title_end: must ascend, up to the length of title_utf8")
        titles = tuple(text[start:end].decode() for start, end in zip([0, *ends][:-1], ends, strict=True))
        side = {name.removeprefix("side."): column for name, column in arrays.items() if name.startswith("side.")}
        texts = Texts(arrays[TEXT_UTF8], arrays[TEXT_END]) if TEXT_UTF8 in arrays else None
        counts, is_open = arrays.get(NUM_EVENTS), config.shared is not None
        items = ItemTable(arrays["item_id"], titles, side, counts, is_open, texts)
        items.check(config.side_features)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not an item table of this checkpoint ({error})") from error
    return items


def _existing(directory: Path, name: str) -> Path:
    """The path of a file of a checkpoint. Raises CheckpointError unless it is there, not elsewhere, not too long."""
    path = directory / name
    try:
        is_file, real = path.is_file(), Path(os.path.realpath(path))
        size = path.stat().st_size if is_file else 0
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not is_file:
        hint = f"; a checkpoint has {', '.join((CONFIG, WEIGHTS, ITEMS, MANIFEST))}" if directory.is_dir() else ""
        raise CheckpointError(f"{path}: no such file{hint}")
    if not real.is_relative_to(os.path.realpath(directory)):
        raise CheckpointError(f"{path}: is a link to {real}, outside of the checkpoint")
    if size > (most := _MOST_BYTES.get(name, size)):
        raise CheckpointError(f"{path}: has {size} bytes, must have at most {most}")
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
