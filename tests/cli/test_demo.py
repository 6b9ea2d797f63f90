"""The demo's acts on the real data, with models that nobody trained: what it shows must hold all the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mfalcon.cli.demo_members import CHECKPOINT, SECOND
from mfalcon.models import checkpoint
from mfalcon.models.registry import build
from mfalcon.train.movielens import read
from mfalcon.train.recipes import model_config

ROOT = Path(__file__).parents[2]
SECONDS = 300


@pytest.fixture(scope="module")
def told(ml100k_files: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """All that `mfalcon demo` prints in a folder that has the data and checkpoints."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "data").symlink_to(ml100k_files.parent)
    dataset = read(ml100k_files)
    for seed, path in enumerate((CHECKPOINT, SECOND)):
        torch.manual_seed(seed)
        checkpoint.save(folder / path, build(model_config(dataset, "dfgr")), dataset.items)
    command = [sys.executable, "-m", "mfalcon.cli", "demo"]
    here = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}", "COLUMNS": "200"}
    done = subprocess.run(
        command, cwd=folder, env=here, timeout=SECONDS, check=False, text=True, stdout=subprocess.PIPE
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in {text}"
    return float(found[1])


def test_cached_scores_are_those_of_one_forward_per_candidate(told: str) -> None:
    assert number(r"all tasks: (\S+)", told) < 1e-5


def test_the_state_is_reused_and_appended_to(told: str) -> None:
    of = {line[:10]: line for line in told.splitlines() if "tokens reused" in line}
    encoded = number(r"(\d+) encoded", of["first requ"])
    assert encoded > 0
    assert number(r"(\d+) tokens reused", of["the same a"]) == encoded
    assert number(r"(\d+) encoded", of["the same a"]) == 0
    assert number(r"(\d+) encoded", of["after one "]) == 1


def test_the_diverse_list_is_more_so_and_costs_no_score(told: str) -> None:
    assert number(r"differ by (\S+)", told) > number(r"by score (\S+)", told)
    assert "every score is the same" in told


def test_a_merge_is_that_of_what_its_members_answer(told: str) -> None:
    assert number(r"answers alone\|: (\S+)", told) < 1e-6
    weights = [float(weight) for weight in re.findall(r"\(weight (\S+),", told)]
    assert len(weights) == 2
    assert sum(weights) == pytest.approx(1, abs=0.011)  # two digits of each


def test_a_merge_is_fitted_on_validation_events(told: str) -> None:
    for name in (CHECKPOINT.name, SECOND.name, "merged"):
        assert 0 < number(rf"validation AUC:.* {re.escape(name)} (\d\.\d+)", told) < 1
