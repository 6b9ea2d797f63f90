"""A neighbour that keeps one core busy while a benchmark asks for it.

`python -m loadtest.bench.busy` is a process of its own. It obeys its standard input, byte by byte: WORK, REST, and each
is answered on its standard output once it is obeyed. When its input ends, so does it: it never outlives the benchmark,
however that ends.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

WORK, REST = b"w", b"r"
_IN, _OUT = 0, 1
_SETTLE_S = 0.02
"""After it has begun, before anything is measured: until the scheduler no longer favours who has just slept."""
_CHUNK = 5_000
"""Additions between two looks at the input: some tens of microseconds."""


class Neighbour:
    """The process, seen from the benchmark: at rest unless it is told to work."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """True when the process is gone."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()

    @contextmanager
    def working(self) -> Iterator[None]:
        """One core is busy inside, at rest again after it."""
        self._tell(WORK)
        time.sleep(_SETTLE_S)
        try:
            yield
        finally:
            self._tell(REST)

    def _tell(self, command: bytes) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command)
        self._process.stdin.flush()
        if self._process.stdout.read(1) != command:
            raise ChildProcessError(f"the busy process {self.pid} ended with {self._process.poll()}")


@contextmanager
def neighbour(*module: str) -> Iterator[Neighbour]:
    """A resting neighbour, ended afterwards whatever happens inside. module: that obeys, with its arguments; this one
    if none is given.
    """
    command = [sys.executable, "-m", *(module or ("loadtest.bench.busy",))]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        found = Neighbour(process)
        try:
            yield found
        finally:
            found.kill()


def obey(work: Callable[[], object]) -> None:
    """Work and rest as told, until the input ends. work: takes some milliseconds at most."""
    working = False
    while True:
        if working and not select.select([_IN], [], [], 0)[0]:
            work()
            continue
        command = os.read(_IN, 1)
        if not command:
            return
        working = command == WORK
        os.write(_OUT, command)


if __name__ == "__main__":
    obey(lambda: sum(range(_CHUNK)))
