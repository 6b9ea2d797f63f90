"""Holds a call of mfalcon as a reader would type it against the command line of today, without running it."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import typer

from mfalcon.cli.main import COMMANDS, load_command
from mfalcon.cli.serve import read_settings
from mfalcon.errors import ConfigError
from server.config import ServerConfig

CALLED = re.compile(r"(?:^|(?<=[\s(;&|]))(?<!-n )(?:\.venv/bin/)?mfalcon (?=[a-z])")
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports no name for it


@cache
def loaded(name: str) -> Any:
    """The command of a name."""
    return load_command(name)


def resolved(words: Sequence[str]) -> tuple[Any, list[str]]:
    """A command, the innermost of its group, and its arguments. words: those behind `mfalcon`."""
    assert words[0] in COMMANDS, f"there is no mfalcon {words[0]}"
    command, rest = loaded(words[0]), list(words[1:])
    while hasattr(command, "commands"):
        if not rest:
            return command, rest
        assert rest[0] in command.commands, f"{command.name} has no {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def flags_of(command: Any) -> set[str]:
    """The options of a command, and of those in its group."""
    if command.name == "serve" and command is loaded("serve"):
        return {f"--{name.replace('_', '-')}" for name in ServerConfig.model_fields} | {"--config", "--help"}
    found = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    return found.union({"--help"}, *(flags_of(inner) for inner in getattr(command, "commands", {}).values()))


def check_names(words: Sequence[str]) -> None:
    """There are such a command and such options."""
    command, arguments = resolved(words)
    flags = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    assert not flags - flags_of(command), f"mfalcon {command.name} has no {flags - flags_of(command)}"


def check(words: Sequence[str]) -> None:
    """Nothing is missing either, and values are such as the options take."""
    check_names(words)
    command, arguments = resolved(words)
    if "..." in arguments:
        return
    if command is loaded("serve"):
        try:
            read_settings(arguments)
        except ConfigError as error:
            assert re.search("no such file|does not exist|not point to a file", str(error)), f"mfalcon {words}: {error}"
        return
    try:
        command.make_context(command.name, arguments)
    except UsageError as error:
        assert "does not exist" in str(error), f"mfalcon {' '.join(words)}: {error}"  # a reader's own file
