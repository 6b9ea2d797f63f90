"""An export of NVIDIA's recsys-examples becomes a checkpoint of ours; what cannot be mapped is listed by name."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from mfalcon.algorithm import append, prefill, score
from mfalcon.backends.select import reference
from mfalcon.cli.import_model import app
from mfalcon.errors import CheckpointError, ConfigError, DataError
from mfalcon.importing.caged import read_safely
from mfalcon.importing.recsys_examples import RecsysSidecar, imported_recsys
from mfalcon.importing.recsys_files import read_export
from mfalcon.importing.recsys_parity import recsys_parity
from mfalcon.models.base import Targets, event_tokens
from mfalcon.models.checkpoint import load
from mfalcon.testing import is_prefix_stable
from mfalcon.types import EVENT_DTYPE
from tests.importing.recsys_writer import (
    ACTIONS,
    DIM,
    NORM,
    STATIC,
    Layout,
    dense_of,
    logits,
    sidecar,
    theirs,
    write_dense,
    write_export,
    write_table,
)

BOUND = 1e-6  # float32 here, float64 there
HISTORY = [7, 12, -3, 5, 999, 7, 2**62 + 1, 44, 43, 42]  # 999 is unknown
MASKS = [1, 2, 3, 1, 2, 0, 1, 1, 3, 2]
CANDIDATES = [12, 41, 998, 7]
MODEL = theirs()


def expected(length: int, norm: float = NORM) -> Tensor:
    """[num_candidates, 2], of the newest events."""
    items, actions = HISTORY[:length], MASKS[:length]
    return torch.stack([logits(MODEL, items, actions, one, norm) for one in CANDIDATES]).sigmoid()


def lines() -> list[dict[str, object]]:
    """Requests as a trainer's script writes them; one was scored with another divisor."""
    return [
        {
            "items": HISTORY[:length],
            "actions": MASKS[:length],
            "candidates": CANDIDATES,
            "scores": {"clicks": scores[:, 0].tolist(), "likes": scores[:, 1].tolist()},
        }
        | ({"scaling_seqlen": 17} if norm == 17 else {})
        for length, norm in ((10, NORM), (0, NORM), (6, 17.0))
        for scores in [expected(length, norm)]
    ]


@pytest.mark.parametrize("layout", ["native", "fused", "legacy"])
def test_it_scores_as_its_trainer_does(tmp_path: Path, layout: Layout) -> None:
    """By the requests of a file, and as it serves: a prefill, an append and microbatches."""
    found = imported_recsys(read_export(write_export(tmp_path / "theirs", MODEL, layout)), sidecar(layout))
    assert found.items.item_id.tolist() == sorted(MODEL.keys)
    (tmp_path / "asked").write_text("\n".join(json.dumps(line) for line in lines()))
    compared = recsys_parity(found, tmp_path / "asked")
    assert compared.worst <= BOUND and compared.num_scores == 24 and compared.served_worst > 1e-4
    events = np.zeros(len(HISTORY), dtype=EVENT_DTYPE)
    events["item_id"], events["actions"] = HISTORY, MASKS
    served, device = reference(found.model), torch.device("cpu")
    parts = [event_tokens(part, found.items, device) for part in (events[:3], events[3:])]
    rows = torch.from_numpy(found.items.rows(np.array(CANDIDATES)))
    with torch.inference_mode():
        state = append(served, prefill(served, parts[0]), parts[1])
        scores = score(served, state, Targets(rows, torch.empty(0, dtype=torch.int64)), 10**12, 3)
    assert float((scores - expected(10)).abs().max()) <= BOUND


def test_static_tables_score_as_dynamic_ones_do() -> None:
    """Whose keys are the rows."""
    model = theirs(keys=list(range(11)))
    both = imported_recsys(dense_of(model, is_static=True), sidecar()).model
    assert torch.equal(both.items.id.weight[1:], model.items) and torch.equal(both.action.weight, model.actions)


def test_the_command_writes_a_checkpoint_that_keeps_states(tmp_path: Path) -> None:
    """Through the process without network; `verify` and `serve` read what it writes."""
    folder = write_export(tmp_path / "theirs", MODEL)
    side = sidecar().model_dump(mode="json", exclude_none=True)
    (tmp_path / "side.toml").write_text(toml(side))
    (tmp_path / "asked").write_text("\n".join(json.dumps(line) for line in lines()))
    command = ["recsys-examples", str(folder), "--config", str(tmp_path / "side.toml"), "--out", str(tmp_path / "ours")]
    result = CliRunner().invoke(app, [*command, "--requests", str(tmp_path / "asked"), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["parity"]["worst"] <= BOUND and told["prefix_stable"]
    loaded = load(tmp_path / "ours", torch.float64)
    assert loaded.items.item_id.tolist() == sorted(MODEL.keys) and is_prefix_stable(loaded)


def toml(values: dict[str, object]) -> str:
    """JSON is TOML but for objects, which are inline tables here."""

    def said(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{name} = {said(one)}" for name, one in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(said, value)) + "]"
        return json.dumps(value)

    return "\n".join(f"{name} = {said(value)}" for name, value in values.items())


LAYER = "_hstu_block._attention_layers.1."
CHANGES: list[tuple[Callable[[dict[str, Tensor]], object], str]] = [
    (lambda w: w.pop(f"{LAYER}_linear_uvqk.bias"), "1 tensors are missing: .*layers.1._linear_uvqk.bias"),
    (lambda w: w.update({f"{LAYER}_gate": torch.zeros(2)}), "cannot be mapped: .*_gate"),
    (lambda w: w.update({"_hstu_block._item_mlp._mlp.0.weight": torch.zeros(2, 2)}), "cannot be mapped: .*_item_mlp"),
    (
        lambda w: w.update(
            {"_hstu_block._preprocessor._positional_encoder._timestamp_embeddings_weight": torch.ones(3)}
        ),
        "cannot be mapped: .*_timestamp",
    ),
    (lambda w: w.update({"dynamicemb.user.keys": torch.zeros(2).long()}), "cannot be mapped: dynamicemb.user.keys"),
    (lambda w: w.update({f"{LAYER}_output_ln_dropout_mul.weight": torch.ones(2)}), r"is \(2,\), must be \(8,\)"),
    (lambda w: w["dynamicemb.item.values"].fill_(float("nan")), "not finite: items.id.weight"),
    (lambda w: w.pop("dynamicemb.item.keys"), "missing: dynamicemb.item.keys"),
    (lambda w: w.clear(), "no layer is there"),
    (lambda w: w.update({f"{STATIC}action_weights": torch.zeros(7)}), "has 7 numbers, must have 6 rows of 10"),
]


@pytest.mark.parametrize(("change", "cause"), CHANGES)
def test_what_cannot_be_mapped_is_named(change: Callable[[dict[str, Tensor]], object], cause: str) -> None:
    order = sorted(range(11), key=MODEL.keys.__getitem__)
    weights = {name: tensor.clone() for name, tensor in dense_of(MODEL).items()}
    weights |= {"dynamicemb.item.keys": torch.tensor(MODEL.keys)[order], "dynamicemb.item.values": MODEL.items[order]}
    change(weights)
    with pytest.raises(CheckpointError, match=cause):
        imported_recsys(weights, sidecar())


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"num_heads": 3}, "num_heads: got 3, must divide 8"),
        ({"tasks": ({"name": "likes", "kind": "binary", "any_action": ("like",)},)}, "tasks: got 1, must be the 2"),
        ({"table_rows": {"item": 11}}, "table_rows: must have 'action'"),
        ({"blend": {"nothing": 1.0}}, "blend names"),
    ],
)
def test_a_sidecar_that_does_not_fit_the_tensors(changes: dict[str, object], cause: str) -> None:
    weights = dense_of(MODEL) | {"dynamicemb.item.keys": torch.arange(11), "dynamicemb.item.values": MODEL.items}
    with pytest.raises(ConfigError, match=cause):
        imported_recsys(weights, RecsysSidecar.model_validate(sidecar().model_dump() | changes))


def table(folder: Path, item: str, rank: int = 0) -> Path:
    [path] = folder.rglob(f"item_emb_{item}.rank_{rank}.world_size_2")
    return path


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: os.truncate(table(folder, "keys"), 13), "no whole numbers"),
    (lambda folder: os.truncate(table(folder, "values"), 4 * DIM), r"must have \d+ for each|values, must have"),
    (lambda folder: table(folder, "values", 1).unlink(), "must be a file, and no link"),
    (lambda folder: table(folder, "keys", 1).unlink(), r"has the parts \(rank, of\) \[\(0, 2\)\]"),
    (
        lambda folder: table(folder, "keys").rename(
            table(folder, "keys").with_name("item_emb_keys.rank_0.world_size_3")
        ),
        "parts",
    ),
    (lambda folder: table(folder, "keys").write_bytes(table(folder, "keys", 1).read_bytes()), "must have|has the key"),
    (lambda folder: table(folder, "keys").write_bytes(struct.pack("<q", 12) * 4), "has the key 12 twice"),
    (
        lambda folder: write_table(folder / "dynamicemb_module" / "again", "item", [1], torch.ones(1, DIM), 2),
        "is also in",
    ),
    (
        lambda folder: (
            table(folder, "values").with_name("item_opt_args.json").write_text('{"embedding_dtype": "torch.float16"}')
        ),
        "must be float32",
    ),
    (lambda folder: table(folder, "values").with_name("item_opt_args.json").write_text("[" * 100_000), "not JSON"),
    (lambda folder: (folder / "torch_module" / "model.0.pth").unlink(), r"has the ranks \[1\]"),
    (lambda folder: write_dense(folder / "torch_module" / "model.1.pth", dense_of(theirs(seed=1))), "tensor parallel"),
    (
        lambda folder: (folder / "torch_module" / "model.1.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR."),
        "not weights alone",
    ),
    (lambda folder: (folder / "dynamicemb_module" / "link").symlink_to("/etc"), "must be no link"),
]


@pytest.mark.parametrize(("damage", "cause"), DAMAGES)
def test_a_damaged_export_is_refused_by_file_and_cause(
    tmp_path: Path, damage: Callable[[Path], object], cause: str
) -> None:
    folder = write_export(tmp_path / "theirs", MODEL)
    damage(folder)
    with pytest.raises(CheckpointError, match=cause):
        read_safely("recsys-examples", folder, 1 << 30)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"actions": [1]}, "asked:1: 10 items and 1 actions"),
        ({"actions": [ACTIONS] * 10}, "action 6, must be below 6"),
        ({"scores": {"likes": [0.5]}}, "must be one for each of 4"),
        ({"scores": {"other": [0.5] * 4}}, "the tasks are"),
        ({"candidates": []}, "asked:1: candidates"),
    ],
)
def test_a_bad_line_of_requests_is_named(tmp_path: Path, changes: dict[str, object], cause: str) -> None:
    weights = dense_of(MODEL) | {"dynamicemb.item.keys": torch.arange(11), "dynamicemb.item.values": MODEL.items}
    (tmp_path / "asked").write_text(json.dumps(lines()[0] | changes))
    with pytest.raises(DataError, match=cause):
        recsys_parity(imported_recsys(weights, sidecar()), tmp_path / "asked")
