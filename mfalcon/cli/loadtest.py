"""`mfalcon loadtest`: load a running server with the Locust scenario `loadtest/load/rank_users.py`."""

import subprocess
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

_SCENARIO = "loadtest.load.rank_users"
_STOP_SECONDS = 5
"""Longest time that requests in flight get when the time is up."""


def loadtest(
    target: Annotated[str, typer.Option(help="HOST:PORT of the server's gRPC.")] = "127.0.0.1:50051",
    users: Annotated[int, typer.Option(min=1, help="Concurrent clients.")] = 20,
    seconds: Annotated[int, typer.Option(min=1, help="How long.")] = 30,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates of a request.")] = 500,
    user_space: Annotated[int, typer.Option(min=1, help="Distinct user ids, drawn by Zipf's law.")] = 10_000,
    items: Annotated[int, typer.Option(min=1, help="Draw item ids from 1 to this.")] = 1_682,
    as_json: Annotated[bool, typer.Option("--json", help="Print Locust's statistics as JSON.")] = False,
) -> None:
    """Rank, AppendEvents and Prefill from many clients; fails if any request fails. For more: locust -f."""
    if find_spec("locust") is None:
        raise ModuleNotFoundError("No module named 'locust'", name="locust")
    scenario = find_spec(_SCENARIO)
    assert scenario is not None
    assert scenario.origin is not None
    command = [sys.executable, "-m", "locust", "-f", scenario.origin, "--headless", "--only-summary"]
    command += ["--host", target, "-u", str(users), "-r", str(users), "-t", f"{seconds}s"]
    command += ["--stop-timeout", str(_STOP_SECONDS), "--num-users-space", str(user_space)]
    command += ["--candidates", str(candidates), "--num-items", str(items)]
    if as_json:
        command.append("--json")
    raise typer.Exit(subprocess.run(command, check=False).returncode)
