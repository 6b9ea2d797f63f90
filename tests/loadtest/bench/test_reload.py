"""The bench of reloads against a server that it starts: it counts every call and checks what it got."""

import json
from pathlib import Path

import torch
from typer.testing import CliRunner

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import shape_named
from mfalcon.cli.main import app
from mfalcon.models import checkpoint


def test_every_answer_is_that_of_the_version_that_it_names(tmp_path: Path) -> None:
    loaded = random_checkpoint(shape_named("tiny"), 1_682, max_history=64, dtype=torch.float32)
    checkpoint.save(tmp_path / "model", loaded.model, loaded.items)
    numbers = ("--reloads", "3", "--pause-s", "2.5", "--users", "16", "--events", "20", "--m", "9")
    given = ("bench", "reload", str(tmp_path / "model"), "--warm-users", "10", *numbers, "--json")
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout[result.stdout.index("{") :])["servers"]["10 users warmed"]
    assert measured["num_reloads"] == 3 and measured["num_failed"] == measured["num_wrong"] == 0
    assert measured["num_checked"] > 0 and measured["worst_error"] <= 1e-5
    assert {row["phase"] for row in measured["phases"]} >= {"steady", "after"}
    assert measured["num_calls"] > sum(row["num_calls"] for row in measured["phases"]) > 0
