"""A whole process around the fake engine: `python -m tests.server.serve_fake [BUILD] [HTTP_PORT] [FRONTENDS]`."""

import contextlib
import os
import sys
import threading

from mfalcon.errors import CheckpointError
from mfalcon.metrics.server_metrics import ServerMetrics
from server.app import serve
from server.config import ServerConfig, load_config
from tests.server.fake_engine import FakeEngine
from tests.server.harness import FREE_PORTS


def quick(config: ServerConfig, metrics: ServerMetrics) -> FakeEngine:
    """An engine at once."""
    return FakeEngine()


def greedy(config: ServerConfig, metrics: ServerMetrics) -> FakeEngine:
    """An engine that keeps most of the files that the process may open."""
    files = []
    with contextlib.suppress(OSError):
        while True:
            files.append(os.open(os.devnull, os.O_RDONLY))
    for file in files[-24:]:
        os.close(file)
    return FakeEngine()


def endless(config: ServerConfig, metrics: ServerMetrics) -> FakeEngine:
    """A load without an end."""
    threading.Event().wait()
    raise AssertionError


def broken(config: ServerConfig, metrics: ServerMetrics) -> FakeEngine:
    """A load that fails."""
    raise CheckpointError("somewhere: there is no such checkpoint")


BUILDS = {"quick": quick, "greedy": greedy, "endless": endless, "broken": broken}

if __name__ == "__main__":
    how, http_port, frontends = (*sys.argv[1:], *("quick", "0", "0")[len(sys.argv) - 1 :])
    serve(load_config(None, FREE_PORTS | {"http_port": http_port, "frontends": frontends}), BUILDS[how])
