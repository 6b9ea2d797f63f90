"""mfalcon installs editable only, and nothing else may stand in for its top-level packages."""

import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import mfalcon
from mfalcon.cli.isolation import PACKAGES, check_isolation

ROOT = Path(mfalcon.__file__).resolve().parent.parent


def build(hook: str, out: Path) -> subprocess.CompletedProcess[str]:
    """Call a PEP 517 hook of the build backend in a process of its own, as pip does."""
    code = f"import sys; from hatchling import build; build.{hook}(sys.argv[1])"
    return subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("hook", ["build_wheel", "build_sdist"])
def test_other_builds_are_refused_with_the_remedy(hook: str, tmp_path: Path) -> None:
    result = build(hook, tmp_path)
    assert result.returncode == 1
    assert "mfalcon is an application" in result.stdout + result.stderr
    assert "pip install -e ." in result.stdout + result.stderr
    assert not list(tmp_path.iterdir())


def test_editable_build_puts_no_package_in_site_packages(tmp_path: Path) -> None:
    result = build("build_editable", tmp_path)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (pth,) = [name for name in names if name.endswith(".pth")]
        assert archive.read(pth).decode().split() == [str(ROOT), str(ROOT / "client")]
    metadata = f"mfalcon-{mfalcon.__version__}.dist-info/"
    assert [name for name in names if name != pth and not name.startswith(metadata)] == []


def test_no_other_distribution_claims_our_names() -> None:
    claims = packages_distributions()
    claimed = {name: claims[name] for name in (*PACKAGES, "mfalcon") if name in claims}
    assert all(owners == ["mfalcon"] for owners in claimed.values()), claimed


def test_every_top_level_package_is_checked() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"mfalcon", "tests"}
    assert packages == set(PACKAGES)


def test_isolation_holds_here() -> None:
    check_isolation()


def isolation_with_first_on_path(path: Path) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path[:0] = [{str(path)!r}, {str(ROOT)!r}]\n"
        "from mfalcon.cli.isolation import check_isolation\n"
        "from mfalcon.errors import ConfigError\n"
        "try: check_isolation()\n"
        "except ConfigError as error: print(error)\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("form", ["{}/__init__.py", "{}.py"])
def test_a_foreign_package_is_named_with_the_remedy(name: str, form: str, tmp_path: Path) -> None:
    foreign = tmp_path / form.format(name)
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("raise RuntimeError('imported')\n")
    message = isolation_with_first_on_path(tmp_path).stdout
    assert f"package {name} is shadowed" in message
    assert str(tmp_path.resolve() / name) in message
    assert "pip install -e ." in message


def test_a_folder_without_init_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    assert isolation_with_first_on_path(tmp_path).stdout == ""


def test_stubs_run_on_the_oldest_allowed_grpcio() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    (tools,) = [r for r in project["optional-dependencies"]["test"] if r.startswith("grpcio-tools")]
    pinned = tools.removeprefix("grpcio-tools==")
    bounds = [r for r in project["dependencies"] if r.startswith("grpcio")]
    assert len(bounds) == 3
    assert all(bound.endswith(f">={pinned}") for bound in bounds), bounds
