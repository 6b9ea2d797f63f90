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
    small = {"--rate": "20", "--seconds": "30", "--users": "100", "--history": "256", "--candidates": "50"}
    given = small | dict(zip(arguments[::2], arguments[1::2], strict=True))  # each flag once, as `mfalcon` wants it
    flags = [word for flag in given.items() for word in flag]
    result = CliRunner().invoke(app, ["scale", "--costs", str(costs), *flags], catch_exceptions=True)
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


def test_more_visits_than_memory_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 100,000,000,000 visits in all"):
        ask(tmp_path, "--rate", "100000", "--seconds", "1000000")


def test_nobody_comes(tmp_path: Path) -> None:
    assert "0 ranks in 1 s" in ask(tmp_path, "--rate", "0.001", "--seconds", "1")


@pytest.mark.parametrize("page", ["nowhere/page.md", ".", "bytes.md"])
def test_a_page_that_is_none_is_named(tmp_path: Path, page: str) -> None:
    (tmp_path / "bytes.md").write_bytes(b"\xff\xfe")
    result = CliRunner().invoke(app, ["scale-page", "--page", str(tmp_path / page)])
    assert isinstance(result.exception, ConfigError)
    assert str(tmp_path / page) in str(result.exception)
