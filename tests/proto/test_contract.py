"""ranking.proto keeps its style, and breaks no client of the contract that was released."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUF = Path(sys.executable).with_name("buf")


def buf(*arguments: str, folder: Path = ROOT) -> str:
    """What buf complains of, nothing if it is content."""
    done = subprocess.run([BUF, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    assert bool(said) == bool(done.returncode), said
    return said


def complaint(folder: Path) -> str:
    return buf("breaking", "--against", str(ROOT / "proto" / "released.binpb"), folder=folder)


def test_it_keeps_the_style() -> None:
    assert not buf("lint")


def test_it_breaks_nobody() -> None:
    assert not complaint(ROOT), "a client of the released contract would break; CONTRIBUTING.md says what to do"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("uint32 top_k = 3", "uint64 top_k = 3", 'changed type from "uint32" to "uint64"'),
        ("uint32 top_k = 3;", "", 'Previously present field "3"'),
        ("uint32 top_k = 3", "uint32 top = 3", "changed name"),
        ("rpc Prefill", "rpc Encode", 'Previously present RPC "Prefill"'),
        ("REDIS = 3", "REDIS = 4", "Previously present enum value"),
        ("package mfalcon.v1;", "package mfalcon.v2;", "package changed"),
        ("bool allow_partial = 8;", "bool allow_partial = 8;\n  bool also_new = 19;", ""),
    ],
)
def test_the_guard_itself(old: str, new: str, why: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    (tmp_path / "proto").mkdir()
    text = (ROOT / "proto" / "ranking.proto").read_text()
    assert old in text
    (tmp_path / "proto" / "ranking.proto").write_text(text.replace(old, new))
    said = complaint(tmp_path)
    assert why in said
    assert bool(said) == bool(why)
