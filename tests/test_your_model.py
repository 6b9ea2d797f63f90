"""Models of other packages: what docs/your-model.md says is run, and what a bad package does harms nobody else."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mfalcon.backends.select import reference
from mfalcon.cli.new_model import new_model, write
from mfalcon.engine.probe import probe
from mfalcon.errors import CheckpointError, ConfigError
from mfalcon.laws import check
from mfalcon.models.base import EventTokens
from mfalcon.models.checkpoint import load, save
from mfalcon.models.dfgr import DFGR
from mfalcon.models.hstu import HSTU
from mfalcon.models.registry import GROUP, architecture, architectures
from mfalcon.testing import is_prefix_stable, random_checkpoint
from mfalcon.train.recipes import model_config
from mfalcon.train.synthetic import synthetic
from tests.small import small_checkpoint, small_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your-model.md").read_text()
Install = Callable[..., None]


def installed(folder: Path, package: str, **points: str) -> None:
    """As pip leaves it: what is known of a package, and its entry points."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(package: str, code: str = "", **points: str) -> None:
        (tmp_path / f"{package}.py").write_text(code)
        installed(tmp_path, package, **points)

    return add


def files_of_the_page() -> dict[str, str]:
    """Each block of the page that is a file, by the path that stands before it."""
    found = re.findall(r"^`([\w./]+)`:\n\n((?:(?: {4}.*)?\n)+)", PAGE, re.MULTILINE)
    return {path: re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for path, block in found}


def test_the_package_of_the_page_passes_its_tests(tmp_path: Path) -> None:
    """`mfalcon new-model`, the files of the page in it, its entry point, and pytest; the template's own model too."""
    files = files_of_the_page()
    assert list(files) == ["src/my_ranker/model.py", "pyproject.toml", "tests/test_my_ranker.py"]
    write("my_ranker", tmp_path)
    write("theirs", tmp_path)
    package = tmp_path / "my_ranker"
    assert files["pyproject.toml"].strip() in (package / "pyproject.toml").read_text()
    for path in ("src/my_ranker/model.py", "tests/test_my_ranker.py"):
        (package / path).write_text(files[path])
    for name, kind in (("my_ranker", "MyRankerModel"), ("theirs", "TheirsModel")):
        installed(tmp_path / name / "src", name, **{name: f"{name}.model:{kind}"})
    paths = [ROOT, ROOT / "client", package / "src", tmp_path / "theirs" / "src"]
    tests = [f"{package}/tests/test_my_ranker.py", f"{tmp_path}/theirs/tests/test_theirs.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    command += ["-k", "not float64 and not bfloat16", "--rootdir", str(tmp_path)]  # all types of a law take long
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=package / "tests", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout


def test_a_registered_class_is_verified_and_read_again(install: Install, tmp_path: Path) -> None:
    install(
        "mine", "from mfalcon.models.dfgr import DFGR\nclass Mine(DFGR):\n    pass\n", mine="mine:Mine", odd="mine:None"
    )
    assert {"mine", "odd", "dfgr"} <= set(architectures())
    config = small_config("dfgr", max_history=6, window_chunk=2).model_copy(update={"architecture": "mine"})
    model = random_checkpoint(config, torch.float32)
    save(tmp_path / "checkpoint", model.model, model.items)
    loaded = load(tmp_path / "checkpoint")
    assert type(loaded.model).__name__ == "Mine"
    assert next(one for one in check(loaded) if one.law == 3).holds
    assert model_config(synthetic(5, 10, 5, seed=1), "mine").architecture == "mine"  # `mfalcon train` has a recipe


@pytest.mark.parametrize(
    ("code", "value", "cause"),
    [
        (
            "raise ValueError('no weights\\nhere')",
            "bad:Mine",
            r"bad:Mine of package bad cannot be imported \(ValueError: no",
        ),
        ("import sys\nsys.exit(3)", "bad:Mine", "cannot be imported .SystemExit: 3"),
        ("import not_there_at_all", "bad:Mine", "ModuleNotFoundError"),
        ("", "bad:Mine", "AttributeError"),
        ("Mine = 3", "bad:Mine", "must be a whole PrefixRanker or EventRanker"),
        ("class Mine:\n    pass", "bad:Mine", "must be a whole PrefixRanker"),
        ("from mfalcon.models.base import TaskRanker as Mine", "bad:Mine", "must be a whole PrefixRanker"),
        (
            "from mfalcon.models.dfgr import DFGR\nclass Mine(DFGR):\n    prefix_stable = 'yes'",
            "bad:Mine",
            "must say prefix_stable, True or False",
        ),
    ],
)
def test_a_bad_class_is_named_and_harms_no_other(install: Install, code: str, value: str, cause: str) -> None:
    sys.modules.pop("bad", None)
    install("bad", code, bad_one=value)
    with pytest.raises(ConfigError, match=cause):
        architecture("bad_one")
    assert "bad_one" in architectures()
    assert architecture("dfgr") is DFGR
    sys.modules.pop("bad", None)


def test_names_that_are_taken(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("one", "", dfgr="one:Mine", mine="one:Mine")
    install("two", "", mine="two:Other")
    with pytest.raises(ConfigError, match=r"must be of one package, is of (one:Mine|two:Other) of package"):
        architecture("mine")
    assert architecture("dfgr") is DFGR
    assert "one:Mine of package one does not take its place" in caplog.text


def test_a_checkpoint_without_its_package_says_so(tmp_path: Path) -> None:
    made = random_checkpoint(small_config("dfgr"), torch.float32)
    made.model.config = made.model.config.model_copy(update={"architecture": "gone"})
    save(tmp_path / "checkpoint", made.model, made.items)
    with pytest.raises(CheckpointError, match=r"'gone' is not one of .* must be installed here"):
        load(tmp_path / "checkpoint")


class Liar(HSTU):
    """Says that it is prefix-stable, and reads an event with its age at the newest one."""

    def prefix_tokens(self, events: EventTokens) -> torch.Tensor:
        age = (events.times[..., -1:] - events.times).double() / 1e9
        x = super().prefix_tokens(events)
        return x + (age.repeat_interleave(2, -1).unsqueeze(-1) * torch.arange(x.shape[-1])).to(x.dtype)


def test_a_lie_about_the_prefix_is_found_by_the_laws_and_by_a_server() -> None:
    checkpoint = small_checkpoint("hstu", config=small_config("hstu", max_history=6, window_chunk=2))
    probe(reference(checkpoint.model))
    assert is_prefix_stable(checkpoint)
    checkpoint.model.__class__ = Liar
    assert not is_prefix_stable(checkpoint)
    with pytest.raises(CheckpointError, match="not prefix-stable, as it says"):
        probe(reference(checkpoint.model))
    assert not next(one for one in check(checkpoint) if one.law == 3).holds


@pytest.mark.parametrize("name", ["", "Mine", "my-ranker", "class", "dfgr", "torch", "../up", "a" * 65, "1st"])
def test_a_bad_name_of_a_package_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="NAME: got"):
        new_model(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over_or_half_written(tmp_path: Path) -> None:
    new_model("mine_too", tmp_path)
    before = (tmp_path / "mine_too" / "README.md").read_text()
    with pytest.raises(ConfigError, match="exists, and is not written over"):
        new_model("mine_too", tmp_path)
    assert (tmp_path / "mine_too" / "README.md").read_text() == before
    with pytest.raises(ConfigError, match="cannot be written"):
        new_model("another", tmp_path / "not there")
    assert [path.name for path in tmp_path.iterdir()] == ["mine_too"]
