"""`mfalcon evaluate A B --merge` and `mfalcon merge fit A B`, in this process."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from mfalcon.cli.evaluate import evaluate
from mfalcon.cli.merge import app
from mfalcon.errors import ConfigError
from mfalcon.models import checkpoint
from mfalcon.models.registry import build
from mfalcon.train.recipes import model_config
from mfalcon.train.synthetic import synthetic

evaluating = typer.Typer()
evaluating.command()(evaluate)
RUNNER = CliRunner()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two rankers of the data set that `--data synthetic` is; the second bears a name that TOML must escape."""
    dataset = synthetic(num_users=300, num_items=500, events_per_user=60, seed=0)
    made = []
    for seed, name in enumerate(("one", 'the "other"'), 2):
        torch.manual_seed(seed)
        model = build(model_config(dataset, "dfgr", dim=8, num_layers=1, max_history=20, window_chunk=10)).eval()
        model.items.load_items(dataset.items)
        made.append(tmp_path_factory.mktemp("merge") / name)
        checkpoint.save(made[-1], model, dataset.items)
    return [str(path) for path in made]


def test_evaluate_reports_each_and_the_merge(paths: list[str]) -> None:
    done = RUNNER.invoke(evaluating, [*paths, "--data", "synthetic", "--merge", "logit", "--weights", "3,1", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    names = [Path(path).name for path in paths]
    assert list(told["checkpoints"]) == names
    assert told["weights"] == dict(zip(names, (3.0, 1.0), strict=True))
    assert [(r["scorer"], r["task"], r["visibility"]) for r in told["reports"]] == [
        (scorer, task, visibility)
        for visibility in ("strict", "order")
        for scorer in (*names, "merge")
        for task in ("like", "rating")
    ]
    assert all(-1 <= c["r"] <= 1 for c in told["correlations"])


def test_fit_prints_the_toml_that_serves(paths: list[str]) -> None:
    done = RUNNER.invoke(app, ["fit", *paths, "--data", "synthetic", "--name", "both", "--merge", "probability"])
    assert done.exit_code == 0, done.output
    told = tomllib.loads(done.stdout)
    (ensemble,) = told["ensembles"]
    assert (ensemble["name"], ensemble["merge"]) == ("both", "probability")
    members = {member["model"]: member["weight"] for member in ensemble["members"]}
    assert {model["name"] for model in told["models"]} == set(members) <= {Path(path).name for path in paths}
    assert all(Path(model["checkpoint"]).is_dir() for model in told["models"])
    assert sum(members.values()) == pytest.approx(1, abs=1e-3)
    assert {task["task"] for task in ensemble["calibration"]} <= {"like", "rating"}
    assert "validation events" in done.stderr and "fitted" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--merge", "mean"], "--merge: got 'mean', must be 'logit' or 'probability'"),
        (["--merge", "logit", "--weights", "1"], "2 numbers above 0"),
        (["--merge", "logit", "--weights", "1,-1"], "2 numbers above 0"),
        (["--merge", "logit", "--weights", "1,nan"], "2 numbers above 0"),
        (["--merge", "logit", "--weights", "1e308,1e308"], "at most 1,000,000"),
        (["--merge", "logit", "--rerank", "mmr"], "without --rerank"),
        (["--weights", "1,1"], "only with --merge"),
        ([], "must be one without --merge"),
    ],
)
def test_what_is_wrong_is_named(paths: list[str], arguments: list[str], what: str) -> None:
    done = RUNNER.invoke(evaluating, [*paths, "--data", "synthetic", *arguments])
    assert isinstance(done.exception, ConfigError) and what in str(done.exception)


def test_one_checkpoint_twice_is_refused(paths: list[str]) -> None:
    done = RUNNER.invoke(evaluating, [paths[0], paths[0], "--data", "synthetic", "--merge", "logit"])
    assert isinstance(done.exception, ConfigError) and "given twice" in str(done.exception)
