"""Trainings that `mfalcon quality` keeps: used again as long as they are what would be trained, and only then."""

from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.bench.quality_runs import QualityRun, load_runs, train_run, train_runs
from mfalcon.errors import CheckpointError
from mfalcon.models import checkpoint
from mfalcon.models.manifest import WEIGHTS
from mfalcon.train.dataset import Dataset
from mfalcon.train.recipes import TrainConfig, model_config
from mfalcon.train.synthetic import synthetic
from mfalcon.train.trainer import Progress, train


def data() -> Dataset:
    return synthetic(num_users=60, num_items=40, events_per_user=20, seed=0)


def small_run(dataset: Dataset, seed: int = 0, epochs: int = 2) -> QualityRun:
    config = model_config(dataset, "dfgr", dim=8, num_layers=1, num_heads=1, max_history=16, window_chunk=8)
    return QualityRun("dfgr small", config, TrainConfig(epochs=epochs, seed=seed))


def test_the_same_run_is_trained_once(tmp_path: Path) -> None:
    dataset = data()
    first = train_run(dataset, small_run(dataset), tmp_path)
    written = (tmp_path / "dfgr-small-0" / WEIGHTS).stat().st_mtime_ns
    assert train_run(dataset, small_run(dataset), tmp_path) == first
    assert (tmp_path / "dfgr-small-0" / WEIGHTS).stat().st_mtime_ns == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dfgr-small-0", "dfgr-small-0.json"]


def test_another_recipe_or_other_data_is_trained_anew(tmp_path: Path) -> None:
    dataset = data()
    first = train_run(dataset, small_run(dataset), tmp_path)
    longer = train_run(dataset, small_run(dataset, epochs=3), tmp_path)
    other = dataset.events.copy()
    other["value"] = 6 - other["value"]
    turned = train_run(replace(dataset, events=other), small_run(dataset, epochs=3), tmp_path)
    assert len({first.identity, longer.identity, turned.identity}) == 3
    assert len({first.fingerprint, longer.fingerprint, turned.fingerprint}) == 3


@pytest.mark.parametrize("harm", ["weights", "record", "replaced"])
def test_what_is_not_what_was_trained_is_trained_anew(tmp_path: Path, harm: str) -> None:
    dataset, run = data(), small_run(data())
    first = train_run(dataset, run, tmp_path)
    if harm == "weights":
        path = tmp_path / run.name / WEIGHTS
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    elif harm == "record":
        (tmp_path / f"{run.name}.json").write_text('{"identity": ')
    else:
        other = train_run(dataset, small_run(dataset, seed=1), tmp_path / "other")
        checkpoint.save(tmp_path / run.name, checkpoint.load(tmp_path / "other" / "dfgr-small-1").model, dataset.items)
        assert other.fingerprint != first.fingerprint
    again = train_run(dataset, run, tmp_path)
    assert again.fingerprint == first.fingerprint == load_runs([run], tmp_path)[run.name].fingerprint


def test_an_interrupted_run_goes_on_and_nobody_knows_what_it_cost(tmp_path: Path) -> None:
    dataset, run = data(), small_run(data())
    whole = train_run(dataset, run, tmp_path / "whole")

    def interrupt(progress: Progress) -> None:
        if progress.validation is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(dataset, run.config, run.training, tmp_path / f".{run.name}.progress", interrupt)
    resumed = train_run(dataset, run, tmp_path)
    assert resumed.fingerprint == whole.fingerprint
    assert whole.cpu_seconds is not None
    assert resumed.cpu_seconds is None


def test_somebody_elses_folder_is_not_replaced(tmp_path: Path) -> None:
    dataset, run = data(), small_run(data())
    (tmp_path / run.name).mkdir()
    (tmp_path / run.name / "thesis.tex").write_text("years")
    with pytest.raises(CheckpointError, match="not replaced"):
        train_run(dataset, run, tmp_path)


def test_processes_side_by_side_train_what_one_does(tmp_path: Path) -> None:
    dataset = data()
    runs = [small_run(dataset, seed) for seed in (0, 1)]
    beside = train_runs(dataset, runs, tmp_path / "beside", num_processes=2)
    for run in runs:
        alone = train_run(dataset, run, tmp_path / "alone")
        assert beside[run.name].fingerprint == alone.fingerprint
    assert len({record.fingerprint for record in beside.values()}) == 2
