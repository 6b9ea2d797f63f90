"""The benches of item deltas and of graph vectors beside ranks: each answer is held against what it names."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from mfalcon.cli.main import app

_SMALL = ("--items", "1000", "--users", "4", "--events", "20", "--m", "16", "--per-second", "20", "--json")


@pytest.mark.thorough
def test_deltas_beside_ranks() -> None:
    deltas = ("--rows", "2000", "--rows-per-delta", "500", "--seconds", "2", "--turns", "1", "--new", "50")
    found = _run("items", *deltas, "--times", "2")
    assert [(one["where"], one["policy"]) for one in found["streams"]] == [
        ("others", "exact"),
        ("anywhere", "exact"),
        ("anywhere", "frozen"),
    ]
    for one in found["streams"]:
        assert one["num_deltas"] > 0 and one["num_versions"] > 1 and one["num_failed"] == one["num_wrong"] == 0
        assert sum(turn["num_calls"] for turn in one["turns"]) > 0
    assert all(one["num_checked"] > 0 for one in found["streams"] if one["policy"] == "exact")
    assert len(found["new_items_s"]) == 2 and all(0 < seconds < 60 for seconds in found["new_items_s"])


@pytest.mark.thorough
def test_graph_vectors_beside_ranks() -> None:
    rows = _run("graph", "--refreshes", "4")["rows"]
    assert [row["frontends"] for row in rows] == [0, 2]
    for row in rows:
        assert row["num_answers"] > 0 and row["num_versions"] > 1
        assert row["num_failed"] == row["num_wrong"] == row["encoded"] == 0


def _run(bench: str, *options: str) -> Any:
    """What it measured, whether or not its bars held: small numbers say nothing of them."""
    shown = CliRunner().invoke(app, ("bench", bench, *options, *_SMALL))
    assert shown.exit_code in (0, 1) and "{" in shown.stdout, shown.output
    return json.loads(shown.stdout[shown.stdout.index("{") :])
