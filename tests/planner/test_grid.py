"""The runs of a plan: kept one by one, gone on with after a kill, and refused for other data."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mfalcon.errors import ConfigError
from mfalcon.planner.grid import FITTED, HELD_OUT, PROBES, GridProgress, Reach, run_grid
from mfalcon.train.dataset import Dataset
from mfalcon.train.splits import TRAIN, UNUSED, split, thinned
from mfalcon.train.synthetic import synthetic

ROOT = Path(__file__).parents[2]
STEPS = 5
SHAPES = Reach(dim=8, max_history=16).shapes(FITTED)[:3]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return synthetic(40, 60, 30, seed=0)


def test_a_second_time_nothing_is_trained(dataset: Dataset, tmp_path: Path) -> None:
    told = list[GridProgress]()
    first = run_grid(dataset, SHAPES, STEPS, 0, tmp_path, told.append)
    assert [record.shape for record in first] == list(SHAPES)
    assert all(0 <= record.validation <= 1 and record.events > 0 for record in first)
    assert first[2].events < first[0].events  # it has half of the users
    assert [progress.record is None for progress in told] == [True, False] * len(SHAPES)
    assert told[-1].seconds_left == 0
    again = list[GridProgress]()
    assert run_grid(dataset, SHAPES, STEPS, 0, tmp_path, again.append) == first
    assert all(progress.was_kept for progress in again)
    (tmp_path / "runs" / f"{SHAPES[1].name}.json").unlink()
    [other] = [r for r in run_grid(dataset, SHAPES, STEPS, 0, tmp_path, again.append) if r.shape == SHAPES[1]]
    assert replace_seconds(other.model_dump()) == replace_seconds(first[1].model_dump())


def replace_seconds(record: dict[str, object]) -> dict[str, object]:
    return record | {"seconds": 0}


def test_results_of_other_data_are_refused_before_anything_is_trained(dataset: Dataset, tmp_path: Path) -> None:
    run_grid(dataset, SHAPES[:1], STEPS, 0, tmp_path, lambda _: None)
    told = list[GridProgress]()
    other = replace(dataset, user=dataset.user[::-1].copy())
    for of, steps, seed in ((other, STEPS, 0), (dataset, STEPS + 10, 0), (dataset, STEPS, 1)):
        with pytest.raises(ConfigError, match="is of other data, steps, seed or version"):
            run_grid(of, SHAPES[::-1], steps, seed, tmp_path, told.append)
    assert not told


@pytest.mark.parametrize("content", ["", "{", '{"shape": 1}', "null"])
def test_a_damaged_result_is_named(dataset: Dataset, tmp_path: Path, content: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / f"{SHAPES[0].name}.json").write_text(content)
    with pytest.raises(ConfigError, match="is no result of a run; delete it"):
        run_grid(dataset, SHAPES[:1], STEPS, 0, tmp_path, lambda _: None)


KILLED = """
from pathlib import Path
from mfalcon.planner.grid import FITTED, Reach, run_grid
from mfalcon.train.synthetic import synthetic
run_grid(synthetic(40, 60, 30, seed=0), Reach(dim=8, max_history=16).shapes(FITTED)[:3], 5, 0, Path({out!r}),
         lambda progress: print(progress.record is not None, flush=True))
"""


def test_a_kill_loses_no_finished_run(dataset: Dataset, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(out=str(tmp_path))], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "True":  # the first run is done, the second has begun or is about to
            break
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    kept = sorted((tmp_path / "runs").glob("*.json"))
    assert kept
    before = {path: path.read_bytes() for path in kept}
    told = list[GridProgress]()
    records = run_grid(dataset, SHAPES, STEPS, 0, tmp_path, told.append)
    assert len(records) == len(SHAPES)
    assert {path: path.read_bytes() for path in kept} == before
    assert sum(progress.was_kept for progress in told) == len(kept)


def test_every_run_takes_as_many_steps(dataset: Dataset) -> None:
    for shape in Reach().shapes((*FITTED, *HELD_OUT)):
        training = shape.training(800, 0)
        assert training.steps_per_epoch is not None
        assert training.epochs * training.steps_per_epoch == 800
        assert shape.model(dataset).max_history == shape.max_history


@pytest.mark.parametrize("dim", [8, 20, 64, 96, 4_096])
def test_shapes_of_any_reach_are_models(dataset: Dataset, dim: int) -> None:
    reach = Reach(dim=dim, max_history=16)
    for shape in (*reach.shapes((*FITTED, *HELD_OUT, *PROBES)), *reach.space):
        config = shape.model(dataset)
        assert config.dim == shape.dim
    assert len({shape.name for shape in reach.shapes((*FITTED, *HELD_OUT))}) == len(FITTED) + len(HELD_OUT)


def test_fewer_users_are_some_of_more(dataset: Dataset) -> None:
    parts = split(dataset, "A")
    half, quarter = (thinned(parts, dataset, share) for share in (0.5, 0.25))
    for part in (half, quarter):
        assert np.array_equal(part[parts != TRAIN], parts[parts != TRAIN])
        assert set(part[parts == TRAIN]) == {TRAIN, UNUSED}
    assert not np.any((quarter == TRAIN) & (half != TRAIN))
    assert np.array_equal(thinned(parts, dataset, 1.0), parts)
    assert len(np.unique(dataset.user[thinned(parts, dataset, 1e-9) == TRAIN])) == 1
