"""Compiling the fused kernel: explicit, once per change of the sources, and a clear word where there is no compiler."""

import subprocess
from pathlib import Path

import pytest

from kernels.cpu import build_library, check, library

POLICY = build_library.POLICIES["portable_f32"]


def compiler() -> str:
    found = build_library.find_compiler()
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(build_library, "find_compiler", lambda: None)
    assert build_library.main([]) == 0
    assert "no C++ compiler found" in capsys.readouterr().out
    assert build_library.main(["--require"]) == 1


def test_what_is_compiled_stays_until_its_sources_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a source of a line, so that it takes no time."""
    monkeypatch.setattr(build_library, "SOURCES", tmp_path)
    monkeypatch.setattr(build_library, "BUILD", tmp_path / "build")
    source = tmp_path / f"{POLICY.name}.cpp"
    source.write_text("int one() { return 1; }\n")
    first = build_library.compile_policy(compiler(), POLICY)
    made = first.stat().st_mtime_ns
    assert build_library.compile_policy(compiler(), POLICY).stat().st_mtime_ns == made
    sanitized = build_library.compile_policy(compiler(), POLICY, "undefined")
    (tmp_path / "used.h").write_text("// a header counts too\n")
    assert not build_library.library_path(POLICY).exists()
    second = build_library.compile_policy(compiler(), POLICY)
    assert second.exists() and not first.exists() and sanitized.exists()
    source.write_text("int one() { return\n")
    with pytest.raises(subprocess.CalledProcessError) as error:
        build_library.compile_policy(compiler(), POLICY)
    assert "error" in error.value.stderr
    assert build_library.main(["--policy", POLICY.name]) == 0
    assert build_library.main(["--policy", POLICY.name, "--require"]) == 1
    assert [path.name for path in build_library.BUILD.iterdir() if path.is_dir()] == []


def test_nothing_compiled_is_nothing_available(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build_library, "BUILD", tmp_path)
    assert library.available() == []
    with pytest.raises(library.FusedUnavailable, match="python -m kernels"):
        check.load()


@pytest.mark.thorough
@pytest.mark.parametrize("name", build_library.POLICIES)
def test_every_policy_compiles(name: str) -> None:
    """Also those that this processor cannot run."""
    if name.startswith(("avx", "sse")) and not build_library.cpu_flags():
        pytest.skip("not an x86 processor")
    assert build_library.compile_policy(compiler(), build_library.POLICIES[name]).exists()
