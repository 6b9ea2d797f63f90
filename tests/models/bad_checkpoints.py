"""Every way in which a checkpoint may be bad, done to a good one."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

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
]
"""Damage, the file that a refusal names, and the cause that it gives."""
