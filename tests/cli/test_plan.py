"""`mfalcon plan` over runs that are there already: another budget costs no training."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mfalcon.cli.plan import plan
from mfalcon.errors import ConfigError
from mfalcon.planner.grid import FITTED, HELD_OUT, Reach, RunRecord
from mfalcon.train.synthetic import synthetic
from mfalcon.train.trainer import run_identity

planning = typer.Typer()
planning.command()(plan)
RUNNER = CliRunner()
DIM, HISTORY, STEPS = 8, 16, 5
NUM_RUNS = len(FITTED) + len(HELD_OUT)
REACH = ["--most-dim", str(DIM), "--most-history", str(HISTORY), "--steps", str(STEPS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results as runs of the data set that `--data synthetic` is would leave them."""
    out = tmp_path_factory.mktemp("plan")
    dataset = synthetic(num_users=300, num_items=500, events_per_user=60, seed=0)
    (out / "runs").mkdir()
    for shape in Reach(dim=DIM, max_history=HISTORY).shapes((*FITTED, *HELD_OUT)):
        auc = 0.75 - 0.05 / shape.layers - 0.2 / shape.dim - 0.1 / shape.max_history - 0.005 / shape.users_share
        record = RunRecord(
            identity=run_identity(dataset, shape.model(dataset), shape.training(STEPS, 0)),
            shape=shape,
            steps=STEPS,
            seed=0,
            events=int(14_000 * shape.users_share),
            validation=auc,
            test=auc,
            seconds=1.0,
        )
        (out / "runs" / f"{shape.name}.json").write_text(record.model_dump_json())
    return out


def asked(folder: Path, *more: str) -> list[str]:
    given = ["--data", "synthetic", "--out", str(folder), "--m", "50", "--cores", "1", *REACH]
    return [*given, "--budget-ms", "1000", *more]


def test_it_says_what_to_train_and_trains_it(folder: Path, tmp_path: Path) -> None:
    done = RUNNER.invoke(planning, asked(folder, "--then-train", str(tmp_path / "ck"), "--threads", "1"))
    assert done.exit_code == 0, done.output
    assert f"[{NUM_RUNS}/{NUM_RUNS}]" in done.output
    assert "kept" in done.output
    assert "mfalcon train --layers 4 --dim 8 --heads 1 --max-history 16 --window-chunk 8" in done.output
    assert "entropy of a user's item" in done.output
    assert (tmp_path / "ck" / "model.safetensors").is_file()
    assert "; predicted 0." in done.output


@pytest.mark.thorough
def test_a_budget_that_nothing_keeps_is_an_exit_code(folder: Path) -> None:
    done = RUNNER.invoke(planning, [*asked(folder, "--json")[:-3], "--budget-ms", "0.01", "--json"])
    assert done.exit_code == 1, done.output
    told = json.loads(done.stdout)
    assert told["plan"]["chosen"] is None
    assert len(told["runs"]) == NUM_RUNS
    assert set(told["trust"]) >= {"left_out", "held_out", "plain_left_out", "regret"}
    assert told["plan"]["curve"][0]["shape"]["users_share"] == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--steps", "10"], "is of other data, steps, seed or version"),
        (["--seed", "1"], "is of other data, steps, seed or version"),
        (["--most-dim", "7"], "--most-dim"),
        (["--most-history", "3"], "--most-history"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, options: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        RUNNER.invoke(planning, asked(folder, *options), catch_exceptions=False)
