"""A server in a container: read-only, non-root, without capabilities, on loopback ports of this machine's network."""

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from loadtest.faults.redis_server import free_port
from tests.image.engine import Engine, limits_of_processes

_READY_S = 180


@dataclass(frozen=True, slots=True)
class Container:
    """One that runs. ready_s: seconds from its start until it was ready."""

    engine: Engine
    name: str
    grpc: str
    http: str
    ready_s: float

    def log(self) -> str:
        """What it has written so far."""
        return self.engine.logs(self.name)

    def inside(self, *command: str) -> str:
        """What a command writes in the container."""
        return self.engine.run("exec", self.name, *command)

    def told(self, template: str) -> str:
        """A field of what the engine knows of it."""
        return self.engine.run("inspect", "--format", template, self.name)


@contextmanager
def running(engine: Engine, image: str, *options: str, settings: dict[str, str] | None = None) -> Iterator[Container]:
    """Run an image until the block ends; options: of `podman run`, settings: MFALCON_... without that."""
    ports = free_port(), free_port()
    name = f"mfalcon-test-{ports[0]}"
    variables = {"GRPC_HOST": "127.0.0.1", "HTTP_HOST": "127.0.0.1", "GRPC_PORT": ports[0], "HTTP_PORT": ports[1]}
    named = [
        word for key, value in {**variables, **(settings or {})}.items() for word in ("-e", f"MFALCON_{key}={value}")
    ]
    begun = time.monotonic()
    engine.run(
        *("run", "--detach", "--name", name, "--network", "host", "--read-only", "--read-only-tmpfs=false"),
        *("--cap-drop", "all", "--security-opt", "no-new-privileges", *limits_of_processes(), *named, *options, image),
    )
    try:
        while not _is_ready(ports[1]):
            if engine.run("inspect", "--format", "{{.State.Status}}", name) != "running":
                raise RuntimeError(f"it ended before it was ready:\n{engine.logs(name)}")
            if time.monotonic() - begun > _READY_S:
                raise RuntimeError(f"it is not ready after {_READY_S} s:\n{engine.logs(name)}")
            time.sleep(0.05)
        ready_s = time.monotonic() - begun
        yield Container(engine, name, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", round(ready_s, 2))
    finally:
        engine.run("rm", "--force", "--time", "1", "--volumes", name, check=False)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
