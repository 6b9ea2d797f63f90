"""The page for those who bring their own data, played as it is written: its commands, one after the other, on what its
own first block makes.
"""

import io
import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

import pytest

from mfalcon.cli.main import main
from mfalcon.cli.process import serving
from mfalcon.models import checkpoint
from mfalcon.train.movielens import SHA256
from tests.test_documented import ROOT, blocks

PAGE = (ROOT / "docs/your-data.md").read_text(encoding="utf-8")
OF_A_SERVER = ("load", "ingest", "rank", "history")


def lines() -> Iterator[str]:
    """The commands of the page, one each."""
    for block in blocks(PAGE):
        for line in block.splitlines():
            if re.match(r"    (mfalcon|curl) ", line):
                yield line.strip()


def program() -> str:
    """The page's program."""
    (found,) = (block for block in blocks(PAGE) if block.lstrip().startswith("import "))
    return "\n".join(line[4:] for line in found.splitlines())


def called(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> str:
    """What a command prints on standard output; it must end well."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "argv", ["mfalcon", *words])
    with redirect_stdout(out), pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, words
    out.seek(0)
    return out.read()


@pytest.mark.parametrize("trees", [pytest.param(True, marks=pytest.mark.thorough), False])
def test_the_page_works(trees: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees take as much as all else, so they are left out of the default run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    here = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"}
    subprocess.run([sys.executable, "-c", program()], check=True, env=here)
    told: dict[str, str] = {}
    with ExitStack() as stack:
        grpc, http = "", ""
        for line in lines():
            words, _, into = line.partition(" > ")
            name, *rest = words.split()
            if name == "curl":
                with urllib.request.urlopen(f"http://{http}/v1/model") as answer:
                    told["curl"] = answer.read().decode()
                continue
            if rest[0] == "serve":
                monkeypatch.setenv("PYTHONPATH", here["PYTHONPATH"])
                served = stack.enter_context(serving(Path(rest[2])))
                grpc, http = served.grpc, served.http
                continue
            more = ["--target", grpc] if rest[0] in OF_A_SERVER else []
            more += ["--no-trees"] if rest[0] == "evaluate" and not trees else []
            more += ["--threads", "1"] if rest[0] == "train" else []  # as tests/conftest.py says
            said = called(monkeypatch, [*rest, *more])
            told[rest[0]] = said
            if into:
                Path(into).write_text(said, encoding="utf-8")
    assert [task["name"] for task in tomllib.loads(Path("tasks.toml").read_text())["tasks"]] == [
        "click",
        "buy",
        "value",
    ]
    assert "3,000 events of 80 users on " in told["train"] and "kept: epoch" in told["train"]
    for words in ("popularity", "logistic", "head items", "10 to 49 events"):
        assert words in told["evaluate"]
    assert ("click trees" in told["evaluate"]) == trees
    assert Path("quality.png").read_bytes().startswith(b"\x89PNG")
    assert "3,000 events appended" in told["load"]
    assert "20" in told["ingest"]
    assert re.search(r"(Book|Toy|Lamp|Seed) No\. \d+", told["rank"])
    assert "20 events" in told["history"]
    assert json.loads(told["curl"])["actions"] == ["buy", "click", "view"]
    model = checkpoint.load(tmp_path / "checkpoints/shop").model
    assert [task.name for task in model.config.tasks] == ["click", "buy", "value"]
    named = {"items.csv", "events.csv", "live.jsonl", "tasks.toml", "checkpoints", "quality.png", "live.progress"}
    assert set(os.listdir(tmp_path)) <= named | {"live.progress.lock"}
    assert os.listdir(tmp_path / "checkpoints") == ["shop"]
    assert not set(SHA256) & set(os.listdir(tmp_path))
