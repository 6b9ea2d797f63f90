"""Several `mfalcon serve` processes on loopback, any of which can be killed and started again on its port.

None outlives the process that started it, however that ends.
"""

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

from loadtest.faults.redis_server import HOST, free_port
from mfalcon.errors import EngineFailure

_STOP_S = 30


class Guarded(NamedTuple):
    """A process, and a shell that kills it when the pipe between us and the shell closes."""

    process: "subprocess.Popen[str]"
    guard: "subprocess.Popen[bytes]"


class Fleet:
    """Servers of one checkpoint with the same flags; started on entry, killed on exit. For one thread at a time.

    logs: a directory for what they write to standard error; nowhere if None.
    """

    def __init__(self, checkpoint: Path, num_servers: int, flags: tuple[str, ...], logs: Path | None = None) -> None:
        self._command = [sys.executable, "-m", "mfalcon.cli", "serve", "--checkpoint", str(checkpoint)]
        self._command += ["--http-port", "0", *flags]
        self._logs = logs
        # Ports that no outgoing connection is given: a server that was killed finds its own free again.
        self._ports: list[int] = []
        while len(self._ports) < num_servers:
            port = free_port()
            if port not in self._ports:
                self._ports.append(port)
        self._servers: list[Guarded] = []
        self._exited: list[str] = []

    @property
    def targets(self) -> tuple[str, ...]:
        """gRPC addresses of the servers; they stay while servers come and go."""
        return tuple(f"{HOST}:{port}" for port in self._ports)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the servers' processes."""
        return tuple(server.process.pid for server in self._servers)

    def __enter__(self) -> Self:
        """Raises EngineFailure if a server does not start."""
        try:
            for number in range(len(self._ports)):
                self._servers.append(self._spawn(number))
            for server in self._servers:
                _wait_ready(server)
        except BaseException:
            self._end_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end_all()

    def kill(self, number: int) -> None:
        """End a server with SIGKILL."""
        self._exited += self._exit_of(number)
        end(self._servers[number])

    def start(self, number: int) -> None:
        """Start a killed server on its port and wait until it is ready. Raises EngineFailure if it does not start."""
        self._servers[number] = self._spawn(number)
        _wait_ready(self._servers[number])

    def exited(self) -> list[str]:
        """The servers that ended by themselves, in words."""
        return self._exited + [text for number in range(len(self._servers)) for text in self._exit_of(number)]

    def _exit_of(self, number: int) -> list[str]:
        code = self._servers[number].process.poll()
        return [] if code is None else [f"the server on {self.targets[number]} exited with {code}"]

    def _spawn(self, number: int) -> Guarded:
        command = [*self._command, "--grpc-port", str(self._ports[number])]
        if self._logs is None:
            return guarded(command, subprocess.DEVNULL)
        with (self._logs / f"server-{number}.log").open("a") as log:
            return guarded(command, log)

    def _end_all(self) -> None:
        for server in self._servers:
            end(server)


def guarded(command: list[str], stderr: IO[str] | int, stdout: IO[str] | int = subprocess.PIPE) -> Guarded:
    """Start a process that does not outlive this one. Ctrl-C at the terminal is for us alone: who starts it ends it,
    when nobody needs its answers any more.
    """
    process = subprocess.Popen(command, stdout=stdout, stderr=stderr, text=True, process_group=0)
    guard = subprocess.Popen(
        ["/bin/sh", "-c", 'read -r line; kill -9 "$0"', str(process.pid)], stdin=subprocess.PIPE, start_new_session=True
    )
    return Guarded(process, guard)


def _wait_ready(server: Guarded) -> None:
    process = server.process
    assert process.stdout is not None
    if not process.stdout.readline().startswith("ready "):
        raise EngineFailure(f"mfalcon serve did not start (exit code {process.wait(_STOP_S)})")


def end(server: Guarded) -> None:
    """Kill it. The guard first: the number of a process that is gone may become another's."""
    server.guard.kill()
    server.guard.wait(_STOP_S)
    server.process.kill()
    server.process.wait(_STOP_S)
    for pipe in (server.guard.stdin, server.process.stdout):
        if pipe is not None:
            pipe.close()
