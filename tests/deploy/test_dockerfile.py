"""The image: what a read of its Dockerfile can hold. Building and running it takes a container engine."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is packaged for x86-64 Linux only")
    result = subprocess.run(
        [hadolint, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_image_and_makefile_install_the_same_torch() -> None:
    torch = {name: re.findall(r"torch==[\d.]+", (ROOT / name).read_text()) for name in ("Dockerfile", "Makefile")}
    assert torch["Dockerfile"] == torch["Makefile"]
    assert len(torch["Makefile"]) == 1


def test_image_runs_as_a_number_that_is_not_root() -> None:
    # Kubernetes can hold runAsNonRoot only if the image names its user by number.
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, flags=re.MULTILINE)
    assert int(user) > 0


def test_every_top_level_package_is_copied_and_let_through() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"} | {"client"}
    assert set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, flags=re.MULTILINE)) == packages
    let_through = re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE)
    assert packages <= set(let_through)
