"""Checkpoints: whole and exact, or refused with the file and the reason; never a pickle."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from loadtest.faults.bad_checkpoints import KINDS, reconfigure, sign
from mfalcon.errors import CheckpointError
from mfalcon.models import checkpoint
from mfalcon.models.base import Ranker
from mfalcon.models.checkpoint import load, save
from mfalcon.models.config import RankerConfig
from mfalcon.models.items import ItemTable
from mfalcon.models.manifest import CONFIG, ITEMS, MANIFEST, WEIGHTS, load_items
from mfalcon.models.registry import architectures, build
from mfalcon.models.texts import Texts
from tests.small import small_checkpoint, small_config, small_items, task_model

ROOT = Path(__file__).parents[2]
FILES = (CONFIG, WEIGHTS, ITEMS, MANIFEST)


def untrained(architecture: str = "dfgr", seed: int = 0) -> Ranker:
    torch.manual_seed(seed)
    return build(small_config(architecture))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(tmp_path / "small", untrained(), small_items())
    return tmp_path / "small"


def refusal(directory: Path, file: str) -> str:
    """The message of the refusal, which names the file."""
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    assert str(directory / file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("damage", "file", "cause"), KINDS)
def test_a_bad_checkpoint_is_refused(saved: Path, damage: Callable[[Path], None], file: str, cause: str) -> None:
    """By name and cause, and before it takes memory: those that would need terabytes are answered too."""
    damage(saved)
    assert cause in refusal(saved, file)


@pytest.mark.parametrize(
    ("changes", "layer", "cause"),
    [
        ({}, {"attention_norm": 1e-300}, "layer.attention_norm"),
        ({}, {"attention_norm": 1e300}, "layer.attention_norm"),
        ({}, {"logit_scale": 1e300}, "layer.logit_scale"),
        ({}, {"logit_scale": -1e300}, "layer.logit_scale"),
        ({}, {"norm_eps": 1e-300}, "layer.norm_eps"),
        ({}, {"bias": {"num_positions": 69, "time_bucket_width": 1e-300}}, "layer.bias.time_bucket_width"),
        ({}, {"bias": {"num_positions": 69, "time_unit_ms": 10**400}}, "layer.bias.time_unit_ms"),
        ({}, {"bias": {"num_positions": 69, "num_time_buckets": 10**9}}, "layer.bias.num_time_buckets"),
        ({}, {"bias": {"num_positions": 10**12}}, "layer.bias.num_positions"),
        ({}, {"num_heads": 10**6}, "layer.num_heads"),
        ({"blend": {"like": 1e308}}, {}, "blend.like"),
        ({"value_scale": 1e-300}, {}, "value_scale"),
        ({"value_center": 1e300}, {}, "value_center"),
        ({"max_history": 10**15}, {}, "max_history"),
        ({"num_items": 2**63}, {}, "num_items"),
        ({"context_features": [{"name": "surface", "num_values": 10**12}]}, {}, "context_features.0.num_values"),
        ({"tasks": [{"name": "like", "kind": "regression", "center": 1e300}]}, {}, "tasks.0.center"),
    ],
)
def test_absurd_numbers_are_refused(
    saved: Path, changes: dict[str, object], layer: dict[str, object], cause: str
) -> None:
    reconfigure(saved, changes, layer)
    assert f"{CONFIG}: {cause}: Input should be" in refusal(saved, CONFIG)


def test_the_directory_may_be_a_link(saved: Path) -> None:
    (saved.parent / "current").symlink_to(saved)
    assert load(saved.parent / "current").fingerprint == load(saved).fingerprint


def test_files_may_be_links_within_the_directory(saved: Path) -> None:
    """As a volume of an orchestrator has them: every file by way of a folder that is exchanged whole."""
    (saved / "..v1").mkdir()
    for name in FILES:
        (saved / name).rename(saved / "..v1" / name)
        (saved / name).symlink_to(Path("..v1") / name)
    load(saved)
    load_items(saved)


def test_counts_of_items_are_kept_and_may_lack(tmp_path: Path) -> None:
    model, items = untrained(), small_items()
    counts = np.arange(len(items.item_id)) ** 5
    counted = replace(items, num_events=counts)
    fingerprints = [save(tmp_path / name, model, table) for name, table in (("old", items), ("new", counted))]
    assert fingerprints[0] != fingerprints[1]
    assert load(tmp_path / "old").items.num_events is None
    for read in (load(tmp_path / "new").items, load_items(tmp_path / "new")):
        assert read.num_events is not None and np.array_equal(read.num_events, counts)
    arrays = load_arrays(tmp_path / "old" / ITEMS)
    for bad, why in (
        (np.arange(3), r"num_events: got int64 \(3,\), must be int64"),
        (np.full(len(items.item_id), 1.5), "num_events: got float64"),
        (np.full(len(items.item_id), -1), "num_events: got -1, must be at least 0"),
    ):
        save_arrays(arrays | {"num_events": bad}, tmp_path / "old" / ITEMS)
        sign(tmp_path / "old")
        assert re.search(why, refusal(tmp_path / "old", ITEMS))


@pytest.mark.parametrize("architecture", architectures())
def test_round_trip_is_exact_to_the_bit(tmp_path: Path, architecture: str) -> None:
    model, items = untrained(architecture), small_items()
    fingerprint = save(tmp_path / "deep" / "small", model, items)
    loaded = load(tmp_path / "deep" / "small")
    assert loaded.fingerprint == fingerprint
    assert loaded.model.config == model.config
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    for name, tensor in loaded.model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert np.array_equal(loaded.items.item_id, items.item_id)
    assert loaded.items.titles == items.titles
    assert all(np.array_equal(loaded.items.side[name], column) for name, column in items.side.items())
    model.items.load_items(items)
    for buffer in ("rows_genres", "rows_decade"):
        assert torch.equal(loaded.model.items.get_buffer(buffer), model.items.get_buffer(buffer))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["small"]
    assert sorted(path.name for path in (tmp_path / "deep" / "small").iterdir()) == sorted(FILES)


def test_saving_twice_gives_the_same_fingerprint(tmp_path: Path) -> None:
    assert save(tmp_path / "a", untrained(), small_items()) == save(tmp_path / "b", untrained(), small_items())


def test_dtypes(saved: Path) -> None:
    double = load(saved, torch.float64).model
    assert {parameter.dtype for parameter in double.parameters()} == {torch.float64}
    half = task_model(load(saved, torch.bfloat16))
    assert half.items.id.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in half.heads.parameters()} == {torch.float32}


@pytest.mark.parametrize("change", ["weights", "items", "config"])
def test_the_fingerprint_changes_with_any_file(tmp_path: Path, change: str) -> None:
    model, items = untrained(), small_items()
    before = save(tmp_path / "small", model, items)
    if change == "weights":
        with torch.no_grad():
            model.items.id.weight[3, 3] += 1e-7
    elif change == "items":
        items = ItemTable(items.item_id, ("other", *items.titles[1:]), items.side)
    else:
        model.config = model.config.model_copy(update={"blend": {"like": 0.5}})
    assert save(tmp_path / "small", model, items) != before
    load(tmp_path / "small")


def test_texts_of_ids_are_kept(tmp_path: Path) -> None:
    model, items = untrained(), small_items()
    names = [f"sku-{item}" for item in items.item_id]
    save(tmp_path / "text", model, replace(items, texts=Texts.of(names)))
    assert load(tmp_path / "text").items.texts_of(items.item_id) == tuple(names)
    arrays = load_arrays(tmp_path / "text" / ITEMS)
    for bad in ({"text_end": arrays["text_end"][:-1]}, {"text_end": arrays["text_end"] + 1}):
        save_arrays(arrays | bad, tmp_path / "text" / ITEMS)
        sign(tmp_path / "text")
        assert "not an item table of this checkpoint (texts: " in refusal(tmp_path / "text", ITEMS)
    del arrays["text_end"]
    save_arrays(arrays, tmp_path / "text" / ITEMS)
    sign(tmp_path / "text")
    assert "not an item table of this checkpoint ('text_end')" in refusal(tmp_path / "text", ITEMS)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    assert "no such file" in refusal(saved, name)


def test_a_missing_directory(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nowhere", MANIFEST)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, ITEMS])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "longer", "empty"])
def test_a_damaged_file(saved: Path, name: str, damage: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1 if damage == "flipped" else 0
    size = {"truncated": len(content) - 1, "empty": 0}.get(damage, len(content))
    (saved / name).write_bytes(content[:size] + (b"\n" if damage == "longer" else b""))
    assert f"sha256 differs from {MANIFEST}" in refusal(saved, name)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "content"),
        ("null", "content"),
        ('{"format": 2}', "format 2 is newer than this program reads"),
        ('{"format": 0, "files": {}, "fingerprint": ""}', "format"),
        ('{"format": 1, "files": {}}', "fingerprint: Field required"),
        ('{"format": 1, "files": {}, "fingerprint": "", "more": 1}', "more: Extra inputs"),
        ('{"format": 1, "files": {"../../etc/passwd": "00"}, "fingerprint": ""}', "lists ['../../etc/passwd']"),
        ('{"format": 1, "files": {"config.json": 7}, "fingerprint": ""}', "files.config.json"),
        ('{"files": {}, "fingerprint": ""}', "format"),
    ],
)
def test_a_bad_manifest(saved: Path, content: str, reason: str) -> None:
    (saved / MANIFEST).write_text(content)
    assert reason in refusal(saved, MANIFEST)


def test_a_manifest_that_is_not_text(saved: Path) -> None:
    (saved / MANIFEST).write_bytes(b"\xff\xfe\x00")
    assert "not JSON" in refusal(saved, MANIFEST)


def test_a_manifest_with_another_fingerprint(saved: Path) -> None:
    content = json.loads((saved / MANIFEST).read_text())
    (saved / MANIFEST).write_text(json.dumps({**content, "fingerprint": "0" * 64}))
    assert "fingerprint does not match" in refusal(saved, MANIFEST)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_histroy": 7}, "max_histroy: Extra inputs"),
        ({"num_layers": 0}, "num_layers"),
        ({"architecture": "gpt"}, "architecture 'gpt' is not one of dfgr, din, dlrm_v3"),
        ({"blend": {"clicks": 1.0}}, "blend names"),
    ],
)
def test_a_bad_config(saved: Path, changes: dict[str, object], reason: str) -> None:
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps(config | changes))
    sign(saved)
    assert reason in refusal(saved, CONFIG)


def test_a_config_that_is_not_json(saved: Path) -> None:
    (saved / CONFIG).write_bytes(b"\xff{")
    sign(saved)
    refusal(saved, CONFIG)


def drop(weights: dict[str, torch.Tensor]) -> None:
    del weights["placeholder"]


def add(weights: dict[str, torch.Tensor]) -> None:
    weights["more"] = torch.zeros(1)


def reshape(weights: dict[str, torch.Tensor]) -> None:
    weights["placeholder"] = torch.zeros(13)


def not_a_number(weights: dict[str, torch.Tensor]) -> None:
    weights["stack.layers.1.uvqk.weight"][3, 3] = float("nan")


def infinite(weights: dict[str, torch.Tensor]) -> None:
    weights["items.id.weight"][0, 0] = float("inf")


def integers(weights: dict[str, torch.Tensor]) -> None:
    weights["placeholder"] = torch.ones(12, dtype=torch.int64)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (drop, "lacks 1 tensors that config.json calls for, first 'placeholder'"),
        (add, "has 1 tensors that config.json does not know, first 'more'"),
        (reshape, "'placeholder' is (13,), config.json calls for (12,)"),
        (not_a_number, "'stack.layers.1.uvqk.weight' has values that are not finite"),
        (infinite, "'items.id.weight' has values that are not finite"),
        (integers, "'placeholder' is"),
    ],
)
def test_bad_weights(saved: Path, damage: Callable[[dict[str, torch.Tensor]], None], reason: str) -> None:
    weights = load_file(saved / WEIGHTS)
    damage(weights)
    save_file(weights, saved / WEIGHTS)
    sign(saved)
    assert reason in refusal(saved, WEIGHTS)


@pytest.mark.parametrize("name", [WEIGHTS, ITEMS])
def test_a_file_that_is_no_safetensors(saved: Path, name: str) -> None:
    (saved / name).write_bytes(b"\x80\x04K\x01.")
    sign(saved)
    refusal(saved, name)


Arrays = dict[str, np.ndarray]


def fewer_items(arrays: Arrays) -> None:
    short = small_items(num_items=30)
    arrays.update(checkpoint._pack_items(short))


def unsorted(arrays: Arrays) -> None:
    arrays["item_id"] = arrays["item_id"][::-1].copy()


def no_titles(arrays: Arrays) -> None:
    del arrays["title_utf8"]


def torn_title(arrays: Arrays) -> None:
    arrays["title_utf8"] = np.full_like(arrays["title_utf8"], 0xFF)


def titles_without_end(arrays: Arrays) -> None:
    """Every other title is the whole text: a thousand items of a megabyte would be a gigabyte."""
    arrays["title_end"][::2], arrays["title_end"][1::2] = 0, len(arrays["title_utf8"])


def titles_of_two_dimensions(arrays: Arrays) -> None:
    arrays["title_end"] = arrays["title_end"][:, None].copy()


def one_item_id(arrays: Arrays) -> None:
    arrays["item_id"] = np.array(7)


def no_genres(arrays: Arrays) -> None:
    del arrays["side.genres"]


def wide_genres(arrays: Arrays) -> None:
    arrays["side.genres"] = np.zeros((31, 9), dtype=np.uint8)


def flat_genres(arrays: Arrays) -> None:
    arrays["side.genres"] = np.zeros(31, dtype=np.uint8)


def code_too_large(arrays: Arrays) -> None:
    arrays["side.decade"] = np.full(31, 3, dtype=np.int64)


def code_negative(arrays: Arrays) -> None:
    arrays["side.decade"] = np.full(31, -1, dtype=np.int64)


def float_ids(arrays: Arrays) -> None:
    arrays["item_id"] = np.arange(31, dtype=np.float64)


def unknown_side_feature(arrays: Arrays) -> None:
    arrays["side.colour"] = np.zeros(31, dtype=np.int64)


@pytest.mark.parametrize(
    "damage",
    [
        fewer_items,
        unsorted,
        no_titles,
        torn_title,
        titles_without_end,
        titles_of_two_dimensions,
        one_item_id,
        no_genres,
        wide_genres,
        flat_genres,
        code_too_large,
        code_negative,
        float_ids,
        unknown_side_feature,
    ],
)
def test_an_item_table_that_does_not_fit(saved: Path, damage: Callable[[Arrays], None]) -> None:
    arrays = load_arrays(saved / ITEMS)
    damage(arrays)
    save_arrays(arrays, saved / ITEMS)
    sign(saved)
    refusal(saved, ITEMS)


def test_a_failed_write_leaves_the_old_one_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(saved).fingerprint

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_arrays", full)
    with pytest.raises(CheckpointError, match="small: cannot be written: no space left"):
        save(saved, untrained(seed=1), small_items())
    assert load(saved).fingerprint == before
    assert sorted(path.name for path in saved.parent.iterdir()) == ["small"]


@pytest.mark.parametrize("which", [0, 1])
def test_an_interrupted_swap_leaves_a_whole_one(saved: Path, monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    """Interrupted at any renaming: the old one or the new one must be there under its name."""
    right, calls = os.rename, iter(range(100))

    def interrupted(source: Path, target: Path) -> None:
        if next(calls) == which:
            raise KeyboardInterrupt
        right(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    monkeypatch.setattr(os, "replace", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        save(saved, untrained(seed=1), small_items())
    monkeypatch.undo()
    load(saved)


def test_an_old_one_that_cannot_be_removed_stays_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_removed(path: Path, ignore_errors: bool = False) -> None:
        if path == saved:
            (saved / WEIGHTS).unlink()
            raise PermissionError("not yours")
        shutil_rmtree(path, ignore_errors)

    shutil_rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", half_removed)
    with contextlib.suppress(PermissionError, CheckpointError):
        save(saved, untrained(seed=1), small_items())
    load(saved)


def test_a_directory_that_is_no_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    """`--out` pointed at somebody's home must not erase it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="home"):
        save(tmp_path / "home", untrained(), small_items())
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_an_empty_table_of_items(tmp_path: Path) -> None:
    config = small_config().model_copy(update={"num_items": 1, "side_features": ()})
    items = ItemTable(np.empty(0, dtype=np.int64), (), {})
    save(tmp_path / "empty", build(config), items)
    assert load(tmp_path / "empty").items.num_rows == 1


def test_config_is_readable(saved: Path) -> None:
    text = (saved / CONFIG).read_text()
    assert text.count("\n") > 50
    assert RankerConfig.model_validate_json(text) == small_checkpoint().model.config


def test_another_user_can_read_it(saved: Path) -> None:
    """The server of the image is not the user who trained."""
    assert saved.stat().st_mode & 0o005 == 0o005
    assert all(path.stat().st_mode & 0o004 for path in saved.iterdir())


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_a_file_that_cannot_be_read_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    right = Path.open

    def denied(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == name:
            raise PermissionError(13, "Permission denied")
        return right(self, *args, **options)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read .Permission denied"):
        load(saved)
