"""A ranker trained on the real data, by the command that a user would run; once for all tests of this folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.train.dataset import Dataset

ROOT = Path(__file__).parents[2]
TRAIN_SECONDS = 600


@pytest.fixture(scope="session")
def trained(ml100k: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a dfgr checkpoint, trained for a sixth of the default recipe."""
    return train(tmp_path_factory.mktemp("trained") / "dfgr", "--epochs", "2")


@pytest.fixture(scope="session")
def wholly_trained(ml100k: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the default recipe."""
    return train(tmp_path_factory.mktemp("trained") / "dfgr")


def train(out: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "mfalcon.cli", "train", "--model", "dfgr", "--out", str(out), *options]
    subprocess.run(command, check=True, cwd=ROOT, timeout=TRAIN_SECONDS, stdout=subprocess.DEVNULL)
    return out


@pytest.fixture(scope="session")
def loaded(trained: Path) -> Checkpoint:
    return checkpoint.load(trained)
