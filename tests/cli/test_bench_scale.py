"""`mfalcon bench scale`: a scenario on given costs, from the command line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.scale.costs import as_json
from mfalcon.cli.bench import app
from mfalcon.errors import ConfigError
from tests.loadtest.scale.made_up import USUAL


def ask(tmp_path: Path, *arguments: str) -> str:
    costs = tmp_path / "costs.json"
    costs.write_text(as_json(USUAL))
    small = ("--rate", "20", "--seconds", "30", "--users", "100", "--history", "256", "--candidates", "50")
    result = CliRunner().invoke(app, ["scale", "--costs", str(costs), *small, *arguments], catch_exceptions=True)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_a_kill_is_told_in_phases(tmp_path: Path) -> None:
    page = ask(tmp_path, "--scenario", "kill")
    assert [line.split()[0] for line in page.splitlines() if line.startswith(("before", "during", "after"))] == [
        "before",
        "during",
        "after",
    ]
    assert "replicas needed for 60%" in page
    assert ask(tmp_path, "--scenario", "kill") == page


def test_an_unknown_scenario_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 'storm'"):
        ask(tmp_path, "--scenario", "storm")
