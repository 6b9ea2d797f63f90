"""What every command has: -h, and --json where it prints a result."""

from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from mfalcon.cli.main import COMMANDS, app, load_command

WITHOUT_RESULT = {
    *("data ml-100k", "new-model", "serve", "demo", "graph", "learn-items", "update-items", "merge fit"),
    *("log backup", "log export", "log import", "log migrate"),
}
"""Commands whose result is a file, a server or a show; and those of `bench` that only print what a file has."""


def leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    found = getattr(command, "commands", None)
    if not found:
        yield name, command
    for part, each in (found or {}).items():
        yield from leaves(f"{name} {part}", each)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"bench"}))
def test_what_prints_a_result_prints_it_as_json(name: str) -> None:
    for which, command in leaves(name, load_command(name)):
        has_json = "--json" in [flag for option in command.params for flag in option.opts]
        assert has_json != (which in WITHOUT_RESULT), which


@pytest.mark.parametrize("name", ["rank", "log", "ingest"])
def test_h_is_help(name: str) -> None:
    short, long = (CliRunner().invoke(app, [name, flag]).output for flag in ("-h", "--help"))
    assert short == long and "Usage" in short
