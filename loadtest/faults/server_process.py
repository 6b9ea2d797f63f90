"""One server process on loopback, as its operator sees it: health answers, exit code, what it wrote."""

import http.client
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from loadtest.faults.fleet import Guarded, end, guarded
from loadtest.faults.redis_server import HOST, free_port
from mfalcon.errors import EngineFailure

START_S = 300.0
"""What a start may take at most; a busy machine is slow."""
_POLL_S = 0.02
_ASK_S = 1.0
SILENT, REFUSED = "silent", "refused"
"""Of a health answer: none within a second, and no connection."""


class ServerProcess:
    """`mfalcon serve` from entry to exit. directory: for what it writes to standard error.

    broken: a fault of `broken_server`. shell: a command line in front that ends in `exec "$@"` with its redirections.
    certificate: the one that its flags name, which its clients trust.
    """

    def __init__(
        self,
        checkpoint: Path,
        directory: Path,
        flags: Sequence[str] = (),
        broken: str | None = None,
        shell: str = "",
        certificate: Path | None = None,
    ) -> None:
        self.certificate = certificate
        self.grpc, self._http_port = f"{HOST}:{free_port()}", free_port()
        self.http = f"{HOST}:{self._http_port}"
        self._log = directory / f"server-{self._http_port}.log"
        self._command = ["/bin/sh", "-c", shell, "sh"] if shell else []
        self._command += [
            sys.executable,
            "-m",
            *(("loadtest.faults.broken_server", broken) if broken else ("mfalcon.cli",)),
        ]
        self._command += ["serve", "--checkpoint", str(checkpoint), "--grpc-port", self.grpc.rpartition(":")[2]]
        self._command += ["--http-port", str(self._http_port), *flags]
        self._running: Guarded | None = None

    def __enter__(self) -> Self:
        """Raises EngineFailure if it does not get ready."""
        self.start()
        with ExitStack() as stack:
            stack.callback(self.kill)
            self.wait_ready()
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """On the same ports as before."""
        with self._log.open("a") as log:
            self._running = guarded(self._command, log, subprocess.DEVNULL)

    def wait_ready(self) -> None:
        """Raises EngineFailure."""
        give_up = time.monotonic() + START_S
        while self.asked("/readyz") != "200":
            if self.exit_code is not None or time.monotonic() > give_up:
                raise EngineFailure(f"mfalcon serve did not start (exit code {self.exit_code}): {self.written[-500:]}")
            time.sleep(_POLL_S)

    def asked(self, path: str) -> str:
        """The status of an answer over HTTP, or that there is none."""
        connection = self._connection(_ASK_S)
        try:
            connection.request("GET", path)
            return str(connection.getresponse().status)
        except TimeoutError:
            return SILENT
        except (OSError, http.client.HTTPException):
            return REFUSED
        finally:
            connection.close()

    def metric(self, name: str, label: str) -> float:
        """The sum of a metric over all that has a label: both as they are written, the name with its brace."""
        connection = self._connection(START_S)
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name) and label in line)

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self.certificate is None:
            return http.client.HTTPConnection(HOST, self._http_port, timeout=timeout_s)
        tls = ssl.create_default_context(cafile=self.certificate)
        return http.client.HTTPSConnection(HOST, self._http_port, timeout=timeout_s, context=tls)

    @property
    def pid(self) -> int:
        """The process's own."""
        return self._guarded.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._guarded.process.poll()

    @property
    def written(self) -> str:
        """To standard error."""
        return self._log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._guarded.process.send_signal(number)

    def wait(self, timeout_s: float = START_S) -> int:
        """Its exit code. Raises TimeoutExpired."""
        return self._guarded.process.wait(timeout_s)

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        end(self._guarded)

    @property
    def _guarded(self) -> Guarded:
        assert self._running is not None
        return self._running
