"""A checkpoint of the public layout becomes one of ours; what cannot be mapped is listed by name."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from mfalcon.cli.import_model import app
from mfalcon.errors import CheckpointError, ConfigError, DataError
from mfalcon.importing.dlrm_v3 import imported
from mfalcon.importing.parity import parity, read_requests
from mfalcon.importing.sidecar import Sidecar, read_sidecar
from mfalcon.importing.trainer_files import read_checkpoint
from mfalcon.laws import check
from mfalcon.models.checkpoint import load
from tests.importing.writer import IN, SIDECAR, TABLES, golden, golden_weights, random_weights, write_checkpoint

LAYER = "_hstu_transducer._stu_module._stu_layers.1."


def parity_lines() -> list[dict[str, object]]:
    """The golden requests as a trainer's script writes them."""
    lines: list[dict[str, object]] = []
    for number in range(3):
        of = {name.split(".")[1]: t.tolist() for name, t in golden().items() if name.startswith(f"request{number}.")}
        lines.append(
            {
                "items": of["movie_id"],
                "actions": of["item_weights"],
                "times_s": of["action_timestamp"],
                "context": {"user_id": of["user_id"][0]},
                "candidates": of["item_movie_id"],
                "time_s": of["item_query_time"][0],
                "padded_len": 1 + len(of["movie_id"]) + len(of["item_movie_id"]),
                "scores": {"rating": of["prediction"]},
            }
        )
    return lines


def test_a_checkpoint_is_imported_compared_and_held_to_the_laws(tmp_path: Path) -> None:
    """Through the command, and the process without network; `verify` and `serve` read what it writes."""
    folder = write_checkpoint(tmp_path / "theirs", golden_weights())
    (tmp_path / "side.toml").write_text(SIDECAR)
    (tmp_path / "asked").write_text("\n".join(json.dumps(line) for line in parity_lines()))
    ours = tmp_path / "deep" / "ours"
    command = ["dlrm-v3", str(folder), "--config", str(tmp_path / "side.toml"), "--out", str(ours)]
    result = CliRunner().invoke(app, [*command, "--requests", str(tmp_path / "asked"), "--bound", "1e-5", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["parity"]["num_scores"] == 43 and told["parity"]["worst"] <= 1e-5
    assert 1e-4 < told["parity"]["served_worst"] < 0.2  # what a constant norm costs is said
    assert [path.name for path in ours.parent.iterdir()] == ["ours"]
    loaded = load(ours, torch.float64)
    assert not loaded.model.prefix_stable
    results = list(check(loaded))
    assert {one.law for one in results if one.not_applicable} == {3, 5, 7}
    assert all("ages from the request" in one.not_applicable for one in results if one.not_applicable)
    assert all(one.holds for one in results)


def test_sizes_features_tasks_and_tables_of_another_model(tmp_path: Path) -> None:
    weights, sidecar = random_weights()
    read = read_checkpoint(write_checkpoint(tmp_path / "theirs", weights, num_ranks=3))
    assert read.keys() == weights.keys()
    for name, tensor in weights.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name
    found = imported(read, sidecar)
    config = found.model.config
    assert config.layer is not None and config.dlrm is not None
    assert (config.layer.dim, config.layer.qk_dim, config.layer.v_dim, config.num_layers) == (10, 3, 4, 3)
    assert (config.dlrm.table_dim, config.dlrm.postprocessor, config.num_items) == (6, "layer_norm", 42)
    assert found.action_bits == (1, 4, 2, 64)
    assert torch.equal(found.model.items.id.weight[1:], weights[f"{TABLES}item.weight"].float())
    assert not found.model.items.id.weight[0].any()
    assert torch.equal(found.model.user.embeddings[2].weight, weights[f"{TABLES}age.weight"])


def test_tables_of_8_bit_codes_are_multiplied_out() -> None:
    weights, sidecar = random_weights()
    plain = imported(weights, sidecar).model.items.id.weight
    table = weights[f"{TABLES}item.weight"].float()
    codes: Tensor = torch.ops.quantized.embedding_bag_byte_prepack(table)
    assert codes.dtype == torch.uint8
    found = imported(weights | {f"{TABLES}item.weight": codes}, sidecar).model.items.id.weight
    spread = (table.amax(1) - table.amin(1)).max()
    assert 0 < float((found - plain).abs().max()) <= float(spread) / 255


def test_a_wrapped_model_has_a_prefix() -> None:
    weights, sidecar = random_weights()
    wrapped = {f"module.{name}": tensor for name, tensor in weights.items()}
    with pytest.raises(CheckpointError, match="tensors are missing"):
        imported(wrapped, sidecar)
    imported(wrapped, sidecar.model_copy(update={"prefix": "module."}))


Change = Callable[[dict[str, Tensor]], object]
CHANGES: list[tuple[Change, str]] = [
    (lambda w: w.pop(f"{LAYER}_uvqk_beta"), "1 tensors are missing: .*_stu_layers.1._uvqk_beta"),
    (lambda w: w.update({f"{LAYER}_uvqk_beta": torch.zeros(2, 2)}), r"_uvqk_beta \(is \(2, 2\)\)"),
    (lambda w: w.update({f"{LAYER}_gate": torch.zeros(2)}), "1 tensors cannot be mapped: .*_stu_layers.1._gate"),
    (lambda w: w.update({f"{LAYER}_output_norm_weight": torch.ones(2)}), r"norm_out.weight is \(2,\), must be \(8,\)"),
    (lambda w: w.update({f"{IN}_additional_embedding_mlp.0.weight": torch.ones(7, 6)}), "2 tensors cannot be mapped"),
    (lambda w: w.update({f"{TABLES}category.weight": torch.ones(7, 6)}), "cannot be mapped: .*category"),
    (lambda w: w[f"{TABLES}user.weight"].fill_(float("nan")), "1 tensors have values that are not finite"),
    (
        lambda w: w.update({f"{IN}_action_encoder._combined_action_weights": torch.tensor([1, 3, 4, 8])}),
        "powers of two",
    ),
    (lambda w: w.clear(), "no layer is there"),
]


@pytest.mark.parametrize(("change", "cause"), CHANGES)
def test_what_cannot_be_mapped_is_named(change: Change, cause: str) -> None:
    weights, sidecar = random_weights()
    change(weights)
    with pytest.raises(CheckpointError, match=cause):
        imported(weights, sidecar)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"num_heads": 3}, "num_heads: got 3, must divide 8 and 6"),
        ({"actions": ("a", "b")}, "actions: got 2, must be the 4 of"),
        ({"last_age": 50}, "last_age is 50, must be below num_ages, 50"),
        ({"postprocessor": "l2"}, "it is layer_norm by weights"),
        ({"blend": {"nothing": 1.0}}, "blend names"),
    ],
)
def test_a_sidecar_that_does_not_fit_the_tensors(changes: dict[str, object], cause: str) -> None:
    weights, sidecar = random_weights()
    with pytest.raises(ConfigError, match=cause):
        imported(weights, sidecar.model_copy(update=changes))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("name = 3", "name: input should be a valid string"),
        (SIDECAR.replace("last_age = 31", ""), "last_age: field required"),
        ("nothing = 1\n" + SIDECAR, "nothing: extra inputs"),
        ("= 3", "cannot be read as TOML"),
        ("a = " + "[" * 100_000, "cannot be read as TOML"),
        ("#" * (2 << 20), "must have at most"),
    ],
)
def test_a_bad_sidecar_is_refused_by_key(tmp_path: Path, text: str, cause: str) -> None:
    (tmp_path / "side.toml").write_text(text)
    with pytest.raises(ConfigError, match=cause):
        read_sidecar(tmp_path / "side.toml", Sidecar)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"items": [1]}, "1, 25 and 25 items, actions and times_s"),
        ({"scores": {"rating": [0.5, 0.5]}}, "must be one for each of 1 candidates"),
        ({"scores": {"other": [0.5]}}, "scores of 'other', the tasks are"),
        ({"scores": {"rating": [float("nan")]}}, "finite"),
        ({"candidates": [300]}, "item 300, must be below 300"),
        ({"context": {"user_id": 300}}, "context user_id is 300"),
        ({"time_s": 1 << 62}, "less than"),
        ({"more": 1}, "extra inputs"),
    ],
)
def test_a_bad_line_of_requests_is_named(tmp_path: Path, changes: dict[str, object], cause: str) -> None:
    found = imported(golden_weights(), read_sidecar_text(tmp_path))
    (tmp_path / "asked").write_text(json.dumps(parity_lines()[0] | changes))
    with pytest.raises(DataError, match=cause):
        parity(found, tmp_path / "asked")


def read_sidecar_text(tmp_path: Path) -> Sidecar:
    (tmp_path / "side.toml").write_text(SIDECAR)
    return read_sidecar(tmp_path / "side.toml", Sidecar)


def test_files_that_are_no_lines_of_requests(tmp_path: Path) -> None:
    (tmp_path / "asked").write_bytes(b"\0" * (1 << 20))
    with pytest.raises(DataError, match="asked:1: "):
        list(read_requests(tmp_path / "asked"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_requests(tmp_path / "not there"))
    (tmp_path / "asked").write_text("\n\n")
    with pytest.raises(DataError, match="has no request"):
        parity(imported(golden_weights(), read_sidecar_text(tmp_path)), tmp_path / "asked")


def test_the_cage_has_no_network_and_starts_no_program() -> None:
    code = """
import os, socket
from mfalcon.importing.cage import enter
enter(1 << 30)
calls = {"socket": lambda: socket.create_connection(("127.0.0.1", 9)), "exec": lambda: os.execv("/bin/true", ["true"])}
for name, call in calls.items():
    try:
        call()
    except PermissionError:
        print(name, "refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["socket refused", "exec refused"]
