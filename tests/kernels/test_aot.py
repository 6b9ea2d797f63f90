"""Every GPU kernel compiles for every architecture, without spills and within limits; no GPU is needed."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="no triton for this platform")

import triton

from kernels.gpu import aot, configs, limits, proof
from kernels.gpu.aot_cases import ARCHITECTURES, Case, cases
from kernels.gpu.limits import Figures

ROOT = Path(__file__).parents[2]


@pytest.mark.thorough
def test_every_kernel_keeps_its_limits(tmp_path: Path) -> None:
    """`make test` runs it as a process of its own, beside the tests."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "kernels.gpu.aot"],
        check=False,
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_an_interpreting_process_refuses() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kernels.gpu.aot"],
        check=False,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "TRITON_INTERPRET" in done.stderr


@pytest.mark.parametrize(
    ("found", "granted", "told"),
    [
        ({"90 a": Figures(64, 0, 1024)}, {"90 a": Figures(64, 0, 1024)}, []),
        ({"90 a": Figures(60, 0, 512)}, {"90 a": Figures(64, 0, 1024)}, []),
        ({"90 a": Figures(65, 0, 0)}, {"90 a": Figures(64, 0, 0)}, ["90 a: registers 65 > 64"]),
        ({"90 a": Figures(64, 8, 0)}, {"90 a": Figures(64, 0, 0)}, ["90 a: spilled 8 > 0"]),
        ({"90 a": Figures(64, 0, 9)}, {"90 a": Figures(64, 0, 8)}, ["90 a: shared 9 > 8"]),
        ({"90 a": Figures(64, 0, 0)}, {}, ["90 a: has no limits"]),
        ({}, {"90 a": Figures(64, 0, 0)}, ["90 a: has limits, but is no case"]),
        (
            {"89 a": Figures(64, 0, 101377)},
            {"89 a": Figures(64, 0, 101377)},
            ["89 a: shared 101377 > 101376, all that the architecture has"],
        ),
    ],
    ids=["equal", "below", "registers", "spilled", "shared", "missing", "stale", "more than there is"],
)
def test_the_gate_sees(found: dict[str, Figures], granted: dict[str, Figures], told: list[str]) -> None:
    assert limits.failures(found, granted) == told


def test_a_compiler_that_dies_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    case = Case("90 a", 90, partial(os._exit, 9))
    assert aot.all_compiled([case]) == ([], ["90 a"])
    assert capfd.readouterr().err == "90 a: again, as a compiler died\n"


def test_registers_are_granted_as_they_are_given_out() -> None:
    assert limits.granted(Figures(65, 0, 1)) == Figures(72, 0, 1)
    assert limits.granted(Figures(64, 0, 1)) == Figures(64, 0, 1)


@pytest.mark.parametrize("version", limits.versions())
def test_limits_cover_all_cases_and_grant_no_spill(version: str) -> None:
    granted = limits.read(limits.path_of(version))
    assert {case.key for architecture in ARCHITECTURES for case in cases(architecture)} == granted.keys()
    assert {key for key, limit in granted.items() if limit.spilled} <= limits.MAY_SPILL


def test_the_installed_triton_has_limits() -> None:
    assert limits.path_of(triton.__version__).is_file()
    assert limits.path_of("3.7.9") == limits.path_of("3.7.1")


def test_a_triton_without_limits_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(triton, "__version__", "3.99.0")
    monkeypatch.setattr(aot, "interpreted", lambda: False)
    monkeypatch.setattr("sys.argv", ["aot"])
    assert aot.main() == 1
    told = capsys.readouterr().err
    assert told.startswith(f"triton 3.99.0: no limits for its compiler, only for {', '.join(limits.versions())}.")


def test_what_was_proven_is_so_until_a_source_or_the_compiler_changes(tmp_path: Path) -> None:
    version = triton.__version__
    known = proof.digest(version)
    assert proof.path_of("3.7.9") == proof.path_of("3.7.1")
    folder = tmp_path / "kernels"
    shutil.copytree(ROOT / "kernels", folder, ignore=shutil.ignore_patterns("cpu", "__pycache__", "*.proof"))
    assert proof.digest(version, folder) == known != proof.digest(f"{version}.post1", folder)
    for changed in ("gpu/norms.py", "gpu/hopper/launch.py", "paged.py", f"gpu/{limits.path_of(version).name}"):
        before = (folder / changed).read_text()
        (folder / changed).write_text(f"{before} ")
        assert proof.digest(version, folder) != known
        (folder / changed).write_text(before)
    assert proof.digest(version, folder) == known


def test_the_sample_has_every_architecture() -> None:
    keys = [case.key for architecture in ARCHITECTURES for case in cases(architecture)]
    assert {int(key.split()[0]) for key in proof.sample(keys)} == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", [80, 89, 90])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("version", limits.versions())
def test_two_tiles_of_sixty_four_fit_one_multiprocessor(version: str, architecture: int, head_dim: int) -> None:
    config = configs.attention_rule("target_attention", architecture, 2, head_dim, 64)
    shared = limits.read(limits.path_of(version))[
        f"{architecture} target_attention bfloat16 {head_dim}x{head_dim} rows64"
    ].shared
    assert config.num_stages >= 2
    assert 2 * (shared + 1024) <= 1024 * (configs.SHARED_KIB[architecture] + 1)
