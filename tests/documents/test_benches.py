"""Commands of benchmarks that no other test runs, with less of everything than the pages have."""

import json
from pathlib import Path

import pytest

from mfalcon.models.checkpoint import save
from tests.documents.playing import called
from tests.documents.test_played import like_the_demo

FEWER = ("--rounds", "1")


@pytest.mark.thorough
def test_bench_serve() -> None:
    """`mfalcon bench serve`, with one server and a fifth of a second."""
    said = called(
        "bench", "serve", "--backend", "reference", "--seconds", "0.2", "--m", "9", "--events", "8", *FEWER, "--json"
    )
    assert [row["name"] for row in json.loads(said)["rows"]] == ["reference"]


@pytest.mark.thorough
def test_bench_scale_costs(tmp_path: Path) -> None:
    """`mfalcon bench scale-costs`, a round of short cells."""
    checkpoint = like_the_demo()
    save(tmp_path / "checkpoint", checkpoint.model, checkpoint.items)
    written = tmp_path / "costs.json"
    less = ("--candidates", "9", "--cell-seconds", "0.05", *FEWER)
    called("bench", "scale-costs", str(tmp_path / "checkpoint"), "--write", str(written), *less)
    assert json.loads(written.read_text())
