"""The scenarios against real servers, each in a process of its own: Locust patches the one that imports it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from loadtest.faults.redis_server import free_port
from loadtest.faults.server_process import ServerProcess
from loadtest.report.table import as_text
from loadtest.scenarios import play as played
from loadtest.scenarios.catalog import SCENARIOS, locustfile
from loadtest.scenarios.page import page
from loadtest.scenarios.play import play
from loadtest.scenarios.run import RunOptions, run
from mfalcon.cli import loadtest
from mfalcon.errors import ConfigError
from mfalcon.models import checkpoint
from tests.small import small_checkpoint

FEW = ("--clients", "5", "--num-users-space", "20", "--candidates", "30", "--history", "12")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded = small_checkpoint(dtype=torch.float32)
    path = tmp_path_factory.mktemp("scenarios") / "small"
    checkpoint.save(path, loaded.model, loaded.items)
    return path


@pytest.fixture(scope="module")
def server(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(small, tmp_path_factory.mktemp("server"), ("--threads", "1", "--microbatch", "64")) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("over_http", [False, True])
def test_a_day_of_everything_fails_in_nothing(server: ServerProcess, over_http: bool) -> None:
    host = f"http://{server.http}" if over_http else server.grpc
    result = play("mixed", host, 4, FEW)
    rows = {row.name: row for row in result.rows}
    assert rows["Rank"].answered > 0
    assert sum(rows["Rank"].sources.values()) == rows["Rank"].answered
    assert [row for row in result.rows if row.errors] == []
    assert rows["Rank"].encoded < rows["Rank"].answered / 2  # the states were made before
    assert "mixed" in as_text(page([result]))


@pytest.mark.slow
def test_users_are_deleted_in_the_end(server: ServerProcess) -> None:
    before = server.metric("mfalcon_requests_total{", 'verb="delete_user"')
    result = play("cold_start", server.grpc, 3, FEW)
    ranks = next(row for row in result.rows if row.name == "Rank")
    assert ranks.encoded == ranks.answered > 0
    assert server.metric("mfalcon_requests_total{", 'verb="delete_user"') - before >= 20 + ranks.answered


@pytest.mark.slow
def test_clients_that_become_more_wait_for_the_users(server: ServerProcess) -> None:
    """To make these takes longer than Locust's shapes stay as they are."""
    many = ("--clients", "2", "--num-users-space", "600", "--candidates", "30", "--history", "12")
    result = play("ramp", server.grpc, 3, many)
    assert sum(row.answered for row in result.rows) > 0


@pytest.mark.slow
def test_every_late_answer_is_a_failure(server: ServerProcess) -> None:
    with pytest.raises(ConfigError, match="no request was answered"):
        play("steady", server.grpc, 2, (*FEW, "--deadline-ms", "0"))


def test_a_port_where_nobody_listens_is_a_failure() -> None:
    with pytest.raises(ConfigError, match="no request was answered"):
        play("steady", f"http://127.0.0.1:{free_port()}", 1, FEW)


def test_each_scenario_is_one_file_with_one_shape_and_tasks() -> None:
    files = {path.stem for path in locustfile("steady").parent.glob("*.py") if "locust.task" in path.read_text()}
    assert files | {"rolling_restart"} == set(SCENARIOS)
    for name in SCENARIOS:
        tree = ast.parse(locustfile(name).read_text())
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        shapes = [node for node in classes if {getattr(base, "id", "") for base in node.bases} & {"Shape", "Constant"}]
        assert len(shapes) == 1
        assert ast.get_docstring(tree)
    with pytest.raises(ConfigError, match="got 'nothing', must be one of steady"):
        locustfile("nothing")


@pytest.mark.slow
def test_a_scenario_brings_its_own_servers(small: Path, tmp_path: Path) -> None:
    result = run("hot_user", RunOptions(small, 3.0, 4, False, tmp_path))
    assert {"Rank, hot user", "Rank, others"} <= {row.name for row in result.rows}
    assert (tmp_path / "hot_user.html").stat().st_size > 1_000
    assert (tmp_path / "hot_user.json").is_file()


@pytest.mark.thorough
def test_a_rolling_restart_fails_in_nothing(small: Path, tmp_path: Path) -> None:
    result = run("rolling_restart", RunOptions(small, 15.0, 4, False, tmp_path))
    assert sum(row.answered for row in result.rows) > 30
    assert [row for row in result.rows if row.errors] == []


def test_the_command_plays_a_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def fake_run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", fake_run)
    app = Typer()
    app.command()(loadtest.loadtest)
    arguments = ["--scenario", "cache_thrash", "--target", "127.0.0.1:9", "--users", "3", "--seconds", "4"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    command = " ".join(seen[0])
    assert command.startswith(f"{sys.executable} -m locust -f {locustfile('cache_thrash')} --headless")
    assert "--host 127.0.0.1:9 --scenario-seconds 4" in command
    assert command.endswith("--zipf 0 --num-users-space 400 --clients 3 --candidates 500 --num-items 1682")


def test_without_locust_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(played, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError) as error:
        play("steady", "127.0.0.1:9", 1)
    assert error.value.name == "locust"
