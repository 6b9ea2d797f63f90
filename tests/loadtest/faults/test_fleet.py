"""The servers of the chaos run: they come back on their ports, and go with whoever started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import loadtest
from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import shape_named
from loadtest.faults.fleet import Fleet
from mfalcon.errors import EngineFailure
from mfalcon.models import checkpoint
from mfalcon_client import Client, ClientError

ROOT = Path(loadtest.__file__).parents[1]
FLAGS = ("--threads", "1", "--microbatch", "16")
pytestmark = pytest.mark.thorough

WAIT_S = 60.0
"""Far above what anything here takes; a test that waits this long has failed."""
PARENT = """
import sys, time
from pathlib import Path
from loadtest.faults.fleet import Fleet
with Fleet(Path(sys.argv[1]), 1, ("--threads", "1", "--microbatch", "16")) as fleet:
    print(fleet.targets[0], flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = random_checkpoint(shape_named("tiny"), 40, max_history=32)
    path = tmp_path_factory.mktemp("fleet") / "random"
    checkpoint.save(path, made.model, made.items)
    return path


def answers(target: str) -> bool:
    with Client(target, timeout_s=1.0) as client:
        try:
            return bool(client.get_model().name)
        except ClientError:
            return False


def test_a_killed_server_comes_back_on_its_port(served: Path) -> None:
    with Fleet(served, 1, FLAGS) as fleet:
        (target,) = fleet.targets
        assert answers(target)
        fleet.kill(0)
        assert not answers(target)
        fleet.start(0)
        assert fleet.targets == (target,)
        assert answers(target)
        assert not fleet.exited()  # who was killed did not end by itself
    assert not answers(target)


def test_a_server_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineFailure, match="exit code 1"), Fleet(tmp_path, 1, FLAGS):
        pass


def test_a_server_ends_with_a_parent_that_is_killed(served: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(served)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        target = parent.stdout.readline().strip()
        assert answers(target)
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + WAIT_S
    while answers(target):
        assert time.monotonic() < deadline
        time.sleep(0.05)
