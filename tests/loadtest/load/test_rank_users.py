"""The Locust scenario against real servers, each in a process of its own: Locust patches the one that imports it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from loadtest.faults.redis_server import free_port
from mfalcon.cli import loadtest
from mfalcon.models import checkpoint
from tests.small import small_checkpoint

ROOT = Path(__file__).parents[3]
SERVE = """
import sys
from server.app import serve
from server.config import load_config
serve(load_config(None, {"checkpoint": sys.argv[1], "grpc_port": 0, "http_port": 0, "threads": 1, "microbatch": 64}))
"""


@contextmanager
def server(*command: str) -> Iterator[str]:
    """Run a server; its gRPC address."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("ready grpc="), ready
        yield ready.split()[1].removeprefix("grpc=")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def locust(target: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = ("-m", "locust", "-f", "loadtest/load/rank_users.py", "--headless", "--host", target, "--only-summary")
    load = ("-u", "5", "-r", "5", "-t", "5s", "--stop-timeout", "5", "--num-users-space", "50", "--candidates", "80")
    return subprocess.run(
        [sys.executable, *command, *load, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )


@pytest.mark.slow
def test_no_request_fails_on_a_real_engine(tmp_path: Path) -> None:
    small = small_checkpoint(dtype=torch.float32)
    checkpoint.save(tmp_path / "small", small.model, small.items)
    with server("-c", SERVE, str(tmp_path / "small")) as target:
        done = locust(target, "--skip-log", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert {"Rank", "AppendEvents"} <= rows.keys() <= {"Rank", "AppendEvents", "Prefill"}
    assert rows["Rank"]["num_requests"] > 20
    assert sum(row["num_failures"] for row in rows.values()) == 0


@pytest.mark.slow
def test_every_late_answer_is_a_failure(tmp_path: Path) -> None:
    with server("-m", "tests.server.serve_fake") as target:
        done = locust(target, "--deadline-ms", "0", "--json-file", str(tmp_path / "stats"))
    assert done.returncode == 1, done.stderr
    rows = json.loads((tmp_path / "stats.json").read_text())
    assert rows
    assert all(row["num_failures"] == row["num_requests"] > 0 for row in rows)


@pytest.mark.slow
def test_a_port_where_nobody_listens_is_a_failure() -> None:
    done = locust(f"127.0.0.1:{free_port()}", "--skip-log", "-t", "2s")
    assert done.returncode == 1, done.stderr
    assert "no request was answered" in done.stderr


def test_the_command_runs_the_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def fake_run(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", fake_run)
    app = Typer()
    app.command()(loadtest.loadtest)
    result = CliRunner().invoke(app, ["--target", "127.0.0.1:9", "--users", "3", "--seconds", "4"])
    assert result.exit_code == 1
    command = " ".join(seen[0])
    assert command.startswith(
        f"{sys.executable} -m locust -f {ROOT / 'loadtest' / 'load' / 'rank_users.py'} --headless"
    )
    assert "--host 127.0.0.1:9 -u 3 -r 3 -t 4s" in command


def test_without_locust_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loadtest, "find_spec", lambda _: None)
    app = Typer()
    app.command()(loadtest.loadtest)
    error = CliRunner().invoke(app, []).exception
    assert isinstance(error, ModuleNotFoundError)
    assert error.name == "locust"
