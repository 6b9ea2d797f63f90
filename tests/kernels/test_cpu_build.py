"""Compiling the fused kernel: explicit, once per change of the sources, and a clear word where there is no compiler."""

import subprocess
from pathlib import Path

import pytest

from kernels import cpu_build, fused

POLICY = cpu_build.POLICIES["portable_f32"]


def compiler() -> str:
    found = cpu_build.find_compiler()
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cpu_build, "find_compiler", lambda: None)
    assert cpu_build.main([]) == 0
    assert "no C++ compiler found" in capsys.readouterr().out
    assert cpu_build.main(["--require"]) == 1


def test_what_is_compiled_stays_until_its_sources_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a source of a line, so that it takes no time."""
    monkeypatch.setattr(cpu_build, "SOURCES", tmp_path)
    monkeypatch.setattr(cpu_build, "BUILD", tmp_path / "build")
    source = tmp_path / f"{POLICY.name}.cpp"
    source.write_text("int one() { return 1; }\n")
    first = cpu_build.compile_policy(compiler(), POLICY)
    made = first.stat().st_mtime_ns
    assert cpu_build.compile_policy(compiler(), POLICY).stat().st_mtime_ns == made
    sanitized = cpu_build.compile_policy(compiler(), POLICY, "undefined")
    (tmp_path / "used.h").write_text("// a header counts too\n")
    assert not cpu_build.library_path(POLICY).exists()
    second = cpu_build.compile_policy(compiler(), POLICY)
    assert second.exists() and not first.exists() and sanitized.exists()
    source.write_text("int one() { return\n")
    with pytest.raises(subprocess.CalledProcessError) as error:
        cpu_build.compile_policy(compiler(), POLICY)
    assert "error" in error.value.stderr
    assert cpu_build.main(["--policy", POLICY.name]) == 0
    assert cpu_build.main(["--policy", POLICY.name, "--require"]) == 1
    assert [path.name for path in cpu_build.BUILD.iterdir() if path.is_dir()] == []


def test_nothing_compiled_is_nothing_available(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu_build, "BUILD", tmp_path)
    assert fused.available() == []
    with pytest.raises(fused.FusedUnavailable, match="python -m kernels"):
        fused.load()


@pytest.mark.thorough
@pytest.mark.parametrize("name", cpu_build.POLICIES)
def test_every_policy_compiles(name: str) -> None:
    """Also those that this processor cannot run."""
    if name.startswith(("avx", "sse")) and not cpu_build.cpu_flags():
        pytest.skip("not an x86 processor")
    assert cpu_build.compile_policy(compiler(), cpu_build.POLICIES[name]).exists()
