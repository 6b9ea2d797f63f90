"""The image: what a read of its Dockerfile can hold. Building and running it takes a container engine."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "deploy/image"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is packaged for x86-64 Linux only")
    result = subprocess.run(
        [hadolint, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_images_and_makefile_install_the_same_torch() -> None:
    (version,) = re.findall(r"^TORCH \?= (torch==[\d.]+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert re.findall(r"^torch==\S+", (LOCKS / "torch-cpu.txt").read_text(), flags=re.MULTILINE) == [f"{version}+cpu"]
    assert f"\n{version} \\\n" in (LOCKS / "torch-cuda.txt").read_text()


def test_every_package_is_locked_to_its_hashes_at_a_version_that_we_allow() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    asked = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["trace"])]
    lock = (LOCKS / "requirements.txt").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:", lock, flags=re.MULTILINE))
    for requirement in asked:
        if requirement.name != "torch":  # it has files of its own
            assert requirement.specifier.contains(locked[requirement.name]), f"{requirement}: make lock"
    assert "torch" not in locked


@pytest.mark.parametrize("lock", sorted(LOCKS.glob("*.txt")), ids=lambda path: path.name)
def test_locks_name_no_index(lock: Path) -> None:
    assert "://" not in lock.read_text()


def test_every_stage_begins_with_the_pinned_base_and_cpu_is_the_default() -> None:
    assert re.search(r"^ARG BASE=[\w:.-]+@sha256:[0-9a-f]{64}$", DOCKERFILE, flags=re.MULTILINE)
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    assert len(stages) == DOCKERFILE.count("\nFROM ")
    known = {"${BASE}"}
    for parent, name in stages:
        assert parent in known
        known.add(name)
    assert stages[-1] == ("runtime", "cpu")
    assert ("runtime", "cuda") in stages


def test_image_runs_as_a_number_that_is_not_root() -> None:
    # Kubernetes can hold runAsNonRoot only if the image names its user by number.
    users = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, flags=re.MULTILINE)
    assert int(users[-1]) > 0
    assert {user for user in users if user != "0"} == {users[-1]}


def test_what_serves_is_copied_and_let_through_and_what_loads_or_calls_it_is_not() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"loadtest", "tests"}
    tree = DOCKERFILE.partition(" AS tree\n")[2].partition("\nFROM ")[0]
    assert set(re.findall(r"^COPY (\w+) \1$", tree, flags=re.MULTILINE)) == packages
    let_through = re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE)
    assert packages == set(let_through) - {"LICENSE"}
