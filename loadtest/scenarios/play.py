"""Plays a scenario on a server that runs, by Locust in a process of its own: it patches the one that imports it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pydantic import TypeAdapter

from loadtest.scenarios.catalog import SCENARIOS, locustfile
from loadtest.scenarios.result import ScenarioResult
from mfalcon.errors import ConfigError

_ROOT = Path(__file__).parents[2]
_BESIDE_S = 300
"""What Locust may take beside the scenario: histories before, deletions after."""


def play(
    name: str, host: str, seconds: float, options: Sequence[str] = (), report: Path | None = None
) -> ScenarioResult:
    """The figures of a scenario. host: http://HOST:PORT, else of gRPC. options: `loadtest.scenarios.options`, above
    what the scenario has itself. report: where Locust writes its page.

    Raises ConfigError if there is no such scenario or no request was answered, ModuleNotFoundError without Locust.
    """
    file = locustfile(name)
    if find_spec("locust") is None:
        raise ModuleNotFoundError("No module named 'locust'", name="locust")
    with tempfile.TemporaryDirectory(prefix="mfalcon-") as scratch:
        figures = Path(scratch) / "figures.json"
        command = [sys.executable, "-m", "locust", "-f", str(file), "--headless", "--skip-log", "--only-summary"]
        command += ["--host", host, "--scenario-seconds", str(seconds), "--summary-file", str(figures)]
        command += [*SCENARIOS[name].locust, *options, *(() if report is None else ("--html", str(report)))]
        done = subprocess.run(
            command,
            check=False,
            timeout=seconds + _BESIDE_S,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))},
        )
        if not figures.is_file():
            raise ConfigError(f"{name}: {host} was asked nothing, Locust ended with exit code {done.returncode}")
        result = TypeAdapter(ScenarioResult).validate_json(figures.read_bytes())
    if not any(row.answered for row in result.rows):
        errors = ", ".join(f"{code} {number}" for row in result.rows for code, number in row.errors.items())
        raise ConfigError(f"{name}: no request was answered by {host}: {errors or 'none was sent'}")
    return result
