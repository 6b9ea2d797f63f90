"""The distribution: built, installed where there is nothing else, and ranked with, against a server of real weights."""

import json
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import shape_named
from mfalcon.cli.process import serving
from mfalcon.models import checkpoint
from mfalcon.types import EVENT_DTYPE
from tests.small import NOW_MS, cold_scores, rank_request

CLIENT = Path(__file__).parents[2] / "client"
NUM_ITEMS = 40


def run(*command: str, cwd: Path = CLIENT) -> str:
    """What it prints; what it complains of, if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def build(folder: Path, out: Path, *kinds: str) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-d", str(out), *(f"-t{kind}" for kind in kinds), cwd=folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    out = tmp_path_factory.mktemp("dist")
    build(CLIENT, out, "wheel", "sdist")
    return out


def files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def test_the_sdist_makes_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if not member.isfile()]
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    build(folder, tmp_path, "wheel")
    (again,) = tmp_path.glob("*.whl")
    assert files(again) == files(wheel)


def test_the_wheel_holds_the_contract_and_takes_no_other_name(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    held = files(wheel)
    assert {name.partition("/")[0].partition("-")[0] for name in held} == {"mfalcon_client"}
    for name, source in {"ranking.binpb": "ranking.binpb", "messages.pyi": "ranking_pb2.pyi"}.items():
        assert held[f"mfalcon_client/{name}"] == (CLIENT.parent / "proto" / source).read_bytes()
    assert "mfalcon_client/py.typed" in held


@pytest.mark.slow
def test_it_ranks_where_nothing_else_is_installed(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv" / "bin" / "python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile", str(wheel))
    made = random_checkpoint(shape_named("tiny"), NUM_ITEMS, max_history=32)
    checkpoint.save(tmp_path / "random", made.model, made.items)
    script = Path(__file__).with_name("empty_environment.py")
    with serving(tmp_path / "random") as served:
        said = json.loads(run(python, str(script), served.grpc, str(NUM_ITEMS), str(NOW_MS), cwd=tmp_path))
    assert said["history_len"] == 20
    assert said["late"] in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
    assert said["is_same"]
    assert "mfalcon_client" in said["modules"]
    assert not {"torch", "pandas", "grpc_tools", "mfalcon", "proto", "server"} & set(said["modules"])
    candidates = np.arange(1, NUM_ITEMS + 1)
    history = np.zeros(20, dtype=EVENT_DTYPE)
    history["item_id"], history["actions"], history["value"] = candidates[:20], 1, 3.0
    history["time_ms"] = NOW_MS - 60_000
    truth = cold_scores(
        checkpoint.load(tmp_path / "random", torch.float64), history, rank_request("ann", range(1, NUM_ITEMS + 1))
    )
    # float32 against float64, as law 1 has it.
    np.testing.assert_allclose(said["task_scores"], truth, rtol=1e-4, atol=1e-4)
    assert len(said["top"]) == 3
