"""The page's own way to a server with certificates and tokens, as a shell runs it, with the real openssl and curl."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mfalcon.cli.process import serving
from mfalcon.models.checkpoint import save
from tests.documents.playing import Session
from tests.documents.reading import ROOT, blocks_of, commands
from tests.documents.test_played import like_the_demo

PAGE, SECTION = "docs/security.md", "A server with both, and calls to it"
SERVE = re.compile(r"^mfalcon serve --checkpoint DIR (.*)\n", re.MULTILINE)


def shell(text: str, folder: Path) -> str:
    """What a shell prints that ends at the first command that fails."""
    variables = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.thorough
def test_a_server_with_certificates_and_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(map(shutil.which, ("openssl", "curl", "bash"))), "this needs openssl, curl and bash"
    monkeypatch.chdir(tmp_path)
    checkpoint = like_the_demo()
    save(tmp_path / "DIR", checkpoint.model, checkpoint.items)
    (tmp_path / "bin").mkdir()
    for name, called in (("mfalcon", "-m mfalcon.cli"), ("python", "")):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {called} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    (block,) = (block for block in blocks_of(PAGE, "sh") if block.section == SECTION)
    before, flags, after = SERVE.split(block.text)
    assert len(list(commands(block))) == 7
    shell(before, tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'client'}")
    with serving(tmp_path / "DIR", *flags.split()) as served:
        session = Session(served.grpc, served.http)
        calls = session.here(after).replace("mfalcon rank", f"mfalcon rank --target {served.grpc}")
        assert "localhost:50051" not in calls and served.http in calls
        said = shell(calls, tmp_path)
    table, answer, printed = re.fullmatch(r"(.*?)({.*})\[([^]]*)\]\n", said, re.DOTALL).groups()  # type: ignore[union-attr]
    scores = json.loads(answer)["scores"]
    assert [float(number) for number in printed.split()] == pytest.approx(scores, abs=1e-6)
    assert all(f"{score:.4f}" in table for score in scores)
