"""Every way in which a checkpoint may be bad, done to a good one."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from mfalcon.models.manifest import CONFIG, ITEMS, MANIFEST, WEIGHTS


def sign(directory: Path) -> None:
    """Make the manifest fit the files, as a mistaken (or malicious) writer could."""
    files = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in (CONFIG, WEIGHTS, ITEMS)}
    fingerprint = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    content = {"format": 1, "files": files, "fingerprint": fingerprint}
    (directory / MANIFEST).write_text(json.dumps(content))


def reconfigure(directory: Path, changes: dict[str, object], layer: dict[str, object] | None = None) -> None:
    """Change the configuration, and make the manifest fit."""
    config = json.loads((directory / CONFIG).read_text())
    config["layer"] |= layer or {}
    (directory / CONFIG).write_text(json.dumps(config | changes))
    sign(directory)


def truncated(directory: Path) -> None:
    os.truncate(directory / WEIGHTS, (directory / WEIGHTS).stat().st_size // 2)


def tampered(directory: Path) -> None:
    content = bytearray((directory / WEIGHTS).read_bytes())
    content[-9] ^= 1
    (directory / WEIGHTS).write_bytes(content)


def of_a_newer_format(directory: Path) -> None:
    content = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).write_text(json.dumps(content | {"format": 2, "signature": "of a later version"}))


def nan_with_a_right_manifest(directory: Path) -> None:
    weights = load_file(directory / WEIGHTS)
    weights["heads.mlp.1.weight"][0, 0] = float("nan")
    save_file(weights, directory / WEIGHTS)
    sign(directory)


def of_another_vocabulary(directory: Path) -> None:
    config = json.loads((directory / CONFIG).read_text())
    reconfigure(directory, {"actions": [*config["actions"], "buy"]})


def of_another_item_table(directory: Path) -> None:
    reconfigure(directory, {"num_items": 33})


def without_weights(directory: Path) -> None:
    (directory / WEIGHTS).unlink()


def of_a_billion_layers(directory: Path) -> None:
    reconfigure(directory, {"num_layers": 10**9})


def a_million_wide(directory: Path) -> None:
    reconfigure(directory, {"head_dim": 10**6}, {"dim": 10**6, "qk_dim": 10**6, "v_dim": 10**6})


def as_wide_as_can_be(directory: Path) -> None:
    """Within every limit, and yet of thousands of terabytes."""
    widest: dict[str, object] = {"dim": 65_536, "qk_dim": 65_536, "v_dim": 65_536, "num_heads": 1_024}
    reconfigure(directory, {"num_layers": 256, "head_dim": 65_536, "max_history": 2**20}, widest)


def of_a_billion_items(directory: Path) -> None:
    reconfigure(directory, {"num_items": 10**9})


def of_terabytes(directory: Path) -> None:
    """A hole that takes no disk."""
    os.truncate(directory / WEIGHTS, 4 << 40)


def a_link_that_leaves(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory.parent / "elsewhere")
    (directory / WEIGHTS).symlink_to("../elsewhere")


def a_manifest_elsewhere(directory: Path) -> None:
    (directory / MANIFEST).rename(directory.parent / "elsewhere")
    (directory / MANIFEST).symlink_to(directory.parent / "elsewhere")


def a_circle_of_links(directory: Path) -> None:
    (directory / ITEMS).unlink()
    (directory / ITEMS).symlink_to(directory / ITEMS)


def half_copied(directory: Path) -> None:
    """The first files are there, the next one is begun, the last ones are missing."""
    os.truncate(directory / ITEMS, 100)
    (directory / WEIGHTS).unlink()


def copied_to_the_last_byte_but_one(directory: Path) -> None:
    os.truncate(directory / ITEMS, (directory / ITEMS).stat().st_size - 1)


def a_file(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.write_text("PK")


def an_empty_folder(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def some_folder(directory: Path) -> None:
    an_empty_folder(directory)
    (directory / "thesis.tex").write_text("years of work")
    (directory / "config.json").write_text('{"model_type": "bert"}')


def a_folder_of_folders(directory: Path) -> None:
    an_empty_folder(directory)
    (directory / MANIFEST).mkdir()


def a_deep_manifest(directory: Path) -> None:
    (directory / MANIFEST).write_text("[" * 100_000)


def a_manifest_of_terabytes(directory: Path) -> None:
    os.truncate(directory / MANIFEST, 4 << 40)


def configured(**changes: object) -> Callable[[Path], None]:
    """A configuration with these fields instead; `layer_` in front of a name is one of the layer."""
    layer = {name.removeprefix("layer_"): value for name, value in changes.items() if name.startswith("layer_")}
    others = {name: value for name, value in changes.items() if not name.startswith("layer_")}

    def damage(directory: Path) -> None:
        reconfigure(directory, others, layer)

    damage.__name__ = f"configured {changes}"[:60]
    return damage


def weighed(name: str, factor: float = 1.0, value: float | None = None) -> Callable[[Path], None]:
    """The tensors whose name has such a beginning, times a factor; or one element of each, which is a value."""

    def damage(directory: Path) -> None:
        weights = load_file(directory / WEIGHTS)
        for tensor in [tensor for key, tensor in weights.items() if key.startswith(name)]:
            tensor.mul_(factor)
            if value is not None:
                tensor.view(-1)[-1] = value
        save_file(weights, directory / WEIGHTS)
        sign(directory)

    damage.__name__ = f"{name or 'all'} x {factor:g}, {value}"
    return damage


def in_float64(directory: Path) -> None:
    weights = load_file(directory / WEIGHTS)
    save_file({name: tensor.double() for name, tensor in weights.items()}, directory / WEIGHTS)
    sign(directory)


def with_a_header_of_exabytes(directory: Path) -> None:
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes((2**62).to_bytes(8, "little") + content[8:])
    sign(directory)


def with_tensors_elsewhere(directory: Path) -> None:
    """The header's offsets lie outside of the file."""
    content = (directory / WEIGHTS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name, tensor in header.items():
        if name != "__metadata__":
            tensor["data_offsets"] = [offset + (1 << 40) for offset in tensor["data_offsets"]]
    text = json.dumps(header).encode()
    (directory / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    sign(directory)


def without_one_tensor(directory: Path) -> None:
    weights = load_file(directory / WEIGHTS)
    del weights["heads.mlp.1.weight"]
    save_file(weights, directory / WEIGHTS)
    sign(directory)


def with_one_tensor_more(directory: Path) -> None:
    weights = load_file(directory / WEIGHTS)
    save_file(weights | {"lora": torch.zeros(3)}, directory / WEIGHTS)
    sign(directory)


def of_items(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    """Another table of items."""

    def damage(directory: Path) -> None:
        items = load_arrays(directory / ITEMS)
        change(items)
        save_arrays(items, directory / ITEMS)
        sign(directory)

    damage.__name__ = change.__name__
    return damage


def items_in_no_order(items: dict[str, np.ndarray]) -> None:
    items["item_id"] = items["item_id"][::-1].copy()


def titles_of_no_text(items: dict[str, np.ndarray]) -> None:
    items["title_utf8"][:] = 0xFF


def titles_that_end_beyond(items: dict[str, np.ndarray]) -> None:
    items["title_end"][-1] = 2**62


def categories_beyond(items: dict[str, np.ndarray]) -> None:
    items["side.decade"][0] = 2**40


def a_deep_configuration(directory: Path) -> None:
    (directory / CONFIG).write_text('{"layer":' * 100_000)
    sign(directory)


def a_configuration_in_no_text(directory: Path) -> None:
    (directory / CONFIG).write_bytes(b"\xff\xfe{}")
    sign(directory)


def a_pipe(directory: Path) -> None:
    """Whoever opens it waits for ever."""
    (directory / WEIGHTS).unlink()
    os.mkfifo(directory / WEIGHTS)


def a_manifest_of_files_elsewhere(directory: Path) -> None:
    content = json.loads((directory / MANIFEST).read_text())
    content["files"] |= {"../../etc/passwd": "0" * 64}
    (directory / MANIFEST).write_text(json.dumps(content))


KINDS: list[tuple[Callable[[Path], None], str, str]] = [
    (truncated, WEIGHTS, "truncated or modified"),
    (tampered, WEIGHTS, "truncated or modified"),
    (of_a_newer_format, MANIFEST, "format 2 is newer than this program reads (up to 1)"),
    (nan_with_a_right_manifest, WEIGHTS, "'heads.mlp.1.weight' has values that are not finite"),
    (of_another_vocabulary, WEIGHTS, "'actions.weight' is (3, 12), config.json calls for (4, 12)"),
    (of_another_item_table, ITEMS, "32 rows, config.json says 33"),
    (without_weights, WEIGHTS, "no such file"),
    (of_a_billion_layers, CONFIG, "num_layers: Input should be less than or equal to 256 (got '1000000000')"),
    (a_million_wide, CONFIG, "layer.dim: Input should be less than or equal to 65536 (got '1000000')"),
    (as_wide_as_can_be, WEIGHTS, "tensors that config.json calls for"),
    (of_a_billion_items, ITEMS, "32 rows, config.json says 1000000000"),
    (of_terabytes, WEIGHTS, "needs 4194304 MiB of memory"),
    (a_link_that_leaves, WEIGHTS, "outside of the checkpoint"),
    (a_manifest_elsewhere, MANIFEST, "outside of the checkpoint"),
    (a_circle_of_links, ITEMS, "no such file"),
    (half_copied, WEIGHTS, "no such file"),
    (copied_to_the_last_byte_but_one, ITEMS, "truncated or modified"),
    (a_file, "", "is no directory"),
    (an_empty_folder, MANIFEST, "no such file; a checkpoint has config.json"),
    (some_folder, MANIFEST, "no such file; a checkpoint has config.json"),
    (a_folder_of_folders, MANIFEST, "no such file"),
    (a_deep_manifest, MANIFEST, "not JSON"),
    (a_manifest_of_terabytes, MANIFEST, "must have at most 1048576"),
    (a_manifest_of_files_elsewhere, MANIFEST, "lists ['../../etc/passwd', "),
    (a_deep_configuration, CONFIG, "content: Invalid JSON"),
    (a_configuration_in_no_text, CONFIG, "content: Invalid JSON"),
    (configured(name="m\nready grpc=evil:1"), CONFIG, "name: String should match pattern"),
    (configured(layer_attention_norm=1e-300), CONFIG, "layer.attention_norm: Input should be"),
    (configured(layer_logit_scale=1e300), CONFIG, "layer.logit_scale: Input should be"),
    (configured(layer_norm_eps=1e-300), CONFIG, "layer.norm_eps: Input should be"),
    (configured(blend={"like": 1e308}), CONFIG, "blend.like: Input should be"),
    (configured(value_scale=1e-300), CONFIG, "value_scale: Input should be"),
    (configured(max_history=10**15), CONFIG, "max_history: Input should be"),
    (configured(tasks=[]), CONFIG, "tasks: Tuple should have at least 1 item"),
    (configured(architecture="gpt"), CONFIG, "architecture 'gpt' is not one of dfgr, din, dlrm_v3"),
    (in_float64, WEIGHTS, "is F64, weights are stored as F32"),
    (with_a_header_of_exabytes, WEIGHTS, "not a readable safetensors file"),
    (with_tensors_elsewhere, WEIGHTS, "not a readable safetensors file"),
    (without_one_tensor, WEIGHTS, "lacks 1 tensors that config.json calls for, first 'heads.mlp.1.weight'"),
    (with_one_tensor_more, WEIGHTS, "has 1 tensors that config.json does not know, first 'lora'"),
    (weighed("", 1e30), WEIGHTS, "at most 1e+15 fit float32"),
    (weighed("items.id.weight", value=3e38), WEIGHTS, "'items.id.weight' has values of up to 3e+38"),
    (a_pipe, WEIGHTS, "no such file"),
    (of_items(items_in_no_order), ITEMS, "item_id: must be strictly ascending"),
    (of_items(titles_of_no_text), ITEMS, "can't decode byte 0xff"),
    (of_items(titles_that_end_beyond), ITEMS, "title_end: must ascend"),
    (of_items(categories_beyond), ITEMS, "side feature decade: values must be from 0 to 2"),
]
"""Damage, the file that a refusal names, and the cause that it gives."""

UNSOUND: list[tuple[Callable[[Path], None], str]] = [
    (weighed("stack.", 1e12), "not finite on backend"),
    (weighed("heads.mlp.", 1e20), "scores of task 'like' are not finite"),
    (weighed("stack.layers.0.uvqk.weight", 1e14), "not finite on backend"),
]
"""What only shows when it computes: damage, and the cause."""
