"""`mfalcon serve` as a child process on free loopback ports: for the demo and the end-to-end tests."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mfalcon.errors import EngineFailure

_STOP_S = 30


class Served(NamedTuple):
    """A running server: its process and addresses."""

    process: "subprocess.Popen[str]"
    grpc: str
    http: str


@contextlib.contextmanager
def serving(checkpoint: Path | None, *flags: str) -> Iterator[Served]:
    """Start a server, wait until it is ready, stop it at the end. Raises EngineFailure if it does not start.
    checkpoint: None where the flags name a file that has the models.
    """
    command = [sys.executable, "-m", "mfalcon.cli", "serve"]
    command += [] if checkpoint is None else ["--checkpoint", str(checkpoint)]
    command += ["--grpc-port", "0", "--http-port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith("ready "):
                raise EngineFailure(f"mfalcon serve did not start (exit code {process.wait(_STOP_S)})")
            addresses = dict(part.split("=", 1) for part in line.split()[1:])
            yield Served(process, addresses["grpc"], addresses["http"])
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
