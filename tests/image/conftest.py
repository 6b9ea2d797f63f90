"""The images, built once from this tree, and what was measured of them."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.report.machine import commit
from tests.image.engine import ROOT, Engine, missing

STORAGE = ROOT / "build/image"


@pytest.fixture(scope="session")
def measured() -> Iterator[dict[str, object]]:
    """Figures by name; they are printed and written to build/image/measured.json."""
    figures: dict[str, object] = {"commit": commit()}
    yield figures
    text = json.dumps(figures, indent=2)
    (STORAGE / "measured.json").write_text(text + "\n")
    print(f"\n{text}")


@pytest.fixture(scope="session")
def engine() -> Engine:
    why = missing()
    if why is not None:
        pytest.fail(f"images cannot be built here: {why}")
    STORAGE.mkdir(parents=True, exist_ok=True)
    return Engine(STORAGE)


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of this tree that git does not ignore, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    copy = tmp_path_factory.mktemp("context")
    names = [name for name in listed.split(b"\0") if name and (ROOT / name.decode()).is_file()]
    packed = subprocess.run(
        ["tar", "-cf", "-", "--null", "-T", "-"], cwd=ROOT, input=b"\0".join(names), capture_output=True, check=True
    )
    subprocess.run(["tar", "-xf", "-"], cwd=copy, input=packed.stdout, check=True)
    return copy


@pytest.fixture(scope="session")
def base(engine: Engine) -> str:
    """The image that the Dockerfile begins with."""
    (line,) = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("ARG BASE=")]
    return engine.base(line.removeprefix("ARG BASE="))


@pytest.fixture(scope="session")
def cpu_image(engine: Engine, base: str, context: Path, measured: dict[str, object]) -> str:
    measured["cpu_build_s"] = round(
        engine.build(context / "Dockerfile", "cpu", "mfalcon:cpu", {"BASE": base, "REVISION": commit() or ""}, context),
        1,
    )
    return "mfalcon:cpu"
