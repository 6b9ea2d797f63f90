"""Where a training writes: refused before it begins, and whole or not at all when the disk ends."""

import os
from pathlib import Path

import pytest

from mfalcon.cli.training import train_checkpoint
from mfalcon.errors import CheckpointError
from mfalcon.models import checkpoint
from mfalcon.models.registry import build
from mfalcon.train.dataset import Dataset
from mfalcon.train.place import check_place, progress_of
from mfalcon.train.recipes import TrainConfig, model_config
from mfalcon.train.synthetic import synthetic
from tests.full_disk import largest_file

TRAIN = TrainConfig(epochs=2, steps_per_epoch=1)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return synthetic(num_users=20, num_items=30, events_per_user=20, seed=0)


def small(dataset: Dataset, out: Path, *, overwrite: bool = False) -> None:
    config = model_config(dataset, "dfgr", dim=8, max_history=10, window_chunk=5)
    train_checkpoint(dataset, config, TRAIN, out, threads=1, overwrite=overwrite)


def test_a_checkpoint_is_replaced_only_if_that_is_said(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    small(dataset, out)
    assert os.listdir(tmp_path / "a") == ["b"]
    before = checkpoint.load(out).fingerprint
    with pytest.raises(CheckpointError, match="there is a checkpoint already; --overwrite replaces it"):
        small(dataset, out)
    small(dataset, out, overwrite=True)
    assert checkpoint.load(out).fingerprint == before


def test_a_full_disk_in_an_epoch_leaves_nothing_of_it(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "b"
    with (
        largest_file(4096),
        pytest.raises(CheckpointError, match=r"\.b\.progress: cannot be written: File too large; .* nothing is kept"),
    ):
        small(dataset, out)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_at_the_end_keeps_what_is_there(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "b"
    model = build(model_config(dataset, "dfgr", dim=8, max_history=10, window_chunk=5))
    fingerprint = checkpoint.save(out, model, dataset.items)
    with largest_file(4096), pytest.raises(CheckpointError, match="b: cannot be written: File too large; nothing was"):
        checkpoint.save(out, model, dataset.items)
    assert os.listdir(tmp_path) == ["b"]
    assert checkpoint.load(out).fingerprint == fingerprint
    assert not progress_of(out).exists()


def test_a_place_that_is_no_folder_or_too_small_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out, num_parameters, message in (
        (tmp_path / "file" / "x", 0, "file cannot be written to"),
        (Path("/proc/x"), 0, "/proc cannot be written to"),
        (tmp_path / "x", 10**15, r"the disk has [\d,.]+ MB left, this training needs about 24,000,000,000.0 MB"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_place(out, num_parameters, overwrite=False)
    assert os.listdir(tmp_path) == ["file"]
