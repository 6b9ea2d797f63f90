"""A checkpoint is a directory of four files: config.json, model.safetensors, items.safetensors and manifest.json.

The manifest holds the format version, the sha256 of every other file and the fingerprint that keys every KV state.
No pickle anywhere. A checkpoint that is not exactly what its manifest says is refused, as is one whose files lie
elsewhere, do not fit each other or do not fit into memory: all of that is known before a weight is read.
"""

import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from mfalcon.errors import CheckpointError, ConfigError
from mfalcon.memory import is_out_of_memory
from mfalcon.models.base import PrefixRanker, Ranker, prefix_ranker
from mfalcon.models.config import RankerConfig
from mfalcon.models.items import ItemTable
from mfalcon.models.manifest import (
    CONFIG,
    FORMAT,
    ITEMS,
    MANIFEST,
    NUM_EVENTS,
    TEXT_END,
    TEXT_UTF8,
    WEIGHTS,
    Manifest,
    check_memory,
    check_num_items,
    fingerprint_of,
    headers_of,
    read_config,
    read_items,
    sha256_of,
    verified,
)
from mfalcon.models.registry import GROUP, architectures, build, check_kind
from mfalcon.models.unfilled import unfilled
from mfalcon.models.writing import writing

_STORED = "F32"
_LARGEST_WEIGHT = 1e15
_LARGEST_OF = {torch.float16: 2.0**13}
"""Most that a weight may be, which is far above any that was learned: squared, and added up by a norm, it is finite.
float16 holds up to 2**16, and a token is the sum of several.
"""
_HEADS = ("heads.", "interest.")
_LARGEST_HEAD = torch.finfo(torch.float32).max
"""Heads stay at float32, and scores may be as large as the values that they learned."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint."""

    model: Ranker
    items: ItemTable
    fingerprint: str

    @property
    def prefix_model(self) -> PrefixRanker:
        """The model as one that encodes a history. Raises ConfigError for one that does not."""
        return prefix_ranker(self.model)


def save(directory: Path, model: Ranker, items: ItemTable) -> str:
    """Write a checkpoint in float32; replaces one that is there, whole or not at all. Returns its fingerprint.

    Raises CheckpointError if something else is there, or it cannot be written.
    """
    check_replaceable(directory)
    with writing(directory, "nothing was written or replaced there"):
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            manifest = _fill(scratch, model, items)
            _swap(scratch, directory)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return manifest.fingerprint


def _fill(directory: Path, model: Ranker, items: ItemTable) -> Manifest:
    """Write the four files."""
    (directory / CONFIG).write_text(model.config.model_dump_json(indent=2) + "\n")
    weights = {name: tensor.float().contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(weights, directory / WEIGHTS)
    save_arrays(_pack_items(items), directory / ITEMS)
    files = {name: sha256_of(directory / name) for name in (CONFIG, WEIGHTS, ITEMS)}
    manifest = Manifest(format=FORMAT, files=files, fingerprint=fingerprint_of(files))
    (directory / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    # The temporary directory and safetensors' files are for their owner alone; a server may be another user.
    os.chmod(directory, 0o755)
    for path in directory.iterdir():
        os.chmod(path, 0o644)
    return manifest


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
    manifest = verified(directory, (CONFIG, WEIGHTS, ITEMS))
    config = read_config(directory / CONFIG)
    if config.architecture not in architectures():
        raise CheckpointError(
            f"{directory / CONFIG}: architecture {config.architecture!r} is not one of {', '.join(architectures())}; "
            f"if it is of another package, that must be installed here (entry points {GROUP})"
        )
    try:
        check_kind(config)
    except ConfigError as error:
        raise CheckpointError(f"{directory / CONFIG}: {error}") from error
    check_num_items(directory / ITEMS, config)
    _check_weights(directory / WEIGHTS, config)
    try:
        items = read_items(directory / ITEMS, config)
        model = build(config)
        _load_weights(model, directory / WEIGHTS, dtype)
        model.items.load_items(items)
        model.cast(dtype)
        return Checkpoint(model.to(device).eval().requires_grad_(False), items, manifest.fingerprint)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise CheckpointError(f"{directory}: memory ended while it was loaded: {error}") from error


def _check_weights(path: Path, config: RankerConfig) -> None:
    """By the header alone. Raises CheckpointError unless it has just the tensors of the model, and that fits in memory.

    The model's shapes are those of one without memory, on the meta device.
    """
    found = headers_of(path)
    with unfilled():
        model = build(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"{path}: lacks {len(missing)} tensors that {CONFIG} calls for, first {missing[0]!r}")
    if extra := sorted(found.keys() - expected.keys()):
        raise CheckpointError(f"{path}: has {len(extra)} tensors that {CONFIG} does not know, first {extra[0]!r}")
    for name, header in found.items():
        if header.shape != expected[name]:
            raise CheckpointError(f"{path}: {name!r} is {header.shape}, {CONFIG} calls for {expected[name]}")
        if header.dtype != _STORED:
            raise CheckpointError(f"{path}: {name!r} is {header.dtype}, weights are stored as {_STORED}")
    check_memory(path, sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())))


def _load_weights(model: Ranker, path: Path, dtype: torch.dtype) -> None:
    """Raises CheckpointError for a weight that is not finite, or too large to compute with in this dtype."""
    for name, tensor in (weights := load_tensors(path)).items():
        low, high = (float(end) for end in tensor.aminmax()) if tensor.numel() else (0.0, 0.0)
        worst = max(-low, high)  # NaN if there is one
        most = _LARGEST_HEAD if name.startswith(_HEADS) else _LARGEST_OF.get(dtype, _LARGEST_WEIGHT)
        if not math.isfinite(worst):
            raise CheckpointError(f"{path}: {name!r} has values that are not finite")
        if worst > most:
            computed = str(dtype).removeprefix("torch.")
            raise CheckpointError(f"{path}: {name!r} has values of up to {worst:.3g}, at most {most:g} fit {computed}")
    model.load_state_dict(weights)


def _pack_items(items: ItemTable) -> dict[str, np.ndarray]:
    titles = [title.encode() for title in items.titles]
    arrays: dict[str, np.ndarray] = {
        "item_id": np.ascontiguousarray(items.item_id),
        "title_utf8": np.frombuffer(b"".join(titles), dtype=np.uint8),
        "title_end": np.cumsum([len(title) for title in titles], dtype=np.int64),
    }
    if items.num_events is not None:
        arrays[NUM_EVENTS] = np.ascontiguousarray(items.num_events)
    if items.texts is not None:
        arrays |= {TEXT_UTF8: np.ascontiguousarray(items.texts.utf8), TEXT_END: np.ascontiguousarray(items.texts.end)}
    return arrays | {f"side.{name}": np.ascontiguousarray(column) for name, column in items.side.items()}
