"""The tensors of an export of NVIDIA's recsys-examples: dense weights of each rank, `torch_module/model.R.pth`, and the
dynamic tables, `dynamicemb_module/COLLECTION/TABLE_emb_keys.rank_R.world_size_W` with `_emb_values` beside them.

Source: `examples/commons/checkpoint` and dynamicemb's `dump_load.py`: keys are int64, values float32, without a header.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from mfalcon.errors import CheckpointError
from mfalcon.importing.trainer_files import check_file, check_memory, read_dense

DENSE, TABLES = "torch_module", "dynamicemb_module"
KEYS, VALUES = "dynamicemb.{}.keys", "dynamicemb.{}.values"
"""Names of a table's two tensors here."""
_STATE = "model_state_dict"
_DENSE_FILE: Final = re.compile(r"model\.(\d{1,6})\.pth")
_KEY_FILE: Final = re.compile(r"(.+)_emb_keys\.rank_(\d{1,6})\.world_size_(\d{1,6})")
_KEY_BYTES, _VALUE_BYTES = 8, 4
_MOST_RANKS, _MOST_JSON_BYTES = 4_096, 1 << 20


def read_export(path: Path) -> dict[str, Tensor]:
    """Every tensor of an export by its name there, of a dynamic table by `KEYS` and `VALUES`. Raises CheckpointError
    naming the file and the cause.
    """
    if not (path / DENSE).is_dir() or (path / DENSE).is_symlink():
        raise CheckpointError(f"{path}: must be a folder with {DENSE} and {TABLES}, as the trainer writes it, no links")
    tensors = _dense(path / DENSE)
    if (path / TABLES).exists():
        tensors |= _tables(path / TABLES)
    return tensors


def _dense(folder: Path) -> dict[str, Tensor]:
    """Those of rank 0, which must be those of every rank."""
    ranks = sorted(int(match[1]) for path in folder.iterdir() if (match := _DENSE_FILE.fullmatch(path.name)))
    if ranks != list(range(len(ranks))) or not ranks or len(ranks) > _MOST_RANKS:
        raise CheckpointError(f"{folder}: has the ranks {ranks[:20]}, must have model.0.pth and those that follow it")
    first = read_dense(folder / "model.0.pth", _STATE)
    for rank in ranks[1:]:
        path = folder / f"model.{rank}.pth"
        other = read_dense(path, _STATE)
        unlike = [name for name in first.keys() | other.keys() if not _same(first.get(name), other.get(name))]
        if unlike:
            raise CheckpointError(
                f"{path}: {len(unlike)} tensors are not those of model.0.pth, first {min(unlike)[:80]!r}: weights that "
                "are split between ranks (tensor parallel) must be put together first"
            )
    return first


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b)


def _tables(folder: Path) -> dict[str, Tensor]:
    found = dict[str, dict[tuple[int, int], Path]]()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise CheckpointError(f"{path}: must be no link")
        if match := _KEY_FILE.fullmatch(path.name):
            parts = found.setdefault(match[1], {})
            at = int(match[2]), int(match[3])
            if at in parts:
                raise CheckpointError(f"{path}: table {match[1]!r} is also in {parts[at].parent}")
            parts[at] = path
    tensors = dict[str, Tensor]()
    for name, parts in found.items():
        worlds = {world for _, world in parts}
        if len(worlds) != 1 or {rank for rank, _ in parts} != set(range(min(worlds))):
            ranks = sorted(parts)[:20]
            raise CheckpointError(f"{folder}: table {name!r} has the parts (rank, of) {ranks}, must have each once")
        keys, values = _table(name, [parts[at] for at in sorted(parts)])
        tensors |= {KEYS.format(name): keys, VALUES.format(name): values}
    return tensors


def _table(name: str, paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Keys, int64 [n], which ascend, and values, float32 [n, dim]. Raises CheckpointError."""
    pairs = [(path, path.with_name(path.name.replace("_emb_keys.rank_", "_emb_values.rank_"))) for path in paths]
    sizes = list[tuple[int, int]]()
    for key_path, value_path in pairs:
        _check_type(key_path.with_name(f"{name}_opt_args.json"))
        check_file(key_path)
        check_file(value_path)
        check_memory(value_path, 3 * value_path.stat().st_size)
        sizes.append((key_path.stat().st_size, value_path.stat().st_size))
        if sizes[-1][0] % _KEY_BYTES or sizes[-1][1] % _VALUE_BYTES:
            raise CheckpointError(f"{key_path}: {sizes[-1]} bytes of keys and values are no whole numbers (truncated)")
    num_keys, num_values = sum(size // _KEY_BYTES for size, _ in sizes), sum(size // _VALUE_BYTES for _, size in sizes)
    dim = num_values // num_keys if num_keys else 0
    if not dim:
        raise CheckpointError(f"{paths[0]}: table {name!r} has {num_keys} keys and {num_values} values, must have some")
    for (key_path, _), (key_bytes, value_bytes) in zip(pairs, sizes, strict=True):
        if key_bytes // _KEY_BYTES * dim != value_bytes // _VALUE_BYTES:
            raise CheckpointError(
                f"{key_path}: {key_bytes // _KEY_BYTES} keys with {value_bytes // _VALUE_BYTES} values, must have "
                f"{dim} for each as the table has (truncated)"
            )
    keys = np.concatenate([np.fromfile(path, dtype="<i8") for path, _ in pairs])
    values = np.concatenate([np.fromfile(path, dtype="<f4") for _, path in pairs]).reshape(-1, dim)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    if twice := keys[1:][keys[1:] == keys[:-1]][:1].tolist():
        raise CheckpointError(f"{paths[0]}: table {name!r} has the key {twice[0]} twice")
    return torch.from_numpy(keys), torch.from_numpy(values[order])


def _check_type(path: Path) -> None:
    """Raise CheckpointError if what is told of a table says that its values are no float32."""
    if not path.exists():
        return
    check_file(path)
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, must have at most {_MOST_JSON_BYTES}")
    try:
        told = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({str(error)[:200]})") from error
    kind = str(told.get("embedding_dtype", "float32")) if isinstance(told, dict) else "float32"
    if kind.removeprefix("torch.") != "float32":
        raise CheckpointError(f"{path}: embedding_dtype is {kind[:40]!r}, must be float32, as dynamicemb dumps")
