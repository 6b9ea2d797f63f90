"""The page for those who bring their own data, played as it is written: its programs and commands, one after the other,
on the files that its own first block makes.
"""

import json
import os
import re
import tomllib
from contextlib import ExitStack
from pathlib import Path

import pytest

from mfalcon.cli.process import serving
from mfalcon.models import checkpoint
from mfalcon.train.movielens import SHA256
from tests.documents.playing import Session
from tests.documents.reading import ROOT, blocks_of, commands

PAGE = "docs/your-data.md"
MADE = {
    "items.csv", "events.csv", "events.parquet", "live.jsonl", "tasks.toml", "checkpoints", "quality.png",
    "live.progress", "live.progress.lock",
}  # fmt: skip
"""All that the page says is written."""


@pytest.mark.parametrize("whole", [pytest.param(True, marks=pytest.mark.thorough), False])
def test_the_page_works(whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs and boosted trees take as much as all else, so most of them are left out of the default run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'client'}")
    session = Session(more={"train": ("--threads", "1")})  # as tests/conftest.py says
    if not whole:
        session.instead["--epochs"] = "2"
        session.more["evaluate"] = ("--no-trees",)
    told: dict[str, str] = {}
    with ExitStack() as stack:
        for block in blocks_of(PAGE):
            calls = list(commands(block))
            if calls and calls[0].words[:2] == ("mfalcon", "serve"):
                served = stack.enter_context(serving(Path(calls[0].words[3])))
                session.grpc, session.http = served.grpc, served.http
                continue
            session.play(block)
            last = session.said[-len(calls) or -1 :]
            told |= {" ".join(call.words[:2]): said for call, said in zip(calls, last, strict=False)}
            if block.language == "python":
                told["python"] = last[0]
            for call, said in zip(calls, last, strict=False):
                if call.words[0] == "curl":
                    told[re.sub(r".*8080", "", next(word for word in call.words if "8080" in word))] = said
    assert [task["name"] for task in tomllib.loads(Path("tasks.toml").read_text())["tasks"]] == [
        "click",
        "buy",
        "value",
    ]
    assert "3,000 events of 80 users on " in told["mfalcon train"] and "kept: epoch" in told["mfalcon train"]
    for words in ("popularity", "logistic", "head items", "10 to 49 events"):
        assert words in told["mfalcon evaluate"]
    assert ("click trees" in told["mfalcon evaluate"]) == whole
    assert Path("quality.png").read_bytes().startswith(b"\x89PNG")
    assert "3,000 events appended" in told["mfalcon load"]
    assert "20" in told["mfalcon ingest"]
    assert re.search(r"(Book|Toy|Lamp|Seed) No\. \d+", told["mfalcon rank"])
    assert "20 events" in told["mfalcon history"]
    assert json.loads(told["/v1/model"])["actions"] == ["buy", "click", "view"]
    over_http = json.loads(told["/v1/rank"])
    assert len(over_http["top"]) == 2 and not over_http["unknown"]
    skus = re.findall(r"sku-\d+", told["python"])
    assert skus == [["sku-0", "sku-8", "sku-59"][place] for place in over_http["top"]]
    outputs = {output["name"]: output["data"] for output in json.loads(told["/v2/models/events-dfgr/infer"])["outputs"]}
    assert outputs["top"] == over_http["top"] and outputs["scores"] == pytest.approx(over_http["scores"], abs=1e-5)
    model = checkpoint.load(tmp_path / "checkpoints/shop").model
    assert [task.name for task in model.config.tasks] == ["click", "buy", "value"]
    assert set(os.listdir(tmp_path)) <= MADE
    assert os.listdir(tmp_path / "checkpoints") == ["shop"]
    assert not set(SHA256) & set(os.listdir(tmp_path))
