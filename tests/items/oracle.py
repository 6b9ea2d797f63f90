"""What a table is after some deltas, made the long way: another checkpoint, whose rows are these."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mfalcon.items.delta import Delta
from mfalcon.models.base import TaskRanker
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.items import ItemTable
from mfalcon.models.registry import build
from mfalcon.types import Ids
from tests.small import GENRES


def patched(checkpoint: Checkpoint, deltas: Sequence[Delta]) -> Checkpoint:
    """The checkpoint that a trainer would have written instead of these deltas."""
    weights, table = checkpoint.model.state_dict(), checkpoint.items
    base = _rows(checkpoint)
    rows = dict(base)
    for delta in deltas:
        if delta.replaces:
            rows = dict(base)
        for index, item_id in enumerate(delta.item_id.tolist()):
            old = rows.get(item_id, _Row(weights, table, 0))
            rows[item_id] = old.changed(delta, index)
    ids = sorted(rows)
    of = [rows[item_id] for item_id in ids]
    items = ItemTable(
        np.array(ids, dtype=np.int64),
        ("",) * len(ids),
        {name: np.stack([row.side[name] for row in of]) for name in table.side},
    )
    dtype = checkpoint.model.dtype
    model = build(checkpoint.model.config.model_copy(update={"num_items": len(ids) + 1}))
    model.eval().requires_grad_(False)
    state = dict(weights)
    for name, column in (("items.id.weight", "vector"), ("heads.item_bias.weight", "bias")):
        if name in state:
            state[name] = torch.stack([weights[name][0], *(getattr(row, column) for row in of)])
    model.load_state_dict(state)
    model.items.load_items(items)
    model.cast(dtype)
    return Checkpoint(model, items, checkpoint.fingerprint)


class _Row:
    def __init__(self, weights: dict[str, torch.Tensor], table: ItemTable, row: int) -> None:
        self.vector = weights["items.id.weight"][row]
        bias = weights.get("heads.item_bias.weight")
        self.bias = None if bias is None else bias[row]
        self.side = {name: column[row - 1] if row else column[0] * 0 for name, column in table.side.items()}

    def changed(self, delta: Delta, index: int) -> "_Row":
        row = _Row.__new__(_Row)
        row.vector, row.bias, row.side = self.vector, self.bias, dict(self.side)
        if delta.vector is not None:
            row.vector = torch.from_numpy(delta.vector[index]).to(self.vector.dtype)
        if delta.bias is not None and self.bias is not None:
            row.bias = torch.from_numpy(delta.bias[index]).to(self.bias.dtype)
        row.side |= {name: column[index] for name, column in delta.side.items()}
        return row


def _rows(checkpoint: Checkpoint) -> dict[int, _Row]:
    weights, table = checkpoint.model.state_dict(), checkpoint.items
    return {item_id: _Row(weights, table, index + 1) for index, item_id in enumerate(table.item_id.tolist())}


def delta_of(
    checkpoint: Checkpoint,
    item_ids: Ids,
    seed: int = 0,
    *,
    columns: str = "vbs",
    number: int = 0,
    replaces: bool = False,
) -> Delta:
    """Random rows. columns: v for vectors, b for biases, s for side features."""
    rng, num, config = np.random.default_rng(seed), len(item_ids), checkpoint.model.config
    has_bias = isinstance(checkpoint.model, TaskRanker)
    return Delta(
        number,
        checkpoint.fingerprint,
        np.array(item_ids, dtype=np.int64),
        rng.normal(size=(num, config.dim), scale=0.4).astype(np.float32) if "v" in columns else None,
        rng.normal(size=(num, len(config.tasks)), scale=0.4).astype(np.float32)
        if "b" in columns and has_bias
        else None,
        {
            "genres": (rng.random((num, len(GENRES))) < 0.5).astype(np.uint8),
            "decade": rng.integers(0, 3, num),
        }
        if "s" in columns
        else {},
        replaces,
    )


def numbered(delta: Delta, number: int) -> Delta:
    return replace(delta, number=number)
