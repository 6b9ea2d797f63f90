"""Which modules a command imports: the list of commands none, a command its own and what that needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mfalcon.cli.main import COMMANDS, load_command
from mfalcon.models import checkpoint
from tests.small import small_checkpoint

RUN = """
import sys
from mfalcon.cli.main import main
sys.argv[0] = "mfalcon"
try:
    main()
finally:
    open({told!r}, "w").write("\\n".join(sys.modules))
"""
COMPLETE = {"_MFALCON_COMPLETE": "complete_bash"}
HEAVY = ("torch", "loadtest", "kernels", "server", "mfalcon.train", "mfalcon.engine")


def run(
    tmp_path: Path, *arguments: str, variables: dict[str, str] | None = None
) -> tuple["subprocess.CompletedProcess[str]", list[str]]:
    """Run the command line; what it said, and the modules that it had imported at its end."""
    told = tmp_path / "modules"
    command = [sys.executable, "-c", RUN.format(told=str(told)), *arguments]
    environment = os.environ | (variables or {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    return done, told.read_text().splitlines()


def inside(modules: list[str], packages: tuple[str, ...]) -> list[str]:
    return [name for name in modules if name.startswith(tuple(f"{package}." for package in packages))]


@pytest.mark.parametrize(
    ("arguments", "variables", "printed"),
    [
        (("--version",), {}, "0."),
        (("--help",), {}, "Rank candidates"),
        ((), COMPLETE | {"COMP_WORDS": "mfalcon ra", "COMP_CWORD": "1"}, "rank"),
    ],
)
def test_the_list_of_commands_imports_none(
    arguments: tuple[str, ...], variables: dict[str, str], printed: str, tmp_path: Path
) -> None:
    done, modules = run(tmp_path, *arguments, variables=variables)
    assert printed in done.stdout
    assert not inside(modules, HEAVY)
    assert not {f"mfalcon.cli.{name}" for name in COMMANDS} & set(modules)


def test_the_options_of_a_command_are_completed(tmp_path: Path) -> None:
    done, modules = run(tmp_path, variables=COMPLETE | {"COMP_WORDS": "mfalcon rank --to", "COMP_CWORD": "2"})
    assert done.stdout.split() == ["--top", "--token-file"]
    assert not inside(modules, HEAVY)


def test_rank_with_titles_needs_no_torch(tmp_path: Path) -> None:
    loaded = small_checkpoint()
    checkpoint.save(tmp_path / "checkpoint", loaded.model, loaded.items)
    arguments = ("--user", "ann", "--checkpoint", str(tmp_path / "checkpoint"), "--target", "127.0.0.1:1")
    done, modules = run(tmp_path, "rank", *arguments)
    assert "UNAVAILABLE" in done.stderr
    assert "mfalcon.models.manifest" in modules
    assert not inside(modules, HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [
        ("ingest", os.devnull),
        ("history", "ann"),
        ("rank", "--user", "ann", "--candidates", "7"),
        ("delete", "a", "--yes"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_who_asks_a_server_imports_no_more_than_that(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """A start of half a second is all that a command in a loop costs."""
    done, modules = run(tmp_path, *arguments, "--target", "127.0.0.1:1")
    assert "UNAVAILABLE" in done.stderr or "127.0.0.1:1" in done.stderr
    assert "mfalcon_client" in modules
    unused = ("polars", "redis", "fastapi", "httpx", "sklearn", "matplotlib", "opentelemetry", "prometheus_client")
    assert not inside(modules, (*HEAVY, *unused))


def test_serve_imports_neither_the_benches_nor_the_training(tmp_path: Path) -> None:
    done, modules = run(tmp_path, "serve", "--checkpoint", "nowhere", "--grpc-port", "0", "--http-port", "0")
    assert "nowhere" in done.stderr
    assert "server.app" in modules
    assert not inside(modules, ("loadtest", "mfalcon.train"))


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [(("--help",), "--grpc-port"), (("--checkpoint", "x", "--grpc-port", "99999"), "grpc_port")],
)
def test_the_help_of_serve_and_what_it_refuses_need_no_torch(
    arguments: tuple[str, ...], printed: str, tmp_path: Path
) -> None:
    done, modules = run(tmp_path, "serve", *arguments)
    assert printed in done.stdout + done.stderr
    assert not inside(modules, ("torch", "kernels", "loadtest", "mfalcon.engine", "mfalcon.train"))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says_of_itself(name: str) -> None:
    first, _, _ = load_command(name).help.partition("\n\n")
    assert COMMANDS[name][1] == first.replace("\n", " ")
